"""A study, read once: its runs, their metrics by size, task and method, and which methods can be compared."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

from unipelt.errors import UserError
from unipelt.report.comparison import Comparison, compare
from unipelt.report.names import method_order, seeds_text, size_order, task_order
from unipelt.report.runs import Run, answers, read_runs
from unipelt.report.samples import Sample, Seeds, metric_of, sample
from unipelt.report.sweeps import Sweep, find_sweeps
from unipelt.report.tables import Cell
from unipelt.study.store import COMPARISON, Store

Grid = dict[tuple[int | str, str, str], Seeds]
"""(k, task, method) → seed → metric, as tables show it"""


def gather(runs: Iterable[Run], kind: str = "test") -> Grid:
    """The test or validation metrics that are there, ×100 where tables show them so, in the report's order."""
    grid: Grid = defaultdict(dict)
    for run in runs:
        value = run.record.test if kind == "test" else run.record.validation
        if value is not None:
            grid[run.k, run.task, run.method][run.seed] = metric_of(run.record.metric).shown_as * value
    order = sorted(grid, key=lambda key: (size_order(key[0]), task_order(key[1]), method_order(key[2])))
    return {key: dict(sorted(grid[key].items())) for key in order}


def average(grid: Grid, k: int | str, method: str, over: Sequence[str]) -> Cell:
    """Mean over tasks, and its standard deviation over the seeds that every task has; empty where a task is missing."""
    cells = [grid.get((k, task, method), {}) for task in over]
    if not cells or not all(cells):
        return Cell()
    shared = set.intersection(*(set(cell) for cell in cells))
    each = [fmean(cell[seed] for cell in cells) for seed in sorted(shared)]
    return Cell(fmean(fmean(cell.values()) for cell in cells), Cell.mean(each).sd if each else None)


@dataclass
class Study:
    """What a store holds, by the learning rates that validation chose."""

    options: dict[str, Any]
    own_file: bool
    """whether it compares methods on one file, so that the paper's questions are not asked"""
    runs: list[Run]
    """every planned run"""
    chosen: list[Run]
    """the finished runs of the chosen learning rates"""
    sweeps: list[Sweep]
    listed: list[Run]
    """the methods in tables: all except the points of sweeps"""
    samples: dict[tuple[int | str, str], Sample]
    fewer: list[Run] = field(default_factory=list)
    """of a comparison on one file: finished runs on fewer training examples, for a learning curve"""

    def __post_init__(self) -> None:
        self.test, self.validation = gather(self.listed), gather(self.listed, "validation")
        self.metrics = {run.task: metric_of(run.record.metric) for run in self.listed}
        self.sizes = list(dict.fromkeys(k for k, _, _ in self.test))

    @cached_property
    def compared(self) -> dict[int | str, Comparison]:
        """By size, over comparable methods and tasks; a size with a single method has only that one."""
        found = {k: self.comparable(k) for k in self.sizes}
        return {
            k: compare([self.samples[k, t] for t in over], which)
            for k, (over, which) in found.items()
            if over and which
        }

    def tasks(self, k: int | str) -> list[str]:
        return sorted({task for size, task, _ in self.test if size == k}, key=task_order)

    def methods(self, k: int | str) -> list[str]:
        return sorted({method for size, _, method in self.test if size == k}, key=method_order)

    def samples_of(self, k: int | str) -> list[Sample]:
        return [self.samples[k, task] for task in self.tasks(k)]

    def averaged(self, k: int | str) -> list[str]:
        """The tasks of a size whose metrics have one direction and unit, so that their mean has a meaning."""
        units = {task: (self.metrics[task].sign, self.metrics[task].shown_as) for task in self.tasks(k)}
        ((most, _),) = Counter(units.values()).most_common(1)
        return [task for task, unit in units.items() if unit == most]

    def comparable(self, k: int | str) -> tuple[list[str], list[str]]:
        """Tasks and methods of which every pair is there: all tasks where two methods have them all, else the tasks that all
        methods have."""
        over, which = self.averaged(k), self.methods(k)
        whole = [method for method in which if all((k, task, method) in self.test for task in over)]
        if len(whole) > 1 or len(which) == 1:
            return over, whole
        return [task for task in over if all((k, task, method) in self.test for method in which)], which

    def seeds(self, k: int | str) -> str:
        """`3 seeds`, or `1 to 3 seeds`."""
        return seeds_text(*(len(cell) for (size, _, _), cell in self.test.items() if size == k))

    @property
    def model(self) -> str:
        return str(self.options.get("model", "a base that the study does not name"))

    @property
    def folds(self) -> int:
        """Of a cross-validation, whose folds are the seeds; 0: every run has the same test examples."""
        return int(self.options.get("folds") or 0)

    @property
    def incomplete(self) -> set[str]:
        """Tasks whose training set is a subset of the published one."""
        return {run.task for run in self.runs if not run.record.complete}

    @property
    def failed(self) -> list[Run]:
        return [run for run in self.runs if run.failed]

    @property
    def open(self) -> int:
        return sum(run.planned for run in self.runs)

    @property
    def progress(self) -> str:
        """How far it is."""
        said = f"{sum(run.record.done for run in self.runs):,} of {len(self.runs):,} runs finished"
        if self.failed:
            said += f", {len(self.failed):,} failed"
        return said + (f", {self.open:,} still to come" if self.open else "")


def read(store: Store) -> Study:
    """Read a store, also one that is still being written. Raises UserError where no run is finished."""
    options, (runs, finished) = store.options, read_runs(store)
    own_file = options.pop(COMPARISON, None) is not None
    size = options.pop("k", None) if own_file else None
    chosen = [run for run in finished if size in (None, run.k)]
    if not any(run.record.test is not None for run in chosen):
        failed = sum(run.failed for run in runs)
        raise UserError(
            f"{store.path}: none of its {len(runs)} runs is finished ({failed} failed); expected at least one; "
            "let `unipelt study` or `unipelt compare` continue"
        )
    sweeps = find_sweeps(run.method for run in chosen)
    points = {method for sweep in sweeps for method in sweep.values if "(" in method}
    others = {run.k for run in chosen if run.method not in points}
    listed = [run for run in chosen if run.method not in points or run.k not in others]
    samples = {}
    for k, task in dict.fromkeys((k, task) for k, task, _ in gather(listed)):
        here = [run for run in listed if (run.k, run.task) == (k, task) and run.record.test is not None]
        values: dict[str, Seeds] = defaultdict(dict)
        for run in sorted(here, key=lambda run: (method_order(run.method), run.seed)):
            values[run.method][run.seed] = run.record.test  # type: ignore[assignment]
        samples[k, task] = sample(f"{k}/{task}", here[0].record.metric, dict(values), answers(store, here))
    fewer = [run for run in finished if size not in (None, run.k)]
    return Study(options, own_file, runs, chosen, sweeps, listed, samples, fewer)
