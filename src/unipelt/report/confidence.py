"""Whether probabilities can be trusted: calibration, and how much is answered above a threshold."""

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from unipelt.report.drawing import BLUE, INK, Figure, canvas, finish
from unipelt.report.evidence import PredictedExamples, Probabilities
from unipelt.report.tables import Block, Cell, Section, Table

BINS = 10
THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
HEADING = "Can the probabilities be trusted?"
SURE = 0.8  # the threshold that the sentence names
Confidence = Float[NDArray[np.float64], " answer"]
Right = Bool[NDArray[np.bool_], " answer"]


def confidence_section(examples: PredictedExamples, probabilities: Probabilities) -> Section:
    """How far the probabilities are off; of one class an example, what a threshold leaves."""
    if examples.multi_label:
        confidence, right, kind_of_answer = probabilities.ravel(), np.array(examples.targets).ravel() == 1, "a label"
    else:
        confidence, right, kind_of_answer = probabilities.max(axis=1), examples.right, "the predicted class"
    error = 100 * expected_calibration_error(confidence, right)
    sentence = f"The probability of {kind_of_answer} is off by {error:.1f} points on average (expected calibration error, after calibration)."
    if examples.multi_label:
        return Section(HEADING, [confidence_figure(confidence, right)], sentence)
    answered = confidence >= SURE
    share_right = f", and {100 * right[answered].mean():.0f} % of these answers are right" if answered.any() else ""
    answered_share = f"{100 * answered.mean():.0f} % of the examples"
    sentence += f" With --min-confidence {SURE:g}, {answered_share} get an answer{share_right}."
    return Section(HEADING, [confidence_figure(confidence, right), confidence_table(confidence, right)], sentence)


def reliability(confidence: Confidence, right: Right) -> tuple[Float[NDArray[np.float64], " bin"], ...]:
    """Number, mean probability and share that is right of the answers in each of ten bins of equal width that has any."""
    bin_of = np.minimum((confidence * BINS).astype(int), BINS - 1)
    number, *sums = (np.bincount(bin_of, weights, BINS) for weights in (np.ones_like(confidence), confidence, right))
    used = number > 0
    return number[used].astype(float), *(total[used] / number[used] for total in sums)


def expected_calibration_error(confidence: Confidence, right: Right) -> float:
    """Σ n_b |right_b − confidence_b| / n          Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599, eq. 3"""
    counts, stated, share_right = reliability(confidence, right)
    return float(np.average(np.abs(share_right - stated), weights=counts))


def confidence_table(confidence: Confidence, right: Right) -> Table:
    """By threshold: how many examples are answered, and how many of these answers are right; counts are exact."""
    rows = []
    for threshold in THRESHOLDS:
        answered = confidence >= threshold
        number, right_answers = int(answered.sum()), int((answered & right).sum())
        shares = [100 * number / len(answered), 100 * right_answers / number if number else None]
        counts = (number, right_answers, number - right_answers)
        cells = [Cell(share, digits=1) for share in shares]
        rows.append([Cell(threshold, digits=-1), *cells, *map(Cell.count, counts)])
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
