"""A study, read once: its runs, their metrics by size, task and method, and which methods can be compared."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, isfinite
from statistics import fmean
from typing import Any

from unipelt.errors import UserError
from unipelt.report.comparison import Comparison, compare
from unipelt.report.names import method_order, seeds_text, size_order, task_order
from unipelt.report.samples import PredictionRow, Sample, Seeds, make_sample, metric_of
from unipelt.study.schema import KEYS, VALUES
from unipelt.study.store import COMPARISON, Store
from unipelt.tasks.metrics import Metric
from unipelt.train.records import PLANNED, RunKey, RunRecord

HEAVY = ("predictions", "targets", "logits", "texts")  # read where they are needed, run by run
COLUMNS = (*KEYS, *(name for name in VALUES if name not in HEAVY))
CSV_COLUMNS = (*KEYS, "metric", "validation", "test", "status", "steps", "seconds")
"""columns of runs.csv"""


@dataclass(frozen=True, kw_only=True)
class Run(RunKey):
    """One planned run and the columns of its record that a report reads; what is missing is as in a run without a result."""

    record: RunRecord

    @property
    def key(self) -> RunKey:
        """It alone, without the record."""
        return RunKey(**{name: getattr(self, name) for name in KEYS})

    @property
    def csv_row(self) -> list[object]:
        """Its row of runs.csv."""
        return [getattr(self if name in KEYS else self.record, name) for name in CSV_COLUMNS]


SizeAndTask = tuple[int | str, str]
"""size (K) and task"""
MetricGrid = dict[SizeAndTask, dict[str, Seeds]]
"""size and task → method → seed → metric, as tables show it"""


def gather(runs: Iterable[Run], split: str) -> MetricGrid:
    """The metrics that are there, ×100 where tables show them so. split: test or validation."""
    grid: MetricGrid = {}
    for run in runs:
        value = getattr(run.record, split)
        if value is not None:
            seeds = grid.setdefault((run.k, run.task), {}).setdefault(run.method, {})
            seeds[run.seed] = metric_of(run.record.metric).display_factor * value
    return grid


@dataclass
class Study:
    """What a store holds, by the learning rates that validation chose."""

    options: dict[str, Any]
    is_comparison: bool
    """whether it compares methods on one file, so that the paper's questions are not asked"""
    runs: list[Run]
    """every planned run"""
    chosen: list[Run]
    """the finished runs of the chosen learning rates"""
    samples: dict[SizeAndTask, Sample]
    smaller: list[Run] = field(default_factory=list)
    """of a comparison on one file: finished runs on fewer training examples, for a learning curve"""
    test: MetricGrid = field(init=False)
    """of the chosen runs"""
    validation: MetricGrid = field(init=False)
    metrics: dict[str, Metric] = field(init=False)
    """by task"""
    sizes: list[int | str] = field(init=False)
    """that have a test metric, in order"""

    def __post_init__(self) -> None:
        self.test, self.validation = gather(self.chosen, "test"), gather(self.chosen, "validation")
        self.metrics = {run.task: metric_of(run.record.metric) for run in self.chosen}
        self.sizes = list(dict.fromkeys(k for k, _ in self.test))

    @cached_property
    def compared(self) -> dict[int | str, Comparison]:
        """By size, over comparable methods and tasks; a size with a single method has only that one."""
        comparable = {k: self.comparable(k) for k in self.sizes}
        return {
            k: compare([self.samples[k, t] for t in tasks], methods)
            for k, (tasks, methods) in comparable.items()
            if tasks and methods
        }

    def tasks(self, k: int | str) -> list[str]:
        return [task for size, task in self.test if size == k]

    def methods(self, k: int | str) -> list[str]:
        return sorted({method for task in self.tasks(k) for method in self.test[k, task]}, key=method_order)

    @property
    def all_tasks(self) -> list[str]:
        return sorted({task for _, task in self.test}, key=task_order)

    def samples_of(self, k: int | str) -> list[Sample]:
        return [self.samples[k, task] for task in self.tasks(k)]

    def averaged(self, k: int | str) -> list[str]:
        """The tasks of a size whose metrics have one direction and unit, so that their mean has a meaning."""
        units = {task: (self.metrics[task].sign, self.metrics[task].display_factor) for task in self.tasks(k)}
        ((most, _),) = Counter(units.values()).most_common(1)
        return [task for task, unit in units.items() if unit == most]

    def comparable(self, k: int | str) -> tuple[list[str], list[str]]:
        """Tasks and methods of which every pair is there: all tasks where two methods have them all, else the tasks that all
        methods have."""
        tasks, methods = self.averaged(k), self.methods(k)
        complete = [method for method in methods if all(method in self.test[k, task] for task in tasks)]
        if len(complete) > 1 or len(methods) == 1:
            return tasks, complete
        return [task for task in tasks if len(self.test[k, task]) == len(methods)], methods

    def seeds(self, k: int | str) -> str:
        """`3 seeds`, or `1 to 3 seeds`."""
        return seeds_text(*(len(seeds) for task in self.tasks(k) for seeds in self.test[k, task].values()))

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
    def one_rate(self) -> bool:
        """Whether no method was tried at a second learning rate."""
        rates = {(run.task, run.k, run.method, run.lr) for run in self.runs}
        return len(rates) == len({rate[:-1] for rate in rates})

    @property
    def failed(self) -> list[Run]:
        return [run for run in self.runs if run.record.failed]

    @property
    def num_planned(self) -> int:
        return sum(run.record.status == PLANNED for run in self.runs)

    @property
    def progress(self) -> str:
        """How far it is."""
        text = f"{sum(run.record.done for run in self.runs):,} of {len(self.runs):,} runs finished"
        if self.failed:
            text += f", {len(self.failed):,} failed"
        return text + (f", {self.num_planned:,} still to come" if self.num_planned else "")


def read(store: Store) -> Study:
    """Read a store, also one that is still being written. Raises UserError where no run is finished."""
    options, runs = store.options, [*map(_run, sorted(store.runs(COLUMNS), key=_order))]
    finished = choose_rates(runs)
    is_comparison = options.pop(COMPARISON, None) is not None
    size = options.pop("k", None) if is_comparison else None
    chosen = [run for run in finished if size in (None, run.k)]
    tested: dict[SizeAndTask, list[Run]] = defaultdict(list)
    for run in chosen:
        if run.record.test is not None:
            tested[run.k, run.task].append(run)
    if not tested:
        failed = sum(bool(run.record.failed) for run in runs)
        raise UserError(
            f"{store.path}: none of its {len(runs)} runs is finished ({failed} failed); expected at least one; "
            "let `unipelt study` or `unipelt compare` continue"
        )
    samples = {}
    for (k, task), task_runs in tested.items():
        values: dict[str, Seeds] = defaultdict(dict)
        for run in task_runs:
            values[run.method][run.seed] = run.record.test  # type: ignore[assignment]
        rows = prediction_rows(store, task_runs)
        samples[k, task] = make_sample(task, task_runs[0].record.metric, dict(values), rows)
    smaller = [run for run in finished if size not in (None, run.k)]
    return Study(options, is_comparison, runs, chosen, samples, smaller)


def choose_rates(runs: Iterable[Run]) -> list[Run]:
    """The finished runs of each task, size and method at one learning rate; test results do not count.

    It is the rate with the most finished seeds, then with the best mean validation metric, then the lowest.
    """
    rates: dict[tuple, dict[float | None, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.record.done:
            rates[run.task, run.k, run.method][run.lr].append(run)
    return [run for by_rate in rates.values() for run in max(by_rate.values(), key=_rank)]


def _rank(runs: Sequence[Run]) -> tuple:
    # sorted: a sum depends on its order
    known = sorted(run.record.validation for run in runs if run.record.validation is not None)
    mean = metric_of(runs[0].record.metric).sign * fmean(known) if len(known) == len(runs) else -inf
    return len(runs), mean, -(runs[0].lr or 0.0)


def _order(row: dict[str, Any]) -> tuple:
    return size_order(row["k"]), task_order(row["task"]), method_order(row["method"]), row["seed"], row["lr"] or 0.0


def _run(row: dict[str, Any]) -> Run:
    record = RunRecord(**{name: row[name] for name in VALUES if row.get(name) is not None})
    record.validation, record.test = _finite(record.validation), _finite(record.test)
    return Run(**{name: row[name] for name in KEYS}, record=record)


def _finite(value: float | None) -> float | None:
    """None for what a run that diverged has, such as an infinite error."""
    return value if value is not None and isfinite(value) else None


def prediction_rows(store: Store, runs: Sequence[Run]) -> Iterator[PredictionRow]:
    """Method, seed, predictions and targets of each run."""
    for row in store.runs(("method", "seed", "predictions", "targets"), [run.id for run in runs]):
        yield row["method"], row["seed"], row["predictions"], row["targets"]
