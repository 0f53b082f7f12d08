"""A study as the report sees it: read once, the chosen runs, what can be compared. Every table and figure is a function of it."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from unipelt.errors import UserError
from unipelt.report.cells import Grid, comparable, gather, methods, sizes, tasks
from unipelt.report.names import method_order, size_order, task_order
from unipelt.report.significance import Compared, Sample, against_best, sample
from unipelt.report.sweeps import Sweep, find_sweeps
from unipelt.study.choose import choose
from unipelt.study.store import COMPARISON, DONE, KEYS, PLANNED, Store

LIGHT = (
    "id",
    *KEYS,
    "status",
    "metric",
    "validation",
    "test",
    "complete",
    "steps",
    "seconds",
    "width",
    "parameters",
    "device",
    "versions",
)
DEEP = ("id", "gates", "curve")


@dataclass
class Study:
    """What the store holds, by the rates that the validation rows chose."""

    facts: dict[str, Any]
    runs: list[dict[str, Any]]
    """every planned run"""
    chosen: list[dict[str, Any]]
    """the finished runs of the chosen rates, with their gates and curves"""
    sweeps: list[Sweep]
    listed: list[dict[str, Any]]
    """those that stand in tables: all but the points of sweeps"""
    test: Grid
    validation: Grid
    samples: dict[tuple[int | str, str], Sample]
    compared: dict[int | str, Compared] = field(init=False)
    """by size, over what is comparable there; sizes of a single method left out"""

    def __post_init__(self) -> None:
        self.compared = {}
        for k in self.sizes:
            over, which = comparable(self.test, k)
            if over and len(which) > 1:
                self.compared[k] = against_best([self.samples[k, task] for task in over], which)

    @property
    def sizes(self) -> list[int | str]:
        return sizes(self.test)

    def tasks(self, k: int | str) -> list[str]:
        return tasks(self.test, k)

    def methods(self, k: int | str) -> list[str]:
        return methods(self.test, k)

    def samples_of(self, k: int | str) -> list[Sample]:
        return [self.samples[k, task] for task in self.tasks(k)]

    @property
    def model(self) -> str:
        return str(self.facts.get("model", "a base that the study does not name"))

    @property
    def own_rows(self) -> bool:
        """Whether it is a comparison on one file, of which the paper's questions are not asked."""
        return COMPARISON in self.facts

    @property
    def done(self) -> int:
        return sum(row["status"] in DONE for row in self.runs)

    @property
    def open(self) -> int:
        return sum(row["status"] == PLANNED for row in self.runs)

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [row for row in self.runs if row["status"] not in DONE and row["status"] != PLANNED]

    @property
    def incomplete(self) -> set[str]:
        """Tasks whose training set is a subset of the published one."""
        return {row["task"] for row in self.runs if row["complete"] is False}

    def seeds(self, k: int | str, task: str) -> int:
        """The most seeds that any method is planned with."""
        planned = {(row["method"], row["seed"]) for row in self.runs if (row["k"], row["task"]) == (k, task)}
        return max(Counter(method for method, _ in planned).values(), default=0)


def read(store: Store) -> Study:
    """Read a store, also one that is still being written. Raises UserError where no run is finished."""
    runs = sorted(store.runs(LIGHT), key=_order)
    chosen = choose(runs)
    if not any(row["test"] is not None for row in chosen):
        failed = sum(row["status"] not in (*DONE, PLANNED) for row in runs)
        raise UserError(
            f"{store.path}: none of its {len(runs)} runs is finished ({failed} failed); expected one at least, so let `unipelt study` go on"
        )
    deep = {row["id"]: row for row in store.runs(DEEP, [row["id"] for row in chosen])}
    for row in chosen:
        row |= deep[row["id"]]
    sweeps = find_sweeps(chosen)
    grid = gather(chosen)
    listed = [row for row in chosen if row["method"] not in _swept(sweeps, grid, row)]
    test = gather(listed)
    return Study(
        store.facts, runs, chosen, sweeps, listed, test, gather(listed, "validation"), _samples(store, listed, test)
    )


def _order(row: dict[str, Any]) -> tuple:
    return task_order(row["task"]), size_order(row["k"]), method_order(row["method"]), row["seed"], row["lr"]


def _swept(sweeps: Sequence[Sweep], grid: Grid, row: dict[str, Any]) -> set[str]:
    """Points of a sweep that stand in its figure alone: those with options, where other methods are there too."""
    here = set(methods(grid, row["k"]))
    points = {method for sweep in sweeps for method in sweep.methods if "(" in method}
    return points if here - points else set()


def _samples(store: Store, listed: list[dict[str, Any]], test: Grid) -> dict[tuple[int | str, str], Sample]:
    ids: dict[tuple[int | str, str], list[str]] = defaultdict(list)
    metric = {}
    for row in listed:
        if row["test"] is not None:
            ids[row["k"], row["task"]].append(row["id"])
            metric[row["task"]] = row["metric"]
    found = {}
    for (k, task), here in ids.items():
        values = {method: cell for (size, name, method), cell in test.items() if (size, name) == (k, task)}
        rows = store.runs(("method", "seed", "predictions", "targets"), here)
        found[k, task] = sample(f"{k}/{task}", metric[task], values, rows)
    return found
