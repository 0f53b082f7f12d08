"""Tables of cost, and of what failed."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unipelt.errors import UserError
from unipelt.report.names import method_order, size_label, task_label
from unipelt.report.scores import paper
from unipelt.report.study import Study
from unipelt.report.tables import Block, Cell, Table

RATIOS = {"train": "training time", "inference": "inference time", "train_memory": "training memory"}


def cost_table(measured: Sequence[Mapping[str, Any]]) -> Table:
    """The paper's table 4 from a benchmark's ratios, each with its lowest and highest, a block for each base, batch and machine."""
    order = sorted(measured, key=lambda row: method_order(row["method"]))
    names = [name for name in RATIOS if any(row.get(name) is not None for row in order)]
    blocks: dict[str, list[list[Cell]]] = defaultdict(list)
    for row in order:
        sizes = (f"{row[name]} {unit}" for name, unit in (("batch", "examples"), ("length", "tokens")) if row.get(name))
        heading = ", ".join(filter(None, ["ours", row.get("model"), *sizes, row.get("machine")]))
        ranges = [row.get(f"{name}_range") or (None, None) for name in names]
        cells = [Cell(row.get(name), low=low, high=high) for name, (low, high) in zip(names, ranges)]
        blocks[heading].append([Cell(row["method"]), *cells])
    for method in dict.fromkeys(row["method"] for row in order if row["method"] in paper()["time"]):
        ratios = dict(zip(("train", "inference"), (percent / 100 for percent in paper()["time"][method])))
        blocks[f"the paper, {paper()['base']}"].append([Cell(method), *(Cell(ratios.get(name)) for name in names)])
    note = "Ours: measured side by side by a benchmark (efficiency.json), medians over its rounds, with the lowest and the highest. The paper's are of its own code and device."  # fmt: skip
    title, columns = "Cost, full fine-tuning = 1 (the paper's table 4)", ["method", *(RATIOS[name] for name in names)]
    return Table("table4-cost", title, columns, [Block(*block) for block in blocks.items()], [note])


def read_cost_table(path: Path) -> Table:
    """The table of a benchmark's file; empty where there is none. Raises UserError for a damaged file."""
    try:
        return cost_table(json.loads(path.read_text(encoding="utf-8")) if path.exists() else [])
    except (ValueError, OSError, TypeError, AttributeError, KeyError) as error:
        expected = 'a list such as [{"method": "lora", "train": 0.6, "inference": 1.05, "train_memory": 0.5}]'
        raise UserError(f"{path}: cannot be read ({error}); expected {expected}, or remove it") from None


def failure_table(study: Study) -> Table:
    """How many runs failed, by method, task, size, learning rate and reason."""
    counted = Counter(
        (run.method, task_label(run.task), size_label(run.k), f"{run.lr:g}" if run.lr else "", run.record.failed)
        for run in study.failed
    )
    rows = [[*map(Cell, key), Cell.count(number)] for key, number in counted.items()]
    columns = ["method", "task", "size", "learning rate", "reason", "runs"]
    return Table("failed", "Failed runs", columns, [Block("", rows)])
