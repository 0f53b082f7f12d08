"""Tables of differences by task, of cost, and of what was chosen, varied and failed."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from unipelt.report.comparison import compare, gap_cell
from unipelt.report.names import method_order, size_label, task_label, task_order
from unipelt.report.paper_comparison import paper
from unipelt.report.study import Study, gather
from unipelt.report.sweeps import sweep_places
from unipelt.report.tables import Block, Cell, Table, side_by_side

RATIOS = {"train": "training time", "inference": "inference time", "train_memory": "training memory"}


def difference_table(study: Study) -> Table:
    """Each method less the best one of each task."""
    over = sorted({task for k in study.compared for task in study.tasks(k)}, key=task_order)
    blocks = []
    for k in study.compared if len(over) > 1 else ():
        columns = []
        for task in over:
            of = study.samples.get((k, task))
            one = compare([of], [m for m in study.methods(k) if m in of.values]) if of else None
            gaps = {line.method: gap_cell(one, line) for line in one.others} if one else {}
            columns.append({one.reference: Cell("best"), **gaps} if one and gaps else {})
        rows = side_by_side(study.methods(k), columns)
        blocks.append(Block(f"{size_label(k)}, {study.seeds(k)}", rows if len(rows) > 1 else []))
    return Table(
        "differences", "Difference to the best method of each task", ["method", *map(task_label, over)], blocks,
        ["95 % intervals of paired differences over test examples and, with two seeds at least, training seeds. Bold: real, p < 0.05 after Holm's correction over every pair of methods; with one seed nothing is."],
    )  # fmt: skip


def cost_table(measured: Sequence[Mapping[str, Any]]) -> Table:
    """The paper's table 4 from a benchmark's ratios, each with its lowest and highest, a block for each base, batch and machine."""
    order = sorted(measured, key=lambda row: method_order(row["method"]))
    names = [name for name in RATIOS if any(row.get(name) is not None for row in order)]
    blocks: dict[str, list[list[Cell]]] = defaultdict(list)
    for row in order:
        edges = [row.get(f"{name}_range") or (None, None) for name in names]
        cells = [Cell(row.get(name), low=low, high=high) for name, (low, high) in zip(names, edges)]
        batch, length = (row.get(name) and f"{row[name]} {of}" for name, of in (("batch", "examples"), ("length", "tokens")))  # fmt: skip
        where = ", ".join(str(word) for word in ["ours", row.get("model"), batch, length, row.get("machine")] if word)
        blocks[where].append([Cell(row["method"]), *cells])
    theirs = {m: dict(zip(("train", "inference"), of)) for m, of in paper()["time"].items()}
    for method in dict.fromkeys(row["method"] for row in order if row["method"] in theirs):
        percents = (theirs[method].get(name) for name in names)
        cells = [Cell(None if percent is None else percent / 100) for percent in percents]
        blocks[f"the paper, {paper()['base']}"].append([Cell(method), *cells])
    note = "Ours: measured side by side by a benchmark (efficiency.json), medians over its rounds, with the lowest and the highest."
    return Table(
        "table4-cost", "Cost, full fine-tuning = 1 (the paper's table 4)", ["method", *(RATIOS[name] for name in names)],
        [Block(*block) for block in blocks.items()], [note + " The paper's are of its own code and device."],
    )  # fmt: skip


def rate_table(study: Study) -> Table:
    """Which learning rate was chosen, of how many."""
    tried = defaultdict(set)
    for run in study.runs:
        tried[run.k, run.task, run.method].add(run.lr)
    columns: dict[tuple[int | str, str], dict[str, Cell]] = defaultdict(dict)
    for run in study.chosen:
        if run.lr is not None:
            note = f"of {len(tried[run.k, run.task, run.method])}"
            columns[run.k, run.task][run.method] = Cell(f"{run.lr:g}", note=note)
    over, blocks = list(dict.fromkeys(run.task for run in study.runs)), []
    for k in dict.fromkeys(run.k for run in study.chosen):
        here = [columns[k, task] for task in over]
        shown = sorted({method for column in here for method in column}, key=method_order)
        blocks.append(Block(size_label(k), side_by_side(shown, here)))
    note = "By the mean validation metric over seeds, never by test; behind it the number of rates that were tried."
    return Table("rates", "Chosen learning rates", ["method", *map(task_label, over)], blocks, [note])


def failure_table(study: Study) -> Table:
    counted = Counter(
        (run.method, task_label(run.task), size_label(run.k), f"{run.lr:g}" if run.lr else "", run.record.failed)
        for run in study.failed
    )
    rows = [[*map(Cell, key), Cell.count(number)] for key, number in counted.items()]
    columns = ["method", "task", "size", "learning rate", "reason", "runs"]
    return Table("failed", "Failed runs", columns, [Block("", rows)])


def sweep_table(study: Study) -> Table:
    """The points of the sweeps' figures: a block per sweep, a column per task and size."""
    grid = gather(study.chosen)
    places, blocks = sweep_places(study.sweeps, grid), []
    for sweep in study.sweeps:
        points = {m: [grid.get((*place, m)) for place in places] for m in sweep.values}
        rows = [[Cell(value, digits=-1), *(Cell.mean(of.values()) if of else Cell() for of in points[m])] for m, value in sweep.values.items()]  # fmt: skip
        blocks.append(Block(f"{sweep.label}: {sweep.option}", rows))
    columns = ["value", *(f"{task_label(task)}, {size_label(k)}" for k, task in places)]
    notes = ["Mean and standard deviation over seeds."]
    return Table("sweeps", "Test metric against one option", columns, blocks, notes)
