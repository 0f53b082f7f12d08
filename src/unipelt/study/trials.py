"""What a trial of a few steps tells: how many epochs a time budget allows, and how many runs a GPU trains at once."""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import median

import torch

from unipelt.errors import UserError, out_of_memory
from unipelt.study.plan import StudyConfig
from unipelt.train.fleet import Fleet
from unipelt.train.records import RunConfig, RunKey
from unipelt.train.runs import Plan
from unipelt.train.setup import DatasetCache, build_fleet

TIMED_STEPS, TIMED_EXAMPLES = 3, 64  # measured per method, after one warm-up step
FILL = 0.85  # largest fraction of the budget that the estimates may fill
MIN_EPOCHS_FOR_TWO_SEEDS = 3  # with fewer epochs, one seed is planned
SHARE = 0.8  # of the free memory: evaluations, captured steps and what an allocator cannot fill take the rest


@dataclass(frozen=True)
class MethodTiming:
    """Measured times of the runs of one method."""

    method: str
    step: float
    """seconds per training step of all runs"""
    example: float
    """seconds in which all runs predict one example"""
    steps: int
    """steps per epoch"""
    epochs: int
    """largest number of epochs, from the recipe"""
    every: int
    """epochs between evaluations"""
    validation: int
    """number of validation examples"""
    test: int
    """number of test examples"""

    def seconds(self, epochs: int) -> float:
        """Seconds of training for so many epochs, of the evaluations, and of the test."""
        evaluations = -(-epochs // self.every) * self.validation + self.test
        return epochs * self.steps * self.step + evaluations * self.example


def time_method(keys: Sequence[RunKey], study: StudyConfig, cache: DatasetCache, device: torch.device) -> MethodTiming:
    """Time a few steps and predictions of the runs of one method, at most as many at once as the memory holds."""
    runs_at_once = 1 if keys[0].full else min(len(keys), study.most_at_once(device.type))
    while True:
        try:
            return _timed(keys, runs_at_once, study, cache, device)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error) or runs_at_once == 1:
                raise
            runs_at_once //= 2


def _timed(
    keys: Sequence[RunKey], runs_at_once: int, study: StudyConfig, cache: DatasetCache, device: torch.device
) -> MethodTiming:
    fleet = build_fleet(
        [study.config(key) for key in keys[:runs_at_once]], runs_at_once=runs_at_once, device=device, cache=cache
    )
    plan = fleet.plans[0]
    steps = [_seconds(lambda: _step(fleet)) for _ in range(1 + TIMED_STEPS)]
    stride = -(-len(plan.validation) // TIMED_EXAMPLES)
    sample = replace(plan.validation.take(range(0, len(plan.validation), stride)), targets=None)
    predicted = _seconds(lambda: fleet.predict([sample] * runs_at_once))
    times, recipe = len(keys) / runs_at_once, plan.recipe
    assert plan.test is not None
    return MethodTiming(
        method=keys[0].method, step=times * median(steps[1:]), example=times * predicted / len(sample),
        steps=plan.ends[0], epochs=recipe.epochs, every=recipe.evaluate_every, validation=len(plan.validation),
        test=len(plan.test),
    )  # fmt: skip


def epochs_within(timings: Sequence[MethodTiming], seconds: float) -> int:
    """The largest number of epochs, up to the recipe's, that fits into the time; 0 if not one fits."""
    fits = (
        epochs
        for epochs in range(timings[0].epochs, 0, -1)
        if sum(timing.seconds(epochs) for timing in timings) <= FILL * seconds
    )
    return next(fits, 0)


def fit_epochs(
    plan: Sequence[RunKey],
    study: StudyConfig,
    cache: DatasetCache,
    device: torch.device,
    minutes: float,
    deadline: float,
) -> tuple[int | None, str]:
    """Return (epochs, note) so that two seeds of every method end before the deadline (a value of time.monotonic()).

    Only the first seed counts if the plan has one seed, or if few epochs would be left. Returns (None, "") if the recipe's
    epochs fit. Raises UserError if not one epoch of any method fits.
    """
    timings: list[MethodTiming] = []
    keys = [key for key in plan if key.seed // max(1, study.folds) == 0]  # one seed, or every fold once
    for method in dict.fromkeys(key.method for key in keys):
        with suppress(UserError):  # errors are recorded per run later
            timings.append(time_method([key for key in keys if key.method == method], study, cache, device))
        if time.monotonic() > deadline:
            break
    if not timings:
        return None, ""
    fastest, seconds_left = min(timings, key=lambda timing: timing.seconds(1)), deadline - time.monotonic()
    if fastest.seconds(1) > seconds_left:
        raise UserError(
            f"--minutes {minutes:g}: one epoch of {fastest.method}, with {fastest.validation} validation and {fastest.test} test"
            f" examples, takes about {minutes_of(fastest.seconds(1))} minutes here; try more minutes, fewer --num-rates or"
            " --validation-rows, or a smaller --model"
        )
    epochs, recipe_epochs = epochs_within(timings, seconds_left / 2), timings[0].epochs
    unit = "every fold" if study.folds else "one seed"
    reason = "so that two seeds of every method fit"
    if epochs < MIN_EPOCHS_FOR_TWO_SEEDS or len(keys) == len(plan):
        epochs, reason = epochs_within(timings, seconds_left), f"so that {unit} of every method fits"
    if epochs == recipe_epochs:
        return None, ""
    if not epochs:
        reason = f"which is still too long for {unit} of every method"
    return epochs or 1, f"--minutes {minutes:g}: --epochs {epochs or 1} instead of {recipe_epochs}, {reason}"


def minutes_of(seconds: float) -> str:
    """Minutes in two digits."""
    return f"{seconds / 60:.2g}" if seconds < 600 else f"{seconds / 60:.0f}"


def _step(fleet: Fleet) -> None:
    """Take a step; a plan with fewer steps than are timed starts again."""
    for plan, record in zip(fleet.plans, fleet.records):
        record.steps %= plan.steps
    fleet.step()


def _seconds(action: Callable[[], object]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def runs_that_fit(free: int, one_run: int, two_runs: int, limit: int) -> int:
    """The largest power of two of runs, 1 to `limit`, for which fixed + runs · per_run ≤ SHARE · free.

    free: bytes. one_run, two_runs: peak bytes of a step of one and of two runs, so that per_run = two_runs − one_run.
    """
    per_run = max(1, two_runs - one_run)
    runs = int(SHARE * free - (one_run - per_run)) // per_run
    return 1 << (max(1, min(runs, limit)).bit_length() - 1)


def measure_runs_at_once(
    configs: Sequence[RunConfig], cache: DatasetCache, device: torch.device, limit: int, share: float = 1.0
) -> int:
    """How many of these runs a GPU trains at once, by a step at their longest examples; 1 where two do not fit.

    share: of the GPU that is this fleet's; others fill the rest at the same time.
    """
    try:
        free, total = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = min(free, int(share * total))
        one_run, two_runs = (_peak(configs, cache, device, runs) for runs in (1, 2))
        return runs_that_fit(free, one_run, two_runs, limit)
    except torch.OutOfMemoryError:
        return 1
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def _peak(configs: Sequence[RunConfig], cache: DatasetCache, device: torch.device, runs: int) -> int:
    """Peak bytes of a training step, weights included."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    trial(configs, cache, device, runs)
    return torch.cuda.max_memory_allocated(device) - before


def trial(configs: Sequence[RunConfig], cache: DatasetCache, device: torch.device, runs: int) -> tuple[int, int]:
    """Take one step of so many runs at the longest examples of all: (examples, tokens) of each run."""
    fleet = build_fleet(configs, runs_at_once=runs, device=device, cache=cache)
    largest = max(map(_longest, fleet.plans), key=lambda plan: len(plan.train) * plan.train.lengths()[0])
    fleet.plans = [largest] * len(fleet.plans)
    fleet.step()
    return len(largest.train), largest.train.lengths()[0]


def _longest(plan: Plan) -> Plan:
    """The plan with one batch that repeats its longest example."""
    encoded = plan.train
    index = max(range(len(encoded)), key=encoded.lengths().__getitem__)
    fitting = plan.recipe.batch_tokens // encoded.lengths()[index] or 1
    size = min(fitting if plan.recipe.batch_tokens else plan.recipe.batch_size, len(encoded))
    return replace(plan, train=encoded.take([index] * size))
