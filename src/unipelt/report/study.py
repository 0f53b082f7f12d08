"""A study, read once: its runs, their metrics by size, task and method, and which methods can be compared."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from unipelt.errors import UserError
from unipelt.report.comparison import Comparison, compare
from unipelt.report.names import method_order, seeds_text, size_order, task_order
from unipelt.report.runs import Run, answers, options_of, read_runs
from unipelt.report.samples import Sample, Seeds, sample
from unipelt.report.sweeps import Sweep, find_sweeps
from unipelt.study.store import Store
from unipelt.tasks.metrics import METRICS

Grid = dict[tuple[int | str, str, str], Seeds]
"""(k, task, method) → seed → metric, as tables show it"""
LEAST_METHODS, LEAST_TASKS, LEAST_SEEDS = 4, 4, 2
"""with fewer, a rank or a share of tasks means nothing"""


def scale(metric: str) -> float:
    """What a metric is multiplied with in tables."""
    return METRICS[metric].shown_as if metric in METRICS else 1.0


def higher_is_better(metric: str) -> bool:
    return metric not in METRICS or METRICS[metric].higher_is_better


def gather(runs: Iterable[Run], kind: str = "test") -> Grid:
    """The test or validation metrics that are there, ×100 where tables show them so, in the report's order."""
    grid: dict[tuple, Seeds] = defaultdict(dict)
    for run in runs:
        value = run.test if kind == "test" else run.validation
        if value is not None:
            grid[run.k, run.task, run.method][run.seed] = scale(run.metric) * value
    order = sorted(grid, key=lambda key: (size_order(key[0]), task_order(key[1]), method_order(key[2])))
    return {key: dict(sorted(grid[key].items())) for key in order}


def mean(seeds: Seeds) -> float:
    return fmean(seeds.values())


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample; None for a single value."""
    return stdev(values) if len(values) > 1 else None


def average(grid: Grid, k: int | str, method: str, over: Sequence[str]) -> tuple[float, float | None] | None:
    """Mean over tasks, and its standard deviation over the seeds that every task has; None where a task is missing."""
    cells = [grid.get((k, task, method)) for task in over]
    found = [cell for cell in cells if cell]
    if not found or len(found) < len(cells):
        return None
    shared = set.intersection(*(set(cell) for cell in found))
    return fmean(map(mean, found)), spread([fmean(cell[seed] for cell in found) for seed in sorted(shared)])


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
        self.metrics = {run.task: run.metric for run in self.listed}

    @cached_property
    def compared(self) -> dict[int | str, Comparison]:
        """By size, over comparable methods and tasks; a size with a single method has only that one."""
        found = {k: self.comparable(k) for k in self.sizes}
        return {
            k: compare([self.samples[k, t] for t in over], which)
            for k, (over, which) in found.items()
            if over and which
        }

    @property
    def sizes(self) -> list[int | str]:
        return list(dict.fromkeys(k for k, _, _ in self.test))

    def tasks(self, k: int | str) -> list[str]:
        return sorted({task for size, task, _ in self.test if size == k}, key=task_order)

    def methods(self, k: int | str) -> list[str]:
        return sorted({method for size, _, method in self.test if size == k}, key=method_order)

    def samples_of(self, k: int | str) -> list[Sample]:
        return [self.samples[k, task] for task in self.tasks(k)]

    def averaged(self, k: int | str) -> list[str]:
        """The tasks of a size whose metrics have one direction and unit, so that their mean has a meaning."""
        units = {task: (higher_is_better(self.metrics[task]), scale(self.metrics[task])) for task in self.tasks(k)}
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

    def ranks_mean_something(self, k: int | str) -> bool:
        """Whether there are enough methods, tasks and seeds to count how often a method is among the best."""
        cells = [cell for (size, _, _), cell in self.test.items() if size == k]
        enough = len(self.methods(k)) >= LEAST_METHODS and len(self.tasks(k)) >= LEAST_TASKS
        return enough and min(map(len, cells)) >= LEAST_SEEDS

    def seeds(self, k: int | str) -> str:
        """`3 seeds`, or `1 to 3 seeds`."""
        numbers = sorted({len(cell) for (size, _, _), cell in self.test.items() if size == k})
        return seeds_text(*numbers)

    def planned(self, k: int | str, task: str) -> int:
        """The most seeds that any method is planned with."""
        pairs = {(run.method, run.seed) for run in self.runs if (run.k, run.task) == (k, task)}
        return max(Counter(method for method, _ in pairs).values(), default=0)

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
        return {run.task for run in self.runs if not run.complete}

    @property
    def failed(self) -> list[Run]:
        return [run for run in self.runs if run.failed]

    @property
    def open(self) -> int:
        return sum(run.planned for run in self.runs)

    @property
    def progress(self) -> str:
        """How far it is."""
        said = f"{sum(run.done for run in self.runs):,} of {len(self.runs):,} runs finished"
        if self.failed:
            said += f", {len(self.failed):,} failed"
        return said + (f", {self.open:,} still to come" if self.open else "")


def read(store: Store) -> Study:
    """Read a store, also one that is still being written. Raises UserError where no run is finished."""
    options, own_file = options_of(store)
    runs, chosen = read_runs(store)
    size = options.pop("k", None) if own_file else None
    fewer = [run for run in chosen if size not in (None, run.k)]
    chosen = [run for run in chosen if size in (None, run.k)]
    if not any(run.test is not None for run in chosen):
        failed = sum(run.failed for run in runs)
        raise UserError(
            f"{store.path}: none of its {len(runs)} runs is finished ({failed} failed); expected at least one; "
            "let `unipelt study` or `unipelt compare` continue"
        )
    sweeps = find_sweeps(run.method for run in chosen)
    points = {method for sweep in sweeps for method in sweep.methods if "(" in method}
    others = {run.k for run in chosen if run.method not in points}
    listed = [run for run in chosen if run.method not in points or run.k not in others]
    grid, samples = gather(listed), {}
    for k, task in dict.fromkeys((k, task) for k, task, _ in grid):
        here = [run for run in listed if (run.k, run.task) == (k, task) and run.test is not None]
        values: dict[str, Seeds] = {method: {} for size, name, method in grid if (size, name) == (k, task)}
        for run in sorted(here, key=lambda run: run.seed):
            values[run.method][run.seed] = run.test  # type: ignore[assignment]
        samples[k, task] = sample(f"{k}/{task}", here[0].metric, values, answers(store, here))
    return Study(options, own_file, runs, chosen, sweeps, listed, samples, fewer)
