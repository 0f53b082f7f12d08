"""Several runs on the same examples, whose predictions are averaged: `unipelt train --ensemble N`."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from unipelt import spec
from unipelt.checkpoint.loading import load
from unipelt.errors import CheckpointError, UserError
from unipelt.inject.attach import detach
from unipelt.train.fleet import Fleet, Observer
from unipelt.train.lock import alone_in
from unipelt.train.predictor import Predictor
from unipelt.train.records import FINISHED, RunConfig, RunRecord
from unipelt.train.run_folder import write_record
from unipelt.train.runs import note_test
from unipelt.train.setup import DatasetCache, build_fleet, device_of
from unipelt.train.state import clear_state
from unipelt.train.train_run import already_finished, earlier, is_finished, log_examples, recipe_line, save_checkpoint

MOST = 64
RUNS_AT_ONCE = {"cpu": 4}  # by kind of device: more are no faster on a CPU


def train_ensemble(
    config: RunConfig, folder: Path, count: int, *, device: str = "auto", log: Callable[[str], None] = print,
    on_step: Observer | None = None,
) -> RunRecord:  # fmt: skip
    """Train `count` runs as a fleet, from the seed on, into folders `seed-…` inside of one; or resume them.

    All runs have the examples that the first seed draws, so that no run has seen another's test examples; their initial values,
    the order of their examples and dropout differ. Raises UserError.
    """
    if not 2 <= count <= MOST:
        raise UserError(f"--ensemble {count}: expected 2 to {MOST} runs")
    if config.full:
        raise UserError(
            f"--ensemble {count}: full tunes the base itself, and one base is loaded; expected another --method"
        )
    spec.mixture(config.method)
    with alone_in(folder):
        target, cache = device_of(device), DatasetCache()
        splits, task = cache.splits(config), cache.task(config)
        task.average([torch.zeros(1, task.outputs)])  # a task that has no mean is refused before anything is loaded
        seeds = [config.seed + number for number in range(count)]
        members = [f"seed-{seed}" for seed in seeds]
        before = earlier(folder, config, splits, task)
        if before is not None and before.members != members:
            held = f"an ensemble of {len(before.members)} runs" if before.members else "one run"
            raise CheckpointError(f"--out {folder}: holds {held}; take another folder, or remove it")
        if before is not None and is_finished(before, config):
            return already_finished(before, folder, log)
        log_examples(config, splits, task, log)
        width = min(count, RUNS_AT_ONCE.get(target.type, MOST))
        fleet = build_fleet(
            [replace(config, seed=seed) for seed in seeds], width=width, device=target, cache=cache, folder=folder, on_step=on_step,
            identity=None if before is None else before.identity, examples=splits,
        )  # fmt: skip
        log(recipe_line(fleet.plans[0].recipe))
        started = replace(fleet.plans[0].record, config=asdict(config), members=members)
        write_record(folder, started)
        for run in fleet.train():
            if run.record.failed:
                write_record(folder, replace(started, status=run.record.status))
                clear_state(folder)
                raise UserError(f"seed {run.key.seed}: {run.record.failed}")
            save_checkpoint(run, folder / members[run.plan])
            write_record(folder / members[run.plan], run.record)
            scores = f"validation {run.record.metric} {run.record.validation:.4f}, test {run.record.test:.4f}"
            log(f"seed {run.key.seed}: {run.record.status}, {scores}")
        record = _measured(fleet, [folder / member for member in members], started)
        write_record(folder, record)
        clear_state(folder)
        return record


def _measured(fleet: Fleet, members: list[Path], started: RunRecord) -> RunRecord:
    """Evaluate the ensemble on the validation and test examples, with the saved checkpoints."""
    (first, *_), model = fleet.plans, detach(fleet.model)
    load(model, members, tokenizer=fleet.tokenizer)
    task = first.task.in_target_units()
    predictor = Predictor(model.eval(), fleet.tokenizer, task, first.validation.longest, True, len(members))
    said = predictor.logits(first.validation)
    metrics = task.score(task.decide(said, first.validation), first.validation.targets or [])
    temperature = task.fit_temperature(said, first.validation.targets or [])
    task = task.with_temperature(temperature)
    epoch = max((one.validation_metrics or {})["epoch"] for one in fleet.records)
    record = replace(
        started, status=FINISHED, validation=metrics[task.metric], validation_metrics={"epoch": epoch, **metrics},
        description=task.describe(), temperature=temperature, seconds=fleet.seconds, width=fleet.width, device=str(fleet.device),
        steps=sum(one.steps for one in fleet.records),
    )  # fmt: skip
    if first.test is None or first.test.targets is None:
        return record
    note_test(record, task, predictor.logits(first.test), first.test)
    return record
