"""Tables of differences by task, of cost, and of what was chosen, varied and failed."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from unipelt.report.comparison import Comparison, compare, scaled
from unipelt.report.names import method_order, size_label, task_label, task_order
from unipelt.report.paper_comparison import paper
from unipelt.report.statistics import average_ranks, critical_difference
from unipelt.report.study import Study, gather, mean, spread
from unipelt.report.sweeps import sweep_places
from unipelt.report.tables import Block, Cell, Table

RATIOS = {"train": "training time", "inference": "inference time", "train_memory": "training memory"}


def differences(study: Study) -> Table:
    """Each method less the best one of each task."""
    over = sorted({task for k in study.compared for task in study.tasks(k)}, key=task_order)
    blocks = []
    for k in study.compared:
        columns = []
        for task in over:
            of = study.samples.get((k, task))
            there = [method for method in study.methods(k) if of and method in of.values]
            columns.append(_column(compare([of], there)) if of and len(there) > 1 else {})
        rows = [[Cell(method), *(column.get(method, Cell()) for column in columns)] for method in study.methods(k)]
        blocks.append(Block(f"{size_label(k)}, {study.seeds(k)}", rows if len(rows) > 1 else []))
    return Table(
        "differences", "Difference to the best method of each task", ["method", *map(task_label, over)], [block for block in blocks if len(over) > 1],
        ["95 % intervals of paired differences over test examples and, with two seeds at least, training seeds. Bold: real, p < 0.05 after Holm's correction over every pair of methods; with one seed nothing is."],
    )  # fmt: skip


def _column(one: Comparison) -> dict[str, Cell]:
    turn = not one.higher_is_better
    found = {
        line.method: scaled(line.gap, one.scale, turn, signed=True, mark="real" if line.real else "")
        for line in one.others
    }
    return {one.reference: Cell("best"), **found}


def ranks(study: Study) -> Table:
    """Average ranks over tasks, a column a size, where there are enough methods, tasks and seeds."""
    columns: dict[int | str, dict[str, Cell]] = {}
    notes = []
    for k, compared in study.compared.items():
        which = sorted((line.method for line in compared.lines), key=method_order)
        over = [of for of in study.samples_of(k) if {*which} <= of.values.keys()]
        if not study.ranks_mean_something(k) or len(over) < len(study.tasks(k)):
            continue
        found, apart = average_ranks(over, which), critical_difference(len(which), len(over))
        notes.append(f"{size_label(k)}: {apart:.2f} for {len(which)} methods on {len(over)} tasks, {study.seeds(k)}")
        first = min(found.values())
        columns[k] = {m: Cell(r, mark="best" if r == first else "", note="behind" if r - first > apart else "") for m, r in found.items()}  # fmt: skip
    shown = sorted({method for column in columns.values() for method in column}, key=method_order)
    rows = [[Cell(method), *(column.get(method, Cell()) for column in columns.values())] for method in shown]
    return Table(
        "ranks", "Average rank over tasks, 1 the best", ["method", *map(size_label, columns)], [Block("", rows)],
        [f"Behind: further from the first than Nemenyi's critical difference at 5 % ({'; '.join(notes)}). Demšar 2006, §3.2.2."],
    )  # fmt: skip


def efficiency(measured: Sequence[dict[str, Any]] | None) -> Table:
    """The paper's table 4 from a benchmark's ratios, each with its lowest and highest, a block for each base, batch and machine."""
    order = sorted(measured or [], key=lambda row: method_order(str(row["method"])))
    names = [name for name in RATIOS if any(row.get(name) is not None for row in order)]
    places: dict[str, list[list[Cell]]] = defaultdict(list)
    for row in order:
        edges = [row.get(f"{name}_range") or (None, None) for name in names]
        cells = [Cell(row.get(name), low=low, high=high) for name, (low, high) in zip(names, edges)]
        places[_where(row)].append([Cell(str(row["method"])), *cells])
    blocks = [Block(where, rows) for where, rows in places.items()]
    theirs = {m: {"train": t / 100, "inference": i / 100} for m, (t, i) in paper()["time"].items()}
    here = dict.fromkeys(str(row["method"]) for row in order)
    printed = [[Cell(m), *(Cell(theirs[m].get(name)) for name in names)] for m in here if m in theirs]
    blocks += [Block(f"the paper, {paper()['base']}", printed)] if printed else []
    note = "Ours: measured side by side by a benchmark (efficiency.json), medians over its rounds, with the lowest and the highest."
    return Table(
        "table4-cost", "Cost, full fine-tuning = 1 (the paper's table 4)", ["method", *(RATIOS[name] for name in names)], blocks,
        [note + " The paper's are of its own code and device."],
    )  # fmt: skip


def _where(row: dict[str, Any]) -> str:
    """Base, batch and machine of a benchmark's row, as far as it names them."""
    batch = row.get("batch") and f"{row['batch']} examples"
    length = row.get("length") and f"{row['length']} tokens"
    return ", ".join(str(word) for word in ["ours", row.get("model"), batch, length, row.get("machine")] if word)


def rates(study: Study) -> Table:
    """Which learning rate was chosen, of how many."""
    tried, chosen = defaultdict(set), {}
    for run in study.runs:
        tried[run.k, run.method, run.task].add(run.lr)
    for run in (one for one in study.chosen if one.lr is not None):
        chosen[run.k, run.method, run.task] = run.lr
    over = list(dict.fromkeys(run.task for run in study.runs))
    blocks = []
    for k in dict.fromkeys(run.k for run in study.chosen):
        here = sorted({method for size, method, _ in chosen if size == k}, key=method_order)
        cells = {key: Cell(f"{lr:g}", note=f"of {len(tried[key])}") for key, lr in chosen.items()}
        blocks.append(Block(size_label(k), [[Cell(m), *(cells.get((k, m, t), Cell()) for t in over)] for m in here]))
    note = "By the mean validation metric over seeds, never by test; behind it the number of rates that were tried."
    return Table("rates", "Chosen learning rates", ["method", *map(task_label, over)], blocks, [note])


def failures(study: Study) -> Table:
    counted = Counter(
        (run.method, task_label(run.task), size_label(run.k), f"{run.lr:g}" if run.lr else "", run.reason)
        for run in study.failed
    )
    rows = [[*map(Cell, key), Cell(float(number), digits=0)] for key, number in counted.items()]
    columns = ["method", "task", "size", "learning rate", "reason", "runs"]
    return Table("failed", "Failed runs", columns, [Block("", rows)])


def swept(study: Study) -> Table:
    """The points of the sweeps' figures: a block per sweep, a column per task and size."""
    grid = gather(study.chosen)
    places = sweep_places(study.sweeps, grid)
    cells = {key: Cell(mean(cell), spread([*cell.values()])) for key, cell in grid.items()}
    blocks = [
        Block(f"{sweep.label}: {sweep.option}", [[Cell(value, digits=-1), *(cells.get((*place, method), Cell()) for place in places)] for method, value in sweep.values.items()])
        for sweep in study.sweeps
    ]  # fmt: skip
    columns = ["value", *(f"{task_label(task)}, {size_label(k)}" for k, task in places)]
    return Table(
        "sweeps", "Test metric against one option", columns, blocks, ["Mean and standard deviation over seeds."]
    )
