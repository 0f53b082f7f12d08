"""Our numbers next to those that the paper prints.          Mao et al. 2022, arXiv:2110.07577, tables 1 to 4"""

import tomllib
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import Any

from unipelt.report.claims import UNDECIDED, average_difference, best_others, methods_for, verdict
from unipelt.report.comparison import scaled
from unipelt.report.names import PARTS, size_label, task_label
from unipelt.report.scores import ALL, tasks_of
from unipelt.report.statistics import Estimate
from unipelt.report.study import Study, average
from unipelt.report.tables import Block, Cell, Table, marked, side_by_side

Means = dict[str, dict[str, float]]
"""method → task → test metric ×100"""


@cache
def paper() -> dict[str, Any]:
    """See paper.toml."""
    return tomllib.loads(files("unipelt.report").joinpath("paper.toml").read_text(encoding="utf-8"))


def printed(k: int | str) -> Means:
    """The paper's number; none for a size that the paper lacks, or of which it prints only an average."""
    return {method: dict(zip(paper()["tasks"], row)) for method, row in paper()["scores"].get(str(k), {}).items()}


def means(study: Study, k: int | str) -> Means:
    """Our own."""
    found: Means = defaultdict(dict)
    for (size, task, method), seeds in study.test.items():
        if size == k:
            found[method][task] = fmean(seeds.values())
    return found


def _ours(study: Study, k: int | str) -> str:
    return f"{size_label(k)} · ours, {study.model} · {study.seeds(k)}"


def _theirs(k: int | str) -> str:
    return f"{size_label(k)} · the paper, {paper()['base']} · 5 seeds"


def mixture_table(study: Study) -> Table:
    """The paper's table 2: is a mixture more than its best part?"""
    blocks, over = [], tasks_of(study, study.sizes)
    for k in study.sizes:
        here, rows, others = study.samples_of(k), [], []
        for mixture, parts in PARTS.items():
            methods, _ = methods_for(here, (mixture, *parts))
            if methods:
                found = average_difference(here, best_others(here, *methods))
                rows += _against_parts(methods, means(study, k), study.tasks(k), over, found)
                if mixture in printed(k) and {*study.tasks(k)} <= {*paper()["tasks"]}:
                    others += _against_parts([mixture, *parts], printed(k), study.tasks(k), over)
        blocks += [Block(_ours(study, k), rows)] if rows else []
        blocks += [Block(_theirs(k), others)] if others else []
    return Table(
        "table2-bound", "Mixtures beside the best of their parts, test metric ×100 (the paper's table 2)", ["", *map(task_label, over), "average"], blocks,
        ["The best part is taken for each task by its test mean, as the paper does: it knows more than any method may, so it is an upper bound of choosing one.",
         "Last column of ours: 95 % interval, of one seed over test examples only. Bold: it is over test examples and training seeds, and leaves out 0."],
    )  # fmt: skip


def _against_parts(methods: Sequence[str], of: Means, tasks: Sequence[str], over: Sequence[str], found: Estimate | None = None) -> list[list[Cell]]:  # fmt: skip
    """methods: a mixture and its parts. The best part of each task, the mixture, and the difference."""
    mixture, *parts = methods
    tops = {task: max(parts, key=lambda part, task=task: of[part][task]) for task in tasks}  # type: ignore[misc]
    best = {task: of[top][task] for task, top in tops.items()}
    gaps = {task: of[mixture][task] - best[task] for task in tasks}
    last = Cell(fmean(gaps.values()), signed=True)
    if found is not None:
        last = scaled(found, 100, signed=True, mark="" if verdict(found) == UNDECIDED else "real")
    return [
        [Cell(f"best of {', '.join(parts)}"), *(Cell(best.get(t), note=tops.get(t, "")) for t in over), Cell(fmean(best.values()))],
        [Cell(mixture), *(Cell(of[mixture].get(t) if t in tasks else None) for t in over), Cell(fmean(of[mixture][t] for t in tasks))],
        [Cell(f"{mixture} − best part"), *(Cell(gaps.get(t), signed=True) for t in over), last],
    ]  # fmt: skip


def paper_table(study: Study) -> Table:
    """Scores of the same sizes, tasks and methods; K = all only where every training set is whole."""
    known, blocks = paper()["tasks"], []
    over = [task for task in tasks_of(study, study.sizes) if task in known]
    for k in study.sizes:
        here = [task for task in study.tasks(k) if task in known]
        which = [method for method in study.methods(k) if method in printed(k)]
        if which and here:
            ours, theirs = (_columns(which, of, here, over) for of in (means(study, k), printed(k)))
            blocks.append(Block(_ours(study, k), side_by_side(which, ours)))
            blocks.append(Block(_theirs(k), side_by_side(which, map(marked, theirs))))
    if ALL in study.sizes and not study.incomplete and {*study.tasks(ALL)} == {*known}:
        which = [method for method in study.methods(ALL) if method in paper()["whole"]]
        mine = {method: average(study.test, ALL, method, known) for method in which}
        printed_averages = {method: Cell(paper()["whole"][method]) for method in which}
        for heading, column in ((_ours(study, ALL), mine), (_theirs(ALL), printed_averages)):
            blocks.append(Block(heading, side_by_side(which, [*[{}] * len(over), column])))
    return Table(
        "beside-the-paper", f"Beside the paper's own numbers ({paper()['base']})", ["method", *map(task_label, over), "average"], blocks,
        [f"The paper: {paper()['source']}, tables 1 and 3. Its base is {paper()['base']}; ours is {study.model}: another base has other numbers, so compare orders and gaps, not levels.",
         "Averages are over the tasks that stand in the block. Marks are in the paper's blocks alone."],
    )  # fmt: skip


def _columns(which: Sequence[str], of: Means, here: Sequence[str], over: Sequence[str]) -> list[dict[str, Cell]]:
    """The numbers of these methods by task, and the average over the tasks of this size, where a method has them all."""
    columns = [{m: Cell(of[m][task]) for m in which if task in here and task in of[m]} for task in over]
    whole = [method for method in which if {*here} <= of[method].keys()]
    return [*columns, {method: Cell(fmean(of[method][task] for task in here)) for method in whole}]
