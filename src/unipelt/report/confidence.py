"""Whether probabilities can be trusted: calibration, and how much is answered above a threshold."""

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from unipelt.report.drawing import BLUE, INK, Figure, canvas, finish
from unipelt.report.evidence import Answered, Probabilities
from unipelt.report.tables import Block, Cell, Section, Table

BINS = 10
THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
HEADING = "Can the probabilities be trusted?"
SURE = 0.8  # the threshold that the sentence names
Confidence = Float[NDArray[np.float64], " answer"]
Right = Bool[NDArray[np.bool_], " answer"]


def confidence_section(one: Answered, probabilities: Probabilities) -> Section:
    """How far the probabilities are off; of one class an example, what a threshold leaves."""
    if one.several:
        confidence, right, answers = probabilities.ravel(), np.array(one.targets).ravel() == 1, "a label"
    else:
        confidence, right, answers = probabilities.max(axis=1), one.right, "the predicted class"
    off = 100 * expected_calibration_error(confidence, right)
    say = f"The probability of {answers} is off by {off:.1f} points on average (expected calibration error, after calibration)."
    if one.several:
        return Section(HEADING, [confidence_figure(confidence, right)], say)
    kept = confidence >= SURE
    good = f", and {100 * right[kept].mean():.0f} % of these answers are right" if kept.any() else ""
    say += f" With --min-confidence {SURE:g}, {100 * kept.mean():.0f} % of the examples get an answer{good}."
    return Section(HEADING, [confidence_figure(confidence, right), confidence_table(confidence, right)], say)


def reliability(confidence: Confidence, right: Right) -> tuple[Float[NDArray[np.float64], " bin"], ...]:
    """Number, mean probability and share that is right of the answers in each of ten bins of equal width that has any."""
    bin_of = np.minimum((confidence * BINS).astype(int), BINS - 1)
    number, *sums = (np.bincount(bin_of, weights, BINS) for weights in (np.ones_like(confidence), confidence, right))
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


def confidence_figure(confidence: Confidence, right: Right) -> Figure:
    """How often answers of a probability are right."""
    with canvas("confidence", 1, 1, 4.0, 3.3) as (drawing, (panel,)):
        _, probability, share = reliability(confidence, right)
        panel.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--")
        panel.plot(probability, share, "o-", color=BLUE, markersize=5, linewidth=1)
        panel.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="probability that the model gives", ylabel="share that is right")
        panel.grid()
        caption = "The nearer to the dashed line, the better the probabilities; dots are bins of probability that have examples."
        return finish("confidence", "Reliability of the probabilities", caption, drawing)
