"""How many epochs a time budget holds: a trial of each method tells what its steps and its rows take on this machine."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from unipelt.checkpoint.bases import load_both
from unipelt.errors import UserError
from unipelt.inject.state import attached_state
from unipelt.study.engine import planned_width
from unipelt.study.plan import Setting
from unipelt.study.store import Cell
from unipelt.train.fleet import Fleet
from unipelt.train.records import FULL
from unipelt.train.runner import DatasetCache, plan_of, prepare_run
from unipelt.train.setup import prepare

STEPS, ROWS = 3, 64  # of a trial, after a step that is not counted
FILL = 0.85  # of the time, at most, by these estimates
PASSES = 3  # epochs that a run keeps where the time is to hold two seeds: one tells nothing of what another would give


@dataclass(frozen=True)
class Work:
    """The runs of one method: what they take."""

    method: str
    step: float
    """seconds of a step of all of them"""
    row: float
    """seconds of a row that all of them predict"""
    steps: int
    """in an epoch"""
    epochs: int
    """of the recipe, at most"""
    every: int
    """epochs between evaluations"""
    validation: int
    test: int

    def seconds(self, epochs: int) -> float:
        """Training for so many epochs, its evaluations, and the test."""
        return epochs * self.steps * self.step + (-(-epochs // self.every) * self.validation + self.test) * self.row


def work_of(cells: Sequence[Cell], setting: Setting, corpus: DatasetCache, device: torch.device) -> Work:
    """By a few steps and predictions of one method's runs; those that do not fit side by side come one after another."""
    full = cells[0].method.strip() == FULL
    width = 1 if full else min(len(cells), planned_width(setting, device))
    requests = [setting.request(cell) for cell in cells[:width]]
    first, splits = requests[0], corpus.splits(requests[0])
    model, tokenizer = load_both(first.model, classes=len(splits.task.labels) or 1)
    prepare(model, [first.method], first, seeds=[[request.seed for request in requests]])
    part = model if full else attached_state(model).parts[0]
    plans = [plan_of(prepare_run(request, splits, corpus, model, tokenizer), 0, part) for request in requests]
    fleet = Fleet(model.to(device), plans, tokenizer)
    steps = [_seconds(fleet.step) for _ in range(1 + STEPS)]
    validation = plans[0].validation
    some = replace(
        validation,
        features={name: part[:: -(-len(validation) // ROWS)] for name, part in validation.features.items()},
        labels=None,
    )
    predicted = _seconds(lambda: fleet.predict([some] * width))
    times, recipe = len(cells) / width, plans[0].recipe
    return Work(
        method=first.method, step=times * median(steps[1:]), row=times * predicted / len(some), steps=plans[0].steps_per_epoch,
        epochs=recipe.epochs, every=recipe.evaluate_every, validation=len(validation), test=len(splits.test),
    )  # fmt: skip


def epochs_within(works: Sequence[Work], seconds: float) -> int:
    """The most epochs, up to the recipe's, of which all these works together fit; 0 where not one does."""
    fits = (
        epochs
        for epochs in range(works[0].epochs, 0, -1)
        if sum(one.seconds(epochs) for one in works) <= FILL * seconds
    )
    return next(fits, 0)


def fit_epochs(
    plan: Sequence[Cell], setting: Setting, corpus: DatasetCache, device: torch.device, minutes: float, until: float
) -> tuple[int | None, str]:
    """(epochs, what there is to say) so that two seeds of every method end before the moment `until` (time.monotonic), or its
    first runs where the plan has one seed, or so few epochs were left; no epochs where the recipe's own fit.

    Raises UserError where not one epoch of one method does.
    """
    works: list[Work] = []
    cells = [cell for cell in plan if cell.seed == plan[0].seed]
    for method in dict.fromkeys(cell.method for cell in cells):
        with suppress(UserError):  # a base that cannot take it: said when it is trained
            works.append(work_of([cell for cell in cells if cell.method == method], setting, corpus, device))
        if time.monotonic() > until:
            break
    if not works:
        return None, ""
    least, left = min(works, key=lambda one: one.seconds(1)), until - time.monotonic()
    if least.seconds(1) > left:
        raise UserError(
            f"--minutes {minutes:g}: one epoch of {least.method}, with {least.validation} validation and {least.test} test rows, takes about "
            f"{minutes_of(least.seconds(1))} minutes here; expected more, or fewer --rates or --validation-rows, or a smaller --model"
        )
    epochs, most = epochs_within(works, left / 2), works[0].epochs
    fits = "so that two seeds of every method fit"
    if epochs < PASSES or len(cells) == len(plan):
        epochs, fits = epochs_within(works, left), "so that every method's first runs fit"
    if epochs == most:
        return None, ""
    if not epochs:
        fits = "and too short for the first runs of all methods even so"
    return epochs or 1, f"--minutes {minutes:g}: --epochs {epochs or 1} instead of {most}, {fits}"


def minutes_of(seconds: float) -> str:
    """In two digits."""
    return f"{seconds / 60:.2g}" if seconds < 600 else f"{seconds / 60:.0f}"


def _seconds(do: Callable[[], Any]) -> float:
    began = time.monotonic()
    do()
    return time.monotonic() - began
