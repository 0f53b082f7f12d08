"""The results of a run, and its tables: parameters by change, gates by layer."""

import sys
from collections import defaultdict
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from unipelt.checkpoint.disk import TENSORS
from unipelt.checkpoint.header import tensors_header
from unipelt.report.names import counts_text, gate_labels
from unipelt.spec import Location
from unipelt.train.records import RunRecord

if TYPE_CHECKING:
    from torch import Tensor

    from unipelt.checkpoint.description import Description

PIPED = 1000  # columns where no terminal sets a width: a table's row stays one line


def terminal() -> Console:
    """Where tables and lines are printed, as they are."""
    width = None if sys.stdout.isatty() else PIPED
    return Console(soft_wrap=True, width=width, markup=False, highlight=False, emoji=False)


def result_lines(record: RunRecord) -> list[str]:
    """Method, task, status and numbers of a run, a few short lines."""
    metric, key = record.metric, record.key
    counted = counts_text(sum((record.parameters or {}).values()), record.stored)
    status = "not finished" if record.status == "running" else record.status
    lines = [f"{key.method} on {key.task}: {status}, {counted or 0} trained parameters, {record.seconds:.1f} s"]
    if record.status == "running" and record.curve:
        last = record.curve[-1]
        lines.append(
            f"  validation  {metric} {last[metric]:.4f}  (after epoch {last['epoch']:.0f} of {(record.recipe or {})['epochs']})"
        )
    if record.done:  # the winner of a cross-validation trains on all examples, so it has no test examples
        majority = (
            ""
            if record.majority is None
            else f"  (always the most frequent training class: accuracy {record.majority:.4f})"
        )
        how = f"  (mean of {len(record.members)} runs' predictions)" if record.members else ""
        if record.recipe and record.validation_metrics and not record.members:
            how = f"  (epoch {record.validation_metrics['epoch']:.0f} of {record.recipe['epochs']})"
        if record.validation is not None:
            lines.append(f"  validation  {metric} {record.validation:.4f}{how}")
        if record.test_metrics:
            tested = ", ".join(f"{name} {value:.4f}" for name, value in record.test_metrics.items())
            lines.append(f"  test {tested}{majority}")
    return lines


def parameter_table(folder: Path, description: "Description") -> Table:
    """Parameters and bytes of each change, and of the head; reads the header of the file alone, and no torch."""
    from unipelt.checkpoint.description import equations
    from unipelt.spec import Mixture

    mixture = Mixture.from_dict(description.mixture)
    formulas = equations(mixture, description.base["model_type"])
    numbers: dict[str, tuple[int, int]] = dict.fromkeys(formulas, (0, 0))
    for path, entry in tensors_header(folder / TENSORS).items():
        if path != "__metadata__":
            owner = Location.parse(path.removeprefix("unipelt.")).change
            count, size = numbers.get(owner, (0, 0))
            begin, end = entry["data_offsets"]
            numbers[owner] = count + prod(entry["shape"]), size + end - begin
    table = Table(box=None, pad_edge=False)
    for column in ("change", "stored parameters", "kB", "equation"):
        table.add_column(column, justify="right" if column in ("stored parameters", "kB") else "left")
    for name, (count, size) in numbers.items():
        table.add_row(name, f"{count:,}", f"{size / 1e3:.1f}", formulas.get(name, ""))
    return table


def gate_table(values: Mapping[str, "Tensor"]) -> Table:
    """One row per layer, one column per gated change. values: `[example]` by the gate's location."""
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    for path, value in values.items():
        layer, change = gate_labels(path)
        cells[layer][change] = f"{value.mean():.3f} ± {value.std(correction=0):.3f}"
    columns = list(dict.fromkeys(change for row in cells.values() for change in row))
    table = Table(box=None, pad_edge=False)
    table.add_column("layer")
    for column in columns:
        table.add_column(column, justify="right")
    for layer, row in cells.items():
        table.add_row(layer, *(row.get(column, "") for column in columns))
    return table
