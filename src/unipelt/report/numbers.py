"""How far predicted numbers are off, in the unit of the labels."""

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from unipelt.report.confidence import BLUE
from unipelt.report.drawing import INK, Figure, canvas, finish
from unipelt.report.tables import Block, Cell, Table

FIFTHS = 5
Array = NDArray[np.float64]


def error_table(targets: Float[Array, " example"], predictions: Float[Array, " example"]) -> Table:
    """Errors of all examples, and of each fifth of them by their label: a model may be good only in the middle."""
    order = np.argsort(targets, kind="stable")
    rows = [_row("all", np.arange(len(targets)), targets, predictions)]
    if len(targets) >= 10 * FIFTHS:
        for part in np.array_split(order, FIFTHS):
            low, high = targets[part[0]], targets[part[-1]]
            rows.append(_row(f"{short(low)} to {short(high)}", part, targets, predictions))
    return Table(
        "errors", "Errors in the unit of the labels", ["label", "examples", "mean absolute error", "half are within", "nine in ten are within", "mean error"], [Block("", rows)],
        ["Mean error: prediction less label. If it falls from the first to the last fifth, predictions are drawn to the middle."],
    )  # fmt: skip


def short(value: float) -> str:
    """A number to four digits, without an exponent where it is large."""
    return (f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}").replace("-", "−")


def _row(name: str, which: NDArray[np.intp], targets: Array, predictions: Array) -> list[Cell]:
    error = predictions[which] - targets[which]
    off = np.abs(error)
    digits = min(6, max(0, 2 - int(np.floor(np.log10(max(float(off.mean()), 1e-12))))))
    values = [float(value) for value in (off.mean(), *np.quantile(off, (0.5, 0.9)))]
    mean = Cell(float(error.mean()), digits=digits, signed=True)
    return [Cell(name), Cell.count(len(which)), *(Cell(value, digits=digits) for value in values), mean]


def residual_figure(targets: Array, predictions: Array) -> Figure:
    """Left, prediction against label; right, error against prediction."""
    with canvas("residuals", 1, 2, 7.6, 3.3) as (drawing, (left, right)):
        dots: dict[str, Any] = {"color": BLUE, "markersize": 3, "alpha": 0.5, "markeredgewidth": 0}
        left.plot(targets, predictions, "o", **dots)
        ends = [float(targets.min()), float(targets.max())]
        left.plot(ends, ends, color=INK, linewidth=0.8, linestyle="--")
        left.set(xlabel="label", ylabel="prediction")
        left.set_title("Prediction and label")
        right.plot(predictions, predictions - targets, "o", **dots)
        right.axhline(0, color=INK, linewidth=0.8, linestyle="--")
        right.set(xlabel="prediction", ylabel="prediction − label")
        right.set_title("Residuals")
        for panel in (left, right):
            panel.grid()
            panel.locator_params(nbins=6)
        caption = "Each dot is an example. On the dashed line the prediction is right."
        return finish("residuals", "Predictions and their errors", caption, drawing)
