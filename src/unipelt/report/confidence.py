"""Whether probabilities can be trusted: calibration, and how much is answered above a threshold."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from unipelt.report.drawing import INK, Figure, canvas, finish
from unipelt.report.evidence import Answered, Probabilities
from unipelt.report.tables import Block, Cell, Section, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 10
THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
SURE = 0.8  # the threshold that the sentence names
BLUE, RED = "#3b78c3", "#d6455d"  # 3:1 at least on white and on the dark page
Confidence = Float[NDArray[np.float64], " answer"]
Right = Bool[NDArray[np.bool_], " answer"]


def confidence_section(one: Answered, raw: Probabilities, calibrated: Probabilities) -> Section:
    """How far the probabilities are off before and after calibration; of one class an example, what a threshold leaves."""
    if one.several:
        before, after, right = raw.ravel(), calibrated.ravel(), np.array(one.targets).ravel() == 1
    else:
        before, after, right = raw.max(axis=1), calibrated.max(axis=1), one.right
    off, was = (100 * expected_calibration_error(of, right) for of in (after, before))
    fitted = any(temperature != 1 for temperature in one.temperatures)
    said = "expected calibration error"
    if fitted:
        ends = dict.fromkeys(f"{end:.2f}" for end in (min(one.temperatures), max(one.temperatures)))
        which = f"{'temperatures' if len(ends) > 1 else 'a temperature'} of {' to '.join(ends)}"
        said += f"; {was:.1f} before they were calibrated with {which}, fitted on examples outside training and kept with the model"  # fmt: skip
    answers = "a label" if one.several else "the predicted class"
    say = f"The probability of {answers} is off by {off:.1f} points on average ({said})."
    figure = confidence_figure(before if fitted else None, after, right, not one.several)
    if one.several:
        return Section("Can the probabilities be trusted?", [figure], say)
    kept = after >= SURE
    good = f", and {100 * right[kept].mean():.0f} % of these answers are right" if kept.any() else ""
    say += f" With --min-confidence {SURE:g}, {100 * kept.mean():.0f} % of the examples get an answer{good}."
    return Section("Can the probabilities be trusted?", [figure, confidence_table(after, right)], say)


def reliability(confidence: Confidence, right: Right) -> tuple[Float[NDArray[np.float64], " bin"], ...]:
    """Number, mean probability and share that is right of the answers in each of ten bins of equal width that has any."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    number, *sums = (np.bincount(place, weights, BINS) for weights in (np.ones_like(confidence), confidence, right))
    used = number > 0
    return number[used].astype(float), *(of[used] / number[used] for of in sums)


def expected_calibration_error(confidence: Confidence, right: Right) -> float:
    """Σ n_b |right_b − confidence_b| / n          Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599, eq. 3"""
    number, said, true = reliability(confidence, right)
    return float(np.average(np.abs(true - said), weights=number))


def confidence_table(confidence: Confidence, right: Right) -> Table:
    """By threshold: how many examples are answered, and how many of these answers are right; counts are exact."""
    rows = []
    for least in THRESHOLDS:
        kept = confidence >= least
        number, good = int(kept.sum()), int((kept & right).sum())
        shares = [100 * number / len(kept), 100 * good / number if number else None]
        counts = (number, good, number - good)
        rows.append([Cell(least, digits=-1), *(Cell(share, digits=1) for share in shares), *map(Cell.count, counts)])
    return Table(
        "thresholds", "Answer only above a threshold", ["--min-confidence", "answered, %", "right of these, %", "answered", "right", "wrong"], [Block("", rows)],
        ["`unipelt predict --min-confidence` leaves the prediction blank where no class is as probable."],
    )  # fmt: skip


def confidence_figure(before: Confidence | None, after: Confidence, right: Right, thresholds: bool) -> Figure:
    """Left, how often answers of a probability are right; right, what a threshold leaves, if that is asked for."""
    with canvas("confidence", 1, 1 + thresholds, 7.6 if thresholds else 4.0, 3.3) as (drawing, (left, *others)):
        left.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--", label="as often as said")
        for of, colour, label, mark in ((before, BLUE, "before calibration", "o"), (after, RED, "after", "D")):
            if of is not None:
                left.plot(*reliability(of, right)[1:], mark, color=colour, label=label, markersize=5, linestyle="-", linewidth=1)  # fmt: skip
        left.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="probability that the model gives", ylabel="share that is right")
        left.set_title("Reliability")
        left.grid()
        left.legend(loc="lower right", fontsize=8)
        for panel in others:
            _coverage(panel, after, right)
        caption = "The nearer to the dashed line, the better the probabilities; dots are bins of probability that have examples."
        caption += " Right: what remains answered where predictions below the threshold are left blank." * thresholds
        return finish("confidence", "Probabilities and thresholds", caption, drawing)


def _coverage(panel: "Axes", confidence: Confidence, right: Right) -> None:
    grid = np.unique(np.concatenate([[0.0], np.quantile(confidence, np.linspace(0, 0.99, 100))]))
    kept = [confidence >= least for least in grid]
    panel.plot(grid, [one.mean() for one in kept], color=BLUE, label="answered", drawstyle="steps-post")
    panel.plot(grid, [right[one].mean() for one in kept], color=RED, label="right of these", linestyle="--")
    first = min(0.95, float(grid[1:].min(initial=0.5)))
    panel.set(xlim=(first, 1), ylim=(0, 1.02), xlabel="threshold (--min-confidence)", ylabel="share")
    panel.set_title("Threshold and coverage")
    panel.grid()
    panel.legend(loc="lower left", fontsize=8)
