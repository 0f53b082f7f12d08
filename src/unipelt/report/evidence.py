"""Tables of what is real, of cost, and of what was chosen and what failed."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, geometric_mean
from typing import Any

from unipelt.report.cells import Grid, gather, mean, spread
from unipelt.report.claims import Claim, claims
from unipelt.report.names import FULL, method_order, size_label, task_label
from unipelt.report.paper import paper
from unipelt.report.scores import gap, scaled
from unipelt.report.significance import against_best, average_ranks, critical_difference
from unipelt.report.study import Study
from unipelt.report.sweeps import sweep_places
from unipelt.report.table import Block, Cell, Table

INTERVALS = (
    "95 % intervals of paired differences: the same resampled test rows for every method, and Student's t over the seeds that both have. "
    "Bold: real, which is p < 0.05 after Holm's correction over the methods of the column."
)
RATIOS = {"train": "training time", "inference": "inference time", "train_memory": "training memory"}


def differences(study: Study) -> Table:
    """Each method less the best one, by task and on average."""
    over = list(dict.fromkeys(task for k in study.sizes for task in study.tasks(k)))
    blocks = []
    for k, compared in study.compared.items():
        which = [method for method in study.methods(k) if method == compared.best or method in compared.to_best]
        columns = [_column(compared)] * (len(over) > 1)
        for task in over:
            of = study.samples.get((k, task))
            there = [method for method in study.methods(k) if of and method in of.values]
            columns.append(_column(against_best([of], there)) if of and len(there) > 1 else {})
        rows = [[Cell(method), *(column.get(method, Cell()) for column in columns)] for method in which]
        blocks.append(Block(size_label(k), rows))
    return Table(
        "differences",
        "Difference to the best method, ×100",
        ["method", *["average"] * (len(over) > 1), *map(task_label, over)],
        blocks,
        [INTERVALS],
    )


def _column(compared: Any) -> dict[str, Cell]:
    found = {method: gap(one, compared.real(method)) for method, one in compared.to_best.items()}
    return {compared.best: Cell("best", mark="best"), **found}


def ranks(study: Study) -> Table:
    """Average ranks over tasks, a column a size; needs two tasks at least."""
    columns: dict[int | str, dict[str, Cell]] = {}
    notes = []
    for k, compared in study.compared.items():
        over = [of for of in study.samples_of(k) if {compared.best, *compared.to_best} <= of.values.keys()]
        which = sorted([compared.best, *compared.to_best], key=method_order)
        if len(over) < 2:
            continue
        found, apart = average_ranks(over, which), critical_difference(len(which), len(over))
        notes.append(f"{size_label(k)}: {apart:.2f} for {len(which)} methods on {len(over)} tasks")
        first = min(found.values())
        columns[k] = {
            m: Cell(rank, mark="best" if rank == first else "", note="behind" if rank - first > apart else "")
            for m, rank in found.items()
        }
    shown = sorted({method for column in columns.values() for method in column}, key=method_order)
    rows = [[Cell(method), *(column.get(method, Cell()) for column in columns.values())] for method in shown]
    return Table(
        "ranks", "Average rank over tasks, 1 the best", ["method", *map(size_label, columns)], [Block("", rows)],
        [f"Behind: further from the first than Nemenyi's critical difference at 5 % ({'; '.join(notes)}). Demšar 2006, §3.2.2."],
    )  # fmt: skip


def judged(study: Study) -> dict[int | str, list[Claim]]:
    """The paper's claims by size, over the tasks of each."""
    return {k: claims(study.samples_of(k)) for k in study.sizes}


def claim_table(judgements: dict[int | str, list[Claim]]) -> Table:
    """A row a claim, a column a size."""
    rows = [[Cell(found[0].text), *map(_judgement, found)] for found in zip(*judgements.values())]
    return Table(
        "claims", "The paper's three claims on these runs", ["claim", *map(size_label, judgements)], [Block("", rows)],
        ["Yes or no: the 95 % interval over test rows and seeds leaves out 0; else not decided. Differences ×100."],
    )  # fmt: skip


def _judgement(claim: Claim) -> Cell:
    if claim.number is None:
        return Cell(claim.verdict, note=claim.why)
    shown = gap(claim.number, real=False)
    mark = "" if claim.verdict == "not decided" else claim.verdict
    return replace(shown, value=claim.verdict, mark=mark, note=f"{shown.text} {claim.why}")


def efficiency(study: Study, measured: Sequence[dict[str, Any]] | None) -> Table:
    """The paper's table 4, from a benchmark's ratios; else from the runs' own seconds, training alone."""
    if measured:
        return _measured(measured, asked=not study.own_rows)
    steps: dict[tuple, list[float]] = defaultdict(list)
    widths: dict[str, set[int]] = defaultdict(set)
    for row in study.chosen:
        if row["seconds"] and row["steps"]:
            steps[row["method"], row["k"], row["task"]].append(row["seconds"] / row["steps"])
            widths[row["method"]].add(row["width"] or 1)
    ratios: dict[str, list[float]] = defaultdict(list)
    for (method, *where), here in steps.items():
        if (FULL, *where) in steps:
            ratios[method].append(fmean(here) / fmean(steps[FULL, *where]))
    rows = [
        [Cell(method), Cell(geometric_mean(ratios[method])), Cell(" ".join(map(str, sorted(widths[method]))))]
        for method in sorted(ratios, key=method_order)
    ]
    return Table(
        "table4-seconds", "Seconds a step of the runs themselves, full fine-tuning = 1" + " (in place of the paper's table 4)" * (not study.own_rows), ["method", "training, evaluation included", "runs at once"],
        [Block("", rows)] if len(rows) > 1 else [],
        ["Not a benchmark: each run's share of its fleet's time as the study ran, so methods that ran more at once cost less here. Inference was not measured."],
    )  # fmt: skip


def _measured(measured: Sequence[dict[str, Any]], asked: bool) -> Table:
    """A benchmark's ratios, each with its lowest and highest, a block for each base, batch and machine. asked: whether the
    paper's numbers stand beside them."""
    order = sorted(measured, key=lambda row: method_order(str(row["method"])))
    names = [name for name in RATIOS if any(row.get(name) is not None for row in order)]
    places: dict[str, list[list[Cell]]] = defaultdict(list)
    for row in order:
        spreads = [row.get(f"{name}_range") or (None, None) for name in names]
        cells = [Cell(row.get(name), low=low, high=high) for name, (low, high) in zip(names, spreads)]
        places[_where(row)].append([Cell(str(row["method"])), *cells])
    blocks = [Block(where, rows) for where, rows in places.items()]
    theirs = {m: {"train": t / 100, "inference": i / 100} for m, (t, i) in paper()["time"].items()}
    here = dict.fromkeys(str(row["method"]) for row in order)
    printed = [[Cell(m), *(Cell(theirs[m].get(name)) for name in names)] for m in here if m in theirs]
    if asked and printed:
        blocks.append(Block(f"the paper, {paper()['base']}", printed))
    return Table(
        "table4-cost",
        "Cost, full fine-tuning = 1" + " (the paper's table 4)" * asked,
        ["method", *(RATIOS[name] for name in names)],
        blocks,
        [
            "Ours: measured side by side by a benchmark (efficiency.json), medians over its rounds, with the lowest and the highest."
            + " The paper's are of its own code and device." * asked
        ],
    )


def _where(row: dict[str, Any]) -> str:
    """Base, batch and machine of a benchmark's row, as far as it names them."""
    said = [
        "ours",
        row.get("model"),
        row.get("batch") and f"{row['batch']} rows",
        row.get("length") and f"{row['length']} tokens",
    ]
    return ", ".join(str(word) for word in [*said, row.get("machine")] if word)


def rates(study: Study) -> Table:
    """Which rate was chosen, of how many."""
    tried, chosen = defaultdict(set), {}
    for row in study.runs:
        tried[row["k"], row["method"], row["task"]].add(row["lr"])
    for row in study.chosen:
        chosen[row["k"], row["method"], row["task"]] = row["lr"]
    over = list(dict.fromkeys(row["task"] for row in study.runs))
    blocks = []
    for k in dict.fromkeys(row["k"] for row in study.chosen):
        here = sorted({method for size, method, _ in chosen if size == k}, key=method_order)
        rows = [
            [
                Cell(m),
                *(
                    Cell(f"{chosen[k, m, t]:g}", note=f"of {len(tried[k, m, t])}") if (k, m, t) in chosen else Cell()
                    for t in over
                ),
            ]
            for m in here
        ]
        blocks.append(Block(size_label(k), rows))
    return Table(
        "rates",
        "Chosen learning rates",
        ["method", *map(task_label, over)],
        blocks,
        ["By the mean validation metric over seeds, never by test; behind it the number of rates that were tried."],
    )


def failures(study: Study) -> Table:
    counted: dict[tuple, int] = defaultdict(int)
    for row in study.failed:
        counted[
            row["method"],
            task_label(row["task"]),
            size_label(row["k"]),
            f"{row['lr']:g}",
            row["status"].removeprefix("failed: "),
        ] += 1
    rows = [[Cell(str(part)) for part in key] + [Cell(float(number), digits=0)] for key, number in counted.items()]
    return Table(
        "failed", "Failed runs", ["method", "task", "size", "learning rate", "reason", "runs"], [Block("", rows)]
    )


def swept(study: Study) -> Table:
    """The points of the sweeps' figures: a block a sweep, a column a task and size."""
    grid = gather(study.chosen)
    places = sweep_places(study.sweeps, grid)
    blocks = [
        Block(f"{sweep.label}: {sweep.option}", [[Cell(value, digits=-1), *(_point(grid, k, task, method) for k, task in places)] for method, value in sweep.values.items()])
        for sweep in study.sweeps
    ]  # fmt: skip
    return Table(
        "sweeps",
        "Test metric ×100 against one option",
        ["value", *(f"{task_label(task)}, {size_label(k)}" for k, task in places)],
        blocks,
    )


def _point(grid: Grid, k: int | str, task: str, method: str) -> Cell:
    cell = grid.get((k, task, method))
    return scaled(mean(cell), spread([*cell.values()])) if cell else Cell()
