"""Tables 1 and 3 of the paper, from our runs."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean

from unipelt.report.names import size_label, task_label, task_order
from unipelt.report.samples import LARGEST
from unipelt.report.study import Grid, Study, average, higher_is_better, mean, scale, spread
from unipelt.report.tables import Block, Cell, Table

ALL = "all"
COLA = "cola"
MARKS = {1: "best", 2: "second"}


def marks(values: Sequence[float | None]) -> list[str]:
    """Mark best and second values, equal values alike; no marks if all are equal."""
    known = sorted((round(value, 9) for value in values if value is not None), reverse=True)
    if not known or known[0] == known[-1]:
        return [""] * len(values)
    return ["" if value is None else MARKS.get(known.index(round(value, 9)) + 1, "") for value in values]


def scores(study: Study, kind: str = "test") -> Table:
    """The paper's table 1; of the validation metric, its appendix."""
    grid = study.test if kind == "test" else study.validation
    sizes = [k for k in study.sizes if k != ALL]
    number, what = ("1", "Test metric") if kind == "test" else ("1-validation", "Best validation metric")
    place = " (the paper's table 1)" if kind == "test" else ""
    title = f"{what}, mean and standard deviation over seeds{place}"
    return _table(study, grid, sizes, f"table{number}", title, kind == "test")


def whole(study: Study) -> Table:
    """The paper's table 3: every training example."""
    title = "Test metric with all training examples, mean and standard deviation over seeds (the paper's table 3)"
    table = _table(study, study.test, [ALL] if ALL in study.sizes else [], "table3-all", title, True)
    if table and study.incomplete & {*study.tasks(ALL)}:
        note = "* The training set is a subset of the published one, so these are not the paper's numbers for K = all."
        table = replace(table, notes=[*table.notes, note])
    return table


def union(study: Study, sizes: Iterable[int | str]) -> list[str]:
    """The tasks of some sizes."""
    return sorted({task for k in sizes if k in study.sizes for task in study.tasks(k)}, key=task_order)


def _table(study: Study, grid: Grid, sizes: Sequence[int | str], name: str, title: str, test: bool) -> Table:
    over = union(study, sizes)
    columns = ["method", *(task_label(task) + "*" * (task in study.incomplete and ALL in sizes) for task in over)]
    if len(over) > 1:
        columns += ["average", *["without CoLA"] * (COLA in over)]
    blocks = [Block(f"{size_label(k)} · {study.model} · {study.seeds(k)}", _rows(study, grid, k, over, test)) for k in sizes]  # fmt: skip
    return Table(name, title, columns, blocks, _notes(study, over))


def _rows(study: Study, grid: Grid, k: int | str, over: Sequence[str], test: bool) -> list[list[Cell]]:
    """The best are marked if each has at least two seeds."""
    which, several = study.methods(k), len(over) > 1
    columns = {task: [grid.get((k, task, method)) for method in which] for task in over}
    signs = {task: 1 if higher_is_better(study.metrics[task]) else -1 for task in over}
    values = {task: [signs[task] * mean(cell) if cell else None for cell in cells] for task, cells in columns.items()}
    some = [len(cell) for cells in columns.values() for cell in cells if cell]
    marked = min(some, default=0) > 1
    tops = {task: marks(of) if marked else [""] * len(which) for task, of in values.items()}
    groups = [study.averaged(k), *([[task for task in study.averaged(k) if task != COLA]] if COLA in over else [])] if several else []  # fmt: skip
    averages = [[average(grid, k, method, tasks) for method in which] for tasks in groups]
    sign = signs[study.averaged(k)[0]]
    bold = [marks([sign * one[0] if one else None for one in of]) if marked else [""] * len(which) for of in averages]
    rows = []
    for place, method in enumerate(which):
        row = [Cell(method)]
        for task in over:
            cell, planned = columns[task][place], study.planned(k, task)
            note = f"{len(cell)} of {planned} seeds" if cell and len(cell) < planned else ""
            row.append(
                Cell(mean(cell), spread([*cell.values()]), mark=tops[task][place], note=note) if cell else Cell()
            )
        for found, of in zip(averages, bold):
            one = found[place]
            row.append(Cell(*one, mark=of[place]) if one else Cell())
        rows.append(row)
    return rows + _largest(study, k, over, groups, len(rows[0])) if test else rows


def _largest(
    study: Study, k: int | str, over: Sequence[str], groups: Sequence[Sequence[str]], width: int
) -> list[list[Cell]]:
    """What naming the largest class always gives; 0 for a correlation."""
    values: dict[str, float] = {}
    for task in study.tasks(k):
        of = study.samples[k, task]
        if of.largest:
            values[task] = scale(of.metric.name) * fmean(of.largest.values())
        elif of.answers and of.metric.of == "numbers" and of.metric.low < 0:
            values[task] = 0.0
    if not values:
        return []
    means = [fmean(values[t] for t in tasks) if tasks and {*tasks} <= values.keys() else None for tasks in groups]
    row = [Cell(LARGEST), *(Cell(values.get(task)) for task in over), *map(Cell, means)]
    return [row + [Cell("")] * (width - len(row))]


def _notes(study: Study, over: Sequence[str]) -> list[str]:
    metrics: dict[str, list[str]] = {}
    for task in over:
        unit = " ×100" if scale(study.metrics[task]) != 1 else ""
        metrics.setdefault(study.metrics[task].replace("_", " ") + unit, []).append(task_label(task))
    said = "; ".join(f"{metric}: {', '.join(names)}" for metric, names in sorted(metrics.items()))
    marked = (
        " Bold: best, underlined: second best, where every method has two seeds at least; not a test of differences."
    )
    several = (
        " An average stands only where every task is there; its deviation is that of the seeds' averages."
        if len(over) > 1
        else ""
    )
    return [
        f"Metrics: {said}.{marked}",
        f"The learning rate of each task, K and method is the one with the best mean validation metric over seeds.{several}",
        f"{LARGEST.capitalize()}: the metric of always naming the most frequent class of the test examples, 0 for a correlation.",
    ]  # fmt: skip
