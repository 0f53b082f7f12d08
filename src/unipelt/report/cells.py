"""Runs gathered by size, task and method: mean and spread over seeds, and which methods can be compared."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

from unipelt.report.names import method_order, size_order, task_order

Seeds = dict[int, float]
Grid = dict[tuple[int | str, str, str], Seeds]
"""(k, task, method) → seed → metric"""


def gather(rows: Iterable[dict[str, Any]], column: str = "test") -> Grid:
    """What is there of a column, ×1, in the report's order whatever the order of the rows."""
    grid: dict[tuple, Seeds] = defaultdict(dict)
    for row in rows:
        if row[column] is not None:
            grid[row["k"], row["task"], row["method"]][row["seed"]] = row[column]
    order = sorted(grid, key=lambda key: (size_order(key[0]), task_order(key[1]), method_order(key[2])))
    return {key: dict(sorted(grid[key].items())) for key in order}


def sizes(grid: Grid) -> list[int | str]:
    return list(dict.fromkeys(k for k, _, _ in grid))


def tasks(grid: Grid, k: int | str) -> list[str]:
    return sorted({task for size, task, _ in grid if size == k}, key=task_order)


def methods(grid: Grid, k: int | str) -> list[str]:
    return sorted({method for size, _, method in grid if size == k}, key=method_order)


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


def comparable(grid: Grid, k: int | str) -> tuple[list[str], list[str]]:
    """Tasks and methods of a size of which every pair is there: all its tasks where two methods have them all, else the
    tasks that all its methods have."""
    all_tasks, all_methods = tasks(grid, k), methods(grid, k)
    whole = [method for method in all_methods if all((k, task, method) in grid for task in all_tasks)]
    if len(whole) > 1 or len(all_methods) == 1:
        return all_tasks, whole
    return [task for task in all_tasks if all((k, task, method) in grid for method in all_methods)], all_methods
