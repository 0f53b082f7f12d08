"""Figures of a run."""

from typing import Any

from unipelt.cli.tables import by_layer
from unipelt.errors import UserError


def draw_gates(values: dict[str, Any], path: str) -> None:
    """A heat map of mean gate values, layers by changes, into a file. Raises UserError for a kind of file it cannot write."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows, columns = by_layer(values)
    means = [[float(cells[c].mean()) if c in cells else float("nan") for c in columns] for cells in rows.values()]
    figure, axes = pyplot.subplots(figsize=(1.6 + 1.5 * len(columns), 1.2 + 0.35 * len(rows)), layout="constrained")
    image = axes.imshow(means, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(columns)), [c.replace("_", " ") for c in columns], rotation=20, ha="right")
    axes.set_yticks(range(len(rows)), list(rows))
    for y, line in enumerate(means):
        for x, value in enumerate(line):
            axes.text(
                x, y, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black", fontsize=8
            )
    figure.colorbar(image, label="mean gate")
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise UserError(f"--figure {path}: {error}") from None
    finally:
        pyplot.close(figure)
