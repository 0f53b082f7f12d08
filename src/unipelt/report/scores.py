"""Tables 1 and 3 of the paper, from our runs."""

from collections.abc import Iterable, Sequence
from typing import Any

from unipelt.report.cells import Grid, average, mean, spread
from unipelt.report.names import size_label, task_label, task_order
from unipelt.report.significance import Estimate
from unipelt.report.study import Study
from unipelt.report.table import Block, Cell, Table

ALL = "all"
COLA = "cola"
MARKS = {1: "best", 2: "second"}
MARKED = "Bold: best, underlined: second best"


def scaled(value: float | None, sd: float | None = None, **more: Any) -> Cell:
    """A metric as tables show it, ×100."""
    return Cell(None if value is None else 100 * value, None if sd is None else 100 * sd, **more)


def gap(found: Estimate, real: bool) -> Cell:
    """A difference ×100 with its interval."""
    low, high = (None if bound is None else 100 * bound for bound in (found.low, found.high))
    return Cell(100 * found.value, low=low, high=high, mark="real" if real else "", signed=True)


def ranked(values: Sequence[float | None]) -> list[str]:
    """best and second for each value, equal ones alike; nothing where all are equal."""
    known = sorted((value for value in values if value is not None), reverse=True)
    if not known or known[0] == known[-1]:
        return [""] * len(values)
    return ["" if value is None else MARKS.get(known.index(value) + 1, "") for value in values]


def scores(study: Study, kind: str = "test") -> Table:
    """The paper's table 1; for the validation metric, its appendix."""
    grid = study.test if kind == "test" else study.validation
    among = [k for k in study.sizes if k != ALL]
    over = union(study, among)
    number, what = ("1", "Test metric") if kind == "test" else ("1d", "Best validation metric")
    place = " (the paper's table 1)" * (kind == "test" and not study.own_rows)
    return Table(
        f"table{number}-{kind}",
        f"{what} ×100, mean and standard deviation over seeds{place}",
        _columns(over),
        [Block(_heading(study, k), _rows(study, grid, k, over)) for k in among],
        _notes(study, among),
    )


def whole(study: Study) -> Table:
    """The paper's table 3: every training row."""
    over = union(study, [ALL])
    rows = _rows(study, study.test, ALL, over) if ALL in study.sizes else []
    notes = [
        *_notes(study, [ALL]),
        *(
            ["* The training set is a subset of the published one, so these are not the paper's numbers for K = all."]
            if study.incomplete & {*over}
            else []
        ),
    ]
    return Table(
        "table3-all",
        "Test metric ×100 with all training rows" + " (the paper's table 3)" * (not study.own_rows),
        _columns(over, study.incomplete),
        [Block(_heading(study, ALL), rows)],
        notes,
    )


def union(study: Study, among: Iterable[int | str]) -> list[str]:
    """The tasks of some sizes."""
    return sorted({task for k in among if k in study.sizes for task in study.tasks(k)}, key=task_order)


def _columns(over: Sequence[str], starred: Iterable[str] = ()) -> list[str]:
    """Averages and ranks where there are several tasks."""
    names = ["method", *(task_label(task) + ("*" if task in starred else "") for task in over)]
    if len(over) < 2:
        return names
    return [*names, "average", *(["without CoLA"] if COLA in over else []), "best or second best on", "never the worst"]


def _heading(study: Study, k: int | str) -> str:
    return f"{size_label(k)} · {study.model}"


def _rows(study: Study, grid: Grid, k: int | str, over: Sequence[str]) -> list[list[Cell]]:
    here, which = study.tasks(k), study.methods(k)
    columns = {task: [grid.get((k, task, method)) for method in which] for task in over}
    marks = {task: ranked([mean(cell) if cell else None for cell in cells]) for task, cells in columns.items()}
    averages = [
        _averages(grid, k, which, over, here),
        *([_averages(grid, k, which, [t for t in over if t != COLA], here)] if COLA in over else []),
    ]
    rows = []
    for place, method in enumerate(which):
        row = [Cell(method)]
        for task in over:
            cell, planned = columns[task][place], study.seeds(k, task)
            note = f"{len(cell)} of {planned} seeds" if cell and len(cell) < planned else ""
            row.append(
                scaled(mean(cell), spread([*cell.values()]), mark=marks[task][place], note=note) if cell else Cell()
            )
        rows.append(row)
        if len(over) < 2:
            continue
        row += [column[place] for column in averages]
        known = [task for task in here if columns[task][place]]
        high = sum(bool(marks[task][place]) for task in known)
        worst = any(_is_worst(columns[task], place) for task in known)
        row.append(Cell(f"{high} of {len(known)}" if len(which) > 1 else None))
        row.append(Cell(("no" if worst else "yes") if len(which) > 1 else None))
    return rows


def _averages(grid: Grid, k: int | str, which: Sequence[str], over: Sequence[str], here: Sequence[str]) -> list[Cell]:
    found = [average(grid, k, method, [task for task in over if task in here]) for method in which]
    marks = ranked([None if one is None else one[0] for one in found])
    return [scaled(*one, mark=mark) if one else Cell() for one, mark in zip(found, marks)]


def _is_worst(cells: Sequence[dict[int, float] | None], place: int) -> bool:
    values = [mean(cell) for cell in cells if cell]
    mine = cells[place]
    return mine is not None and mean(mine) == min(values) < max(values)


def _notes(study: Study, among: Iterable[int | str]) -> list[str]:
    metrics: dict[str, list[str]] = {}
    for row in study.listed:
        if row["k"] in among and task_label(row["task"]) not in metrics.setdefault(row["metric"], []):
            metrics[row["metric"]].append(task_label(row["task"]))
    said = "; ".join(f"{metric}: {', '.join(names)}" for metric, names in sorted(metrics.items()))
    several = len(union(study, among)) > 1
    return [
        f"{MARKED}. Metrics: {said}.",
        "The learning rate of each task, K and method is the one with the best mean validation metric over seeds."
        + " An average stands only where every task of its block is there; its deviation is that of the seeds' averages." * several,
    ]  # fmt: skip
