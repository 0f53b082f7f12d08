"""The runs of a study's store, with every column that a report reads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from unipelt.report.names import method_order, size_order, task_order
from unipelt.report.samples import Row
from unipelt.study.choose import choose
from unipelt.study.schema import KEYS
from unipelt.study.store import DONE, PLANNED, Store

LIGHT = ("id", *KEYS, "status", "metric", "validation", "test", "complete", "steps", "seconds", "predicting", "parameters", "stored", "device", "versions")  # fmt: skip
LISTED = (*KEYS, "metric", "validation", "test", "status", "steps", "seconds")
"""columns of runs.csv"""
Curve = list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One planned run; results that are missing are None."""

    id: str
    task: str
    k: int | str
    method: str
    seed: int
    lr: float | None
    """None for a baseline"""
    status: str
    metric: str
    validation: float | None
    """the best validation metric, which selected the epoch"""
    test: float | None
    complete: bool
    """whether the training set is the whole published one"""
    steps: int | None
    seconds: float | None
    predicting: float | None
    """seconds that the prediction of the test examples took"""
    parameters: int | None
    """numbers that were trained"""
    stored: int | None
    """numbers that its checkpoint holds"""
    device: str | None
    versions: dict[str, str]
    curve: Curve
    """an entry an evaluation; of chosen runs"""
    gates: dict[str, float]
    """mean over test examples by location; of chosen runs"""

    @property
    def done(self) -> bool:
        return self.status in DONE

    @property
    def planned(self) -> bool:
        return self.status == PLANNED

    @property
    def failed(self) -> bool:
        return not self.done and not self.planned

    @property
    def reason(self) -> str:
        """Why it failed."""
        return self.status.removeprefix("failed: ")


def read_runs(store: Store) -> tuple[list[Run], list[Run]]:
    """Every planned run, and the finished ones of the learning rates that validation chose, with curves and gates."""
    rows = sorted(store.runs(LIGHT), key=_order)
    chosen = [row["id"] for row in choose(rows)]
    deep = {row["id"]: row for row in store.runs(("id", "gates", "curve"), chosen)}
    by_id = {row["id"]: row for row in rows}
    return [_run(row) for row in rows], [_run(by_id[name] | deep[name]) for name in chosen]


def _order(row: dict[str, Any]) -> tuple:
    return task_order(row["task"]), size_order(row["k"]), method_order(row["method"]), row["seed"], row["lr"] or 0.0


def _run(row: dict[str, Any]) -> Run:
    more = {
        **{name: _finite(row[name]) for name in ("validation", "test")},
        "complete": row["complete"] is not False,
        "parameters": sum(row["parameters"].values()) if row["parameters"] else None,
        "versions": row["versions"] or {},
        "curve": row.get("curve") or [],
        "gates": {path: value["mean"] for path, value in (row.get("gates") or {}).items()},
    }
    return Run(**{name: row[name] for name in LIGHT} | more)


def _finite(value: float | None) -> float | None:
    """None for what a run that diverged has, such as an infinite error."""
    return value if value is not None and isfinite(value) else None


def answers(store: Store, runs: Sequence[Run]) -> Iterator[Row]:
    """Method, seed, predictions and targets of each run."""
    for row in store.runs(("method", "seed", "predictions", "targets"), [run.id for run in runs]):
        yield row["method"], row["seed"], row["predictions"], row["targets"]
