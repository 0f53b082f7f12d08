"""One run, from a task to a checkpoint: `unipelt train`. The same command again resumes it."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError

from unipelt import data, spec
from unipelt.checkpoint.bases import load_tokenizer, name_classes, quiet
from unipelt.checkpoint.disk import write_whole
from unipelt.checkpoint.folder import save
from unipelt.errors import CheckpointError, UserError
from unipelt.tasks.base import Task
from unipelt.train.baselines import train_baselines
from unipelt.train.fleet import Observer
from unipelt.train.lock import alone_in
from unipelt.train.recipes import Recipe
from unipelt.train.records import RunConfig, RunRecord, option_of
from unipelt.train.run_folder import last_state, read_record, write_record
from unipelt.train.runs import FinishedRun
from unipelt.train.setup import DatasetCache, build_fleet, device_of, export_note
from unipelt.train.state import clear_state

AGAIN = {"epochs": ", as the learning rate's schedule is another", "precision": ", as numbers are rounded otherwise"}
"""why a run trains again from its first step, by the field of the recipe that differs; `auto` may be another precision elsewhere"""


def train_run(
    config: RunConfig, folder: Path, *, device: str = "auto", log: Callable[[str], None] = print,
    on_step: Observer | None = None,
) -> RunRecord:  # fmt: skip
    """Train one run into a folder, or resume it; a finished run is only read. Raises UserError."""
    with alone_in(folder):
        if not config.full and not config.key.baseline:
            spec.mixture(config.method)  # a misspelt method is refused before anything is loaded
        target, cache = device_of(device), DatasetCache()
        splits, task = cache.splits(config), cache.task(config)
        before = earlier(folder, config, splits, task)
        if before is not None and before.members:
            raise CheckpointError(
                f"--out {folder}: holds an ensemble of {len(before.members)} runs; take another folder, or add --ensemble"
            )
        if before is not None and is_finished(before, config):
            return already_finished(before, folder, log)
        log_examples(config, splits, task, log)
        if config.key.baseline:
            (finished,) = train_baselines([config], target, cache)
            save_checkpoint(finished, folder)
            write_record(folder, finished.record)
            return finished.record
        identity = None if before is None else before.identity
        fleet = build_fleet(
            [config], width=1, device=target, cache=cache, folder=folder, on_step=on_step, identity=identity
        )
        (plan,) = fleet.plans
        if before is not None and before.recipe is not None and before.recipe != plan.record.recipe:
            held, epochs = before.recipe["epochs"], plan.recipe.epochs
            if epochs < held:
                raise CheckpointError(
                    f"--out {folder}: holds a run of {held} epochs; got --epochs {epochs}, expected more"
                )
            kept = "; its checkpoint stays until the new one is written" if before.done else ""
            name, value = next(one for one in asdict(plan.recipe).items() if before.recipe[one[0]] != one[1])
            log(
                f"{option_of(name)} {value} instead of {before.recipe[name]}: trains again from the first step{AGAIN.get(name, '')}{kept}"
            )
            clear_state(folder)
        log(recipe_line(plan.recipe))
        write_record(folder, plan.record)
        if (state := last_state(folder)) is not None:
            step = state.records[0].steps
            epoch = min(plan.epochs_at(step) + 1, plan.recipe.epochs)
            log(f"resumed after step {step} of {plan.steps}, in epoch {epoch} of {plan.recipe.epochs}")
        (finished,) = fleet.train()
        if finished.record.done:
            save_checkpoint(finished, folder)
        write_record(folder, finished.record)
        clear_state(folder)
        if finished.record.failed:
            raise UserError(finished.record.failed)
        return finished.record


def earlier(folder: Path, config: RunConfig, splits: data.Splits, task: Task) -> RunRecord | None:
    """What a folder holds of the same run. Raises UserError where it failed, CheckpointError where it is another run."""
    before = read_record(folder, config)
    if before is not None and before.failed:
        clear_state(folder)
        raise UserError(f"{folder}: {before.status}; take another --out")
    if before is not None and (before.rows, before.labels) != (splits.fingerprints, list(task.labels)):
        raise CheckpointError(
            f"--out {folder}: its run was started on other examples of {config.task!r}; take another folder, or remove it"
        )
    return before


def is_finished(before: RunRecord, config: RunConfig) -> bool:
    """Whether a folder's run has ended, and no other number of epochs is asked for."""
    return before.done and before.config["recipe"].get("epochs") == config.recipe.get("epochs")


def already_finished(record: RunRecord, folder: Path, log: Callable[[str], None]) -> RunRecord:
    """The record of a run for which nothing is left to do."""
    clear_state(folder)  # a kill may have come before its removal
    log(f"{folder}: already finished, nothing trained")
    return record


def recipe_line(recipe: Recipe) -> str:
    """A recipe in one line, for a log."""
    return "recipe: " + ", ".join(f"{name}={value}" for name, value in asdict(recipe).items() if value is not None)


def log_examples(config: RunConfig, splits: data.Splits, task: Task, log: Callable[[str], None]) -> None:
    """Say what is trained on."""
    for note in (describe_columns(config, task), *splits.notes, *export_note(config, task)):
        log(note)
    log("examples: " + ", ".join(f"{len(rows):,} {part}" for part, rows in splits.parts.items()))


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
    assert model is not None
    if not record.whole:
        base = record.config["model"]
        known = (record.identity or {}).get("tokenizer")
        save(
            model, folder, state=finished.state, base=base, task=task, results=record.results, recipe=record.recipe, tokenizer=known
        )  # fmt: skip
        return
    name_classes(model, task["labels"] or ["value"])
    try:
        with quiet():
            model.save_pretrained(folder, state_dict=finished.state)
            load_tokenizer(record.config["model"]).save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{folder}: cannot write the model ({reason}); its training is kept, run the same command again to continue"
        ) from None
