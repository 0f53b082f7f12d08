"""Whether probabilities can be trusted: calibration, and how much is answered above a threshold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from unipelt.report.drawing import INK, Figure, canvas, finish
from unipelt.report.tables import Block, Cell, Table

BINS = 10
THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
BLUE, RED = "#3b78c3", "#d6455d"  # 3:1 at least on white and on the dark page
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """Answers with a probability in one of ten ranges."""

    number: int
    confidence: float
    """mean probability"""
    right: float
    """share that is right"""


def bins_of(confidence: Float[Array, " answer"], right: Bool[np.ndarray, " answer"]) -> list[Bin]:
    """Ten bins of equal width; those without answers are left out."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    found = []
    for index in range(BINS):
        here = place == index
        if n := int(here.sum()):
            found.append(Bin(n, float(confidence[here].mean()), float(right[here].mean())))
    return found


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Σ n_b |right_b − confidence_b| / n          Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599, eq. 3"""
    whole = sum(one.number for one in bins)
    return sum(one.number * abs(one.right - one.confidence) for one in bins) / whole


def confidence_table(confidence: Array, right: NDArray[np.bool_]) -> Table:
    """By threshold: how many examples are answered, and how many of these answers are right; counts are exact."""
    rows = []
    for least in THRESHOLDS:
        kept = confidence >= least
        number, good = int(kept.sum()), int((kept & right).sum())
        share, good_share = number / len(kept), good / number if number else None
        rows.append([
            Cell(least, digits=-1), Cell(100 * share, digits=1), Cell(None if good_share is None else 100 * good_share, digits=1),
            *(Cell(float(n), digits=0) for n in (number, good, number - good)),
        ])  # fmt: skip
    return Table(
        "thresholds", "Answer only above a threshold", ["--min-confidence", "answered, %", "right of these, %", "answered", "right", "wrong"], [Block("", rows)],
        ["`unipelt predict --min-confidence` leaves the prediction blank where no class is as probable."],
    )  # fmt: skip


def confidence_figure(
    before: Sequence[Bin], after: Sequence[Bin], confidence: Array, right: NDArray[np.bool_], thresholds: bool
) -> Figure:
    """Left, how often answers of a probability are right; right, what a threshold leaves, if that is asked for."""
    with canvas("confidence", 1, 1 + thresholds, 7.6 if thresholds else 4.0, 3.3) as (drawing, (left, *others)):
        left.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--", label="as often as said")
        for bins, colour, label, mark in ((before, BLUE, "before calibration", "o"), (after, RED, "after", "D")):
            if bins:
                left.plot([b.confidence for b in bins], [b.right for b in bins], mark, color=colour, label=label, markersize=5, linestyle="-", linewidth=1)  # fmt: skip
        left.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="probability that the model gives", ylabel="share that is right")
        left.set_title("Reliability")
        left.grid()
        left.legend(loc="lower right", fontsize=8)
        for panel in others:
            _coverage(panel, confidence, right)
        caption = "The nearer to the dashed line, the better the probabilities; dots are bins of probability that have examples."
        caption += " Right: what remains answered where predictions below the threshold are left blank." * thresholds
        return finish("confidence", "Probabilities and thresholds", caption, drawing)


def _coverage(panel: Any, confidence: Array, right: NDArray[np.bool_]) -> None:
    grid = np.unique(np.concatenate([[0.0], np.quantile(confidence, np.linspace(0, 0.99, 100))]))
    kept = [confidence >= least for least in grid]
    panel.plot(grid, [one.mean() for one in kept], color=BLUE, label="answered", drawstyle="steps-post")
    panel.plot(grid, [right[one].mean() for one in kept], color=RED, label="right of these", linestyle="--")
    panel.set(
        xlim=(min(0.95, float(grid[1:].min(initial=0.5))), 1),
        ylim=(0, 1.02),
        xlabel="threshold (--min-confidence)",
        ylabel="share",
    )
    panel.set_title("Threshold and coverage")
    panel.grid()
    panel.legend(loc="lower left", fontsize=8)


def calibration_sentence(before: float, after: float, temperatures: Sequence[float], answers: str) -> str:
    """How far probabilities are off, in points, and what the temperatures of the models did."""
    fitted = ""
    if any(one != 1 for one in temperatures):
        ends = dict.fromkeys(f"{one:.2f}" for one in (min(temperatures), max(temperatures)))
        which = f"{'temperatures' if len(ends) > 1 else 'a temperature'} of {' to '.join(ends)}"
        fitted = f"; {100 * before:.1f} before they were calibrated with {which}, fitted on examples outside training and kept with the model"  # fmt: skip
    return f"The probability of {answers} is off by {100 * after:.1f} points on average (expected calibration error{fitted})."  # fmt: skip
