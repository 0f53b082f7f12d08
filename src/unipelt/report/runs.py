"""The runs of a study's store, with every column that a report reads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from unipelt.report.names import method_order, size_order, task_order
from unipelt.report.samples import Row
from unipelt.study.choose import choose
from unipelt.study.schema import KEYS, VALUES
from unipelt.study.store import PLANNED, Store
from unipelt.train.records import RunKey, RunRecord

HEAVY = ("predictions", "targets", "logits", "texts")  # read where they are needed, run by run
CHOSEN = ("gates", "curve", "rows", "truncated", "labels", "recipe", "test_metrics")  # read of chosen runs alone
LIGHT = (*KEYS, *(name for name in VALUES if name not in (*HEAVY, *CHOSEN)))
LISTED = (*KEYS, "metric", "validation", "test", "status", "steps", "seconds")
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
    def planned(self) -> bool:
        return self.record.status == PLANNED

    @property
    def failed(self) -> bool:
        return not self.record.done and not self.planned

    @property
    def listed(self) -> list[object]:
        """Its row of runs.csv."""
        return [getattr(self if name in KEYS else self.record, name) for name in LISTED]


def read_runs(store: Store) -> tuple[list[Run], list[Run]]:
    """Every planned run, and the finished ones of the learning rates that validation chose, with the columns CHOSEN."""
    rows = {row["id"]: row for row in sorted(store.runs(("id", *LIGHT)), key=_order)}
    chosen = {row["id"]: row for row in choose(rows.values())}
    deep = store.runs(("id", *CHOSEN), chosen)
    return [*map(_run, rows.values())], [_run(chosen[row["id"]] | row) for row in deep]


def _order(row: dict[str, Any]) -> tuple:
    return task_order(row["task"]), size_order(row["k"]), method_order(row["method"]), row["seed"], row["lr"] or 0.0


def _run(row: dict[str, Any]) -> Run:
    record = RunRecord(**{name: row[name] for name in VALUES if row.get(name) is not None})
    record.validation, record.test = _finite(record.validation), _finite(record.test)
    return Run(**{name: row[name] for name in KEYS}, record=record)


def _finite(value: float | None) -> float | None:
    """None for what a run that diverged has, such as an infinite error."""
    return value if value is not None and isfinite(value) else None


def answers(store: Store, runs: Sequence[Run]) -> Iterator[Row]:
    """Method, seed, predictions and targets of each run."""
    for row in store.runs(("method", "seed", "predictions", "targets"), [run.id for run in runs]):
        yield row["method"], row["seed"], row["predictions"], row["targets"]
