"""Tables 1 and 3 of the paper, from our runs."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean

from unipelt.report.names import size_label, task_label, task_order
from unipelt.report.samples import LARGEST
from unipelt.report.study import Grid, Study, average
from unipelt.report.tables import Block, Cell, Table, marked, side_by_side

ALL = "all"
COLA = "cola"
MARK_NOTE = "Bold: best, underlined: second best, where every method has two seeds at least; not a test of differences."
RATE_NOTE = "The learning rate of each task, K and method is the one with the best mean validation metric over seeds."
AVERAGE_NOTE = " An average stands only where every task is there; its deviation is that of the seeds' averages."
LARGEST_NOTE = f"{LARGEST.capitalize()}: the metric of always naming the most frequent class of the test examples, 0 for a correlation."  # fmt: skip


def scores_table(study: Study) -> Table:
    """The paper's table 1."""
    title = "Test metric, mean and standard deviation over seeds (the paper's table 1)"
    return _table(study, study.test, [k for k in study.sizes if k != ALL], "table1", title)


def validation_table(study: Study) -> Table:
    """The same of the validation metric."""
    title = "Best validation metric, mean and standard deviation over seeds"
    return _table(study, study.validation, [k for k in study.sizes if k != ALL], "validation", title)


def whole_table(study: Study) -> Table:
    """The paper's table 3: every training example."""
    title = "Test metric with all training examples, mean and standard deviation over seeds (the paper's table 3)"
    table = _table(study, study.test, [ALL] if ALL in study.sizes else [], "table3-all", title)
    if table and study.incomplete & {*study.tasks(ALL)}:
        note = "* The training set is a subset of the published one, so these are not the paper's numbers for K = all."
        table = replace(table, notes=[*table.notes, note])
    return table


def tasks_of(study: Study, sizes: Iterable[int | str]) -> list[str]:
    """The tasks of some sizes."""
    return sorted({task for k in sizes if k in study.sizes for task in study.tasks(k)}, key=task_order)


def _table(study: Study, grid: Grid, sizes: Sequence[int | str], name: str, title: str) -> Table:
    over = tasks_of(study, sizes)
    columns = ["method", *(task_label(task) + "*" * (task in study.incomplete and ALL in sizes) for task in over)]
    if len(over) > 1:
        columns += ["average", *["without CoLA"] * (COLA in over)]
    blocks = [Block(f"{size_label(k)} · {study.model} · {study.seeds(k)}", _rows(study, grid, k, over)) for k in sizes]
    metrics = defaultdict(list)
    for task in over:
        metric = study.metrics[task]
        metrics[metric.name.replace("_", " ") + (" ×100" if metric.shown_as != 1 else "")].append(task_label(task))
    said = "; ".join(f"{metric}: {', '.join(names)}" for metric, names in sorted(metrics.items()))
    notes = [f"Metrics: {said}. {MARK_NOTE}", RATE_NOTE + AVERAGE_NOTE * (len(over) > 1), LARGEST_NOTE]
    return Table(name, title, columns, blocks, notes)


def _rows(study: Study, grid: Grid, k: int | str, over: Sequence[str]) -> list[list[Cell]]:
    """The best are marked if each has at least two seeds. Test metrics have a row of always naming the largest class."""
    methods, averaged = study.methods(k), study.averaged(k)
    here = {key: seeds for key, seeds in grid.items() if key[0] == k}
    columns = [
        {
            method: Cell.mean(seeds.values(), f"{len(seeds)} of {planned} seeds" if len(seeds) < planned else "")
            for method in methods
            if (seeds := here.get((k, task, method)))
        }
        for task in over
        for planned in [_planned(study, k, task)]
    ]
    groups = [averaged, *[[task for task in averaged if task != COLA]] * (COLA in over)] if len(over) > 1 else []
    columns += [{method: average(grid, k, method, tasks) for method in methods} for tasks in groups]
    if min(map(len, here.values()), default=0) > 1:
        signs = [study.metrics[task].sign for task in [*over, *(averaged[0] for _ in groups)]]
        columns = [*map(marked, columns, signs)]
    samples = {task: study.samples[k, task] for task in study.tasks(k) if grid is study.test}
    largest = {task: of.metric.shown_as * of.constant for task, of in samples.items() if of.constant is not None}
    if not largest:
        return side_by_side(methods, columns)
    means = [fmean(largest[t] for t in tasks) if tasks and {*tasks} <= largest.keys() else None for tasks in groups]
    last = [*(largest.get(task) for task in over), *means]
    return [*side_by_side(methods, columns), [Cell(LARGEST), *map(Cell, last)]]


def _planned(study: Study, k: int | str, task: str) -> int:
    """The most seeds that any method is planned with."""
    seeds = defaultdict(set)
    for run in study.runs:
        if (run.k, run.task) == (k, task):
            seeds[run.method].add(run.seed)
    return max(map(len, seeds.values()), default=0)
