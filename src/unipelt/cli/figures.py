"""Figures of a run."""

import io
import textwrap
from pathlib import Path
from typing import Any

from unipelt.checkpoint.disk import write_whole
from unipelt.cli.tables import by_layer
from unipelt.errors import UserError

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


def draw_gates(values: dict[str, Any], path: str, title: str) -> None:
    """A heat map of mean gate values, layers by changes, into a file; its colours span the values that there are."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows, columns = by_layer(values)
    means = [[float(cells[c].mean()) if c in cells else float("nan") for c in columns] for cells in rows.values()]
    known = [value for line in means for value in line if value == value]  # a layer may lack a gate
    middle, half = (max(known) + min(known)) / 2, max(LEAST_SPAN, max(known) - min(known)) / 2
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    figure, axes = pyplot.subplots(figsize=(1.6 + 1.5 * len(columns), 1.2 + 0.35 * len(rows)), layout="constrained")
    image = axes.imshow(means, vmin=low, vmax=high, cmap="viridis", aspect="auto")
    figure.suptitle("\n".join(textwrap.wrap(title, width=24 + 14 * len(columns))), fontsize=10)
    axes.set_xticks(range(len(columns)), [c.replace("_", " ") for c in columns], rotation=20, ha="right")
    axes.set_yticks(range(len(rows)), list(rows))
    for y, line in enumerate(means):
        for x, value in enumerate(line):
            if value == value:
                ink = "white" if value < low + 0.6 * (high - low) else "black"  # viridis is dark up to there
                axes.text(x, y, f"{value:.3f}", ha="center", va="center", color=ink, fontsize=8)
    figure.colorbar(image, label="mean gate")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150, format=kind_of(path))
    pyplot.close(figure)
    write_whole(Path(path).parent, {Path(path).name: drawn.getvalue()})
