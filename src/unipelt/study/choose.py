"""Choose the learning rate of each method by its validation metric; test results do not count. Imports no torch."""

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean
from typing import Any

from unipelt.study.store import DONE
from unipelt.tasks.metrics import METRICS

Run = dict[str, Any]


def choose(rows: Iterable[Run]) -> list[Run]:
    """Of each task, k and method: the finished runs of one learning rate, in the order given.

    It is the rate with the best mean validation metric over seeds, among the rates with the most finished seeds: so where
    one rate has every seed, only such a rate is chosen. The lower rate wins a tie.
    """
    done = [row for row in rows if row["status"] in DONE]
    rates: dict[tuple, dict[float | None, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    for row in done:
        rates[_group(row)][row["lr"]].append(row["validation"])
    lower = {_group(row) for row in done if row["metric"] in METRICS and not METRICS[row["metric"]].higher_is_better}
    chosen = {
        group: max(by_rate, key=lambda lr: _rank(lr, by_rate[lr], -1 if group in lower else 1))
        for group, by_rate in rates.items()
    }
    return [row for row in done if row["lr"] == chosen[_group(row)]]


def _group(row: Run) -> tuple:
    return row["task"], row["k"], row["method"]


def _rank(lr: float | None, validation: list[float | None], sign: int) -> tuple:
    known = sorted(value for value in validation if value is not None)  # sorted: a sum depends on its order
    return len(validation), sign * fmean(known) if len(known) == len(validation) else float("-inf"), -(lr or 0.0)
