"""One run, or an ensemble of runs, from a task to a checkpoint: `unipelt train`. The same command again resumes it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from unipelt import data, spec
from unipelt.checkpoint.bases import load_tokenizer, name_classes, quiet
from unipelt.checkpoint.disk import write_whole
from unipelt.checkpoint.folder import save
from unipelt.checkpoint.loading import load
from unipelt.errors import CheckpointError, UserError
from unipelt.inject.attach import detach
from unipelt.tasks.base import Task
from unipelt.train.baselines import train_baselines
from unipelt.train.fleet import Fleet, Observer
from unipelt.train.predictor import Predictor
from unipelt.train.records import FINISHED, RUNS_AT_ONCE, RunConfig, RunRecord, option_of
from unipelt.train.run_folder import last_state, locked_folder, read_record, write_record
from unipelt.train.runs import FinishedRun, Plan, metrics_of, record_test
from unipelt.train.setup import DatasetCache, build_fleet, device_of, export_note
from unipelt.train.state import clear_state

MOST_RUNS = 64  # runs of an ensemble
WHY_AGAIN = {
    "epochs": ", as the learning rate's schedule is another",
    "precision": ", as numbers are rounded otherwise",
}
"""why a run trains again from its first step, by the field of the recipe that differs; `auto` may be another precision elsewhere"""


def train_run(
    config: RunConfig, folder: Path, *, ensemble: int = 1, device: str = "auto", log: Callable[[str], None] = print,
    on_step: Observer | None = None, wait: bool = False,
) -> RunRecord:  # fmt: skip
    """Train one run into a folder, or resume it; a finished run is only read. Raises UserError.

    ensemble: this many runs as a fleet, with seeds from the config's on, each in a folder `seed-…` inside of this one; their
    predictions are averaged. All have the examples that the first seed draws, so that no run has seen another's test examples;
    their initial values, the order of their examples and dropout differ.
    wait: for another process that trains in the folder; else it is refused.
    """
    if not 1 <= ensemble <= MOST_RUNS:
        raise UserError(f"--ensemble {ensemble}: expected 2 to {MOST_RUNS} runs")
    if config.key.full and ensemble > 1:
        raise UserError(
            f"--ensemble {ensemble}: full tunes the base itself, and one base is loaded; expected another --method"
        )
    configs = [replace(config, seed=config.seed + index) for index in range(ensemble)]
    members = [f"seed-{member.seed}" for member in configs] if ensemble > 1 else None
    with locked_folder(folder, wait):
        if not config.key.full and (members or not config.key.baseline):
            spec.mixture(config.method)  # a misspelt method is refused before anything is loaded
        torch_device, cache = device_of(device), DatasetCache()
        splits, task = cache.splits(config), cache.task(config)
        if members:
            task.average([torch.zeros(1, task.outputs)])  # a task that has no mean is refused before anything is loaded
        earlier = _read_earlier(folder, config, splits, task, members)
        if (
            earlier is not None
            and earlier.done
            and earlier.config is not None
            and earlier.config.recipe.get("epochs") == config.recipe.get("epochs")
        ):
            clear_state(folder)  # a kill may have come before its removal
            log(f"{folder}: already finished, nothing trained")
            return earlier
        for note in notes_of(config, splits, task):
            log(note)
        log("examples: " + ", ".join(f"{len(examples):,} {name}" for name, examples in splits.parts.items()))
        if config.key.baseline:
            (finished,) = train_baselines([config], torch_device, cache)
            save_checkpoint(finished, folder)
            write_record(folder, finished.record)
            return finished.record
        fleet = build_fleet(
            configs, runs_at_once=min(ensemble, RUNS_AT_ONCE.get(torch_device.type, MOST_RUNS)), device=torch_device, cache=cache, folder=folder,
            on_step=on_step, identity=None if earlier is None else earlier.identity, examples=splits,
        )  # fmt: skip
        if earlier is not None:
            _check_recipe(earlier, fleet.plans[0], folder, log)
        recipe_items = asdict(fleet.plans[0].recipe).items()
        log("recipe: " + ", ".join(f"{name}={value}" for name, value in recipe_items if value is not None))
        started = replace(fleet.plans[0].initial_record, config=config, members=members)
        write_record(folder, started)
        if (state := last_state(folder)) is not None:
            step, plan = state.records[0].steps, fleet.plans[0]
            epoch = min(plan.epochs_at(step) + 1, plan.recipe.epochs)
            log(f"resumed after step {step} of {plan.steps}, in epoch {epoch} of {plan.recipe.epochs}")
        for finished in fleet.train():
            record, seed = finished.record, f"seed {finished.key.seed}: " if members else ""
            if record.failed:
                write_record(folder, replace(started, status=record.status) if members else record)
                clear_state(folder)
                raise UserError(seed + record.failed)
            run_folder = folder / members[finished.plan_index] if members else folder
            save_checkpoint(finished, run_folder)
            write_record(run_folder, record)
            if members:
                scores = f"validation {record.metric} {record.validation:.4f}, test {record.test:.4f}"
                log(f"{seed}{record.status}, {scores}")
        if members:
            record = _averaged(fleet, [folder / member for member in members], started)
            write_record(folder, record)
        clear_state(folder)
        return record


def _read_earlier(
    folder: Path, config: RunConfig, splits: data.Splits, task: Task, members: list[str] | None
) -> RunRecord | None:
    """What a folder holds of the same run. Raises UserError where it failed, CheckpointError where it is another run."""
    earlier = read_record(folder, config)
    if earlier is None:
        return None
    if earlier.members != members:
        content = f"an ensemble of {len(earlier.members)} runs" if earlier.members else "one run"
        raise CheckpointError(f"--out {folder}: holds {content}; take another folder, or the same --ensemble")
    if earlier.failed:
        clear_state(folder)
        raise UserError(f"{folder}: {earlier.status}; take another --out")
    if (earlier.examples, earlier.labels) != (splits.fingerprints, list(task.labels)):
        raise CheckpointError(
            f"--out {folder}: its run was started on other examples of {config.task!r}; take another folder, or remove it"
        )
    return earlier


def _check_recipe(earlier: RunRecord, plan: Plan, folder: Path, log: Callable[[str], None]) -> None:
    """Say why a run that was begun with another recipe trains again, and remove its state. Raises CheckpointError for fewer epochs."""
    if earlier.recipe is None or earlier.recipe == plan.initial_record.recipe:
        return
    old_epochs, epochs = earlier.recipe["epochs"], plan.recipe.epochs
    if epochs < old_epochs:
        raise CheckpointError(
            f"--out {folder}: holds a run of {old_epochs} epochs; got --epochs {epochs}, expected more"
        )
    checkpoint_note = "; its checkpoint stays until the new one is written" if earlier.done else ""
    name, value = next(item for item in asdict(plan.recipe).items() if earlier.recipe[item[0]] != item[1])
    again = f"trains again from the first step{WHY_AGAIN.get(name, '')}{checkpoint_note}"
    log(f"{option_of(name)} {value} instead of {earlier.recipe[name]}: {again}")
    clear_state(folder)


def _averaged(fleet: Fleet, members: Sequence[Path], started: RunRecord) -> RunRecord:
    """The record of an ensemble, from the predictions of its saved checkpoints for the validation and test examples."""
    (first, *_), model = fleet.plans, detach(fleet.model)
    load(model, list(members), tokenizer=fleet.tokenizer)
    task, longest = first.task.in_target_units(), first.validation.longest
    predictor = Predictor(model.eval(), fleet.tokenizer, task, longest, True, len(members))
    logits = predictor.logits(first.validation)
    metrics = metrics_of(task, logits, first.validation, None)
    temperature = task.fit_temperature(logits, first.validation.targets or [])
    task = task.with_temperature(temperature)
    epoch = max((run.validation_metrics or {})["epoch"] for run in fleet.records)
    record = replace(
        started, status=FINISHED, validation=metrics[task.metric], validation_metrics={"epoch": epoch, **metrics},
        description=task.describe(), temperature=temperature, seconds=fleet.seconds, runs_at_once=fleet.runs_at_once, device=str(fleet.device),
        steps=sum(run.steps for run in fleet.records),
    )  # fmt: skip
    if first.test is not None and first.test.targets is not None:
        record_test(record, task, predictor.logits(first.test), first.test)
    return record


def notes_of(config: RunConfig, splits: data.Splits, task: Task) -> list[str]:
    """Notes before a run is trained: the columns, the examples, and what cannot be exported."""
    return [describe_columns(config, task), *splits.notes, *export_note(config, task)]


def describe_columns(config: RunConfig, task: Task) -> str:
    """Which columns are used for what, and what the task is."""
    columns = task.columns
    pair = f" and {columns.text_pair!r}" if columns.text_pair else ""
    return f"{config.task}: text {columns.text!r}{pair}, label {columns.label!r}; {task.summary()}"


def save_checkpoint(finished: FinishedRun, folder: Path) -> None:
    """Write the best parameters of a finished run; a model that was tuned whole as a plain transformers model."""
    if finished.files is not None:
        write_whole(folder, finished.files)
        return
    model, record, task = finished.model, finished.record, finished.record.description
    assert model is not None and record.config is not None
    base = record.config.model
    if not record.key.full:
        tokenizer_id = (record.identity or {}).get("tokenizer")
        save(
            model, folder, state=finished.state, base=base, task=task, results=record.results, recipe=record.recipe, tokenizer=tokenizer_id
        )  # fmt: skip
        return
    name_classes(model, task["labels"] or ["value"])
    try:
        with quiet():
            model.save_pretrained(folder, state_dict=finished.state)
            load_tokenizer(base).save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{folder}: cannot write the model ({reason}); its training is kept, run the same command again to continue"
        ) from None
