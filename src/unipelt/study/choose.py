"""Which learning rate stands for a method: the validation rows choose, the test rows have no say. Knows no torch."""

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean
from typing import Any

from unipelt.study.store import DONE

Run = dict[str, Any]


def choose(rows: Iterable[Run]) -> list[Run]:
    """Of each task, k and method: the finished runs of one learning rate, in the order given.

    It is the rate with the best mean validation metric over seeds, among the rates with the most finished seeds: so where
    one rate has every seed, only such a rate is chosen. The lower rate wins a tie.
    """
    done = [row for row in rows if row["status"] in DONE]
    rates: dict[tuple, dict[float, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    for row in done:
        rates[_group(row)][row["lr"]].append(row["validation"])
    chosen = {group: max(found, key=lambda lr: _rank(lr, found[lr])) for group, found in rates.items()}
    return [row for row in done if row["lr"] == chosen[_group(row)]]


def _group(row: Run) -> tuple:
    return row["task"], row["k"], row["method"]


def _rank(lr: float, validation: list[float | None]) -> tuple:
    known = sorted(value for value in validation if value is not None)  # sorted: a sum depends on its order
    return len(validation), fmean(known) if len(known) == len(validation) else float("-inf"), -lr
