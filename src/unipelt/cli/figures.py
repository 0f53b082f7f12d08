"""Figures of a run."""

import io
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unipelt.checkpoint.disk import write_whole
from unipelt.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("pdf", "png", "svg")
LEAST_SPAN = 0.05  # of gate values, from the darkest to the lightest colour: noise stays pale


def kind_of(path: str) -> str:
    """The kind of figure that a file's suffix asks for. Raises UserError for one that cannot be drawn."""
    kind = Path(path).suffix.removeprefix(".").lower()
    if kind not in KINDS:
        raise UserError(
            f"--figure {path}: ends in {Path(path).suffix or 'no suffix'!r}; expected .{', .'.join(KINDS)}, such as gates.png"
        )
    return kind


def draw_gates(values: Mapping[str, "Tensor"], path: str, title: str) -> None:
    """A heat map of mean gate values, layers by changes, into a file; its colours span the values that there are."""
    from unipelt.report.drawing import canvas
    from unipelt.report.figures import heat
    from unipelt.report.names import gate_labels

    means = {gate_labels(location): float(value.mean()) for location, value in values.items()}
    rows, columns = (len({place[axis] for place in means}) for axis in (0, 1))
    low, high = min(means.values()), max(means.values())
    middle, half = (high + low) / 2, max(LEAST_SPAN, high - low) / 2
    with canvas("gates", 1, 1, 1.6 + 1.5 * columns, 1.2 + 0.35 * rows) as (drawing, (panel,)):
        mesh = heat(panel, means, max(0.0, middle - half), min(1.0, middle + half), digits=3)
        drawing.suptitle("\n".join(textwrap.wrap(title, width=24 + 14 * columns)), fontsize=10)
        drawing.colorbar(mesh, label="mean gate")
        drawn = io.BytesIO()
        drawing.savefig(drawn, dpi=150, format=kind_of(path))
    write_whole(Path(path).parent, {Path(path).name: drawn.getvalue()})
