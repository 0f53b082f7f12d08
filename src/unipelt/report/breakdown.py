"""How good the answers are for each class, type of span or range of numbers, and which classes are confused."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from unipelt.report.drawing import BLUE, INK, Figure, canvas, finish
from unipelt.report.tables import Block, Cell, Table
from unipelt.tasks.metrics import as_bioes

FIFTHS = 5
MATRIX = 12  # classes whose confusions fit into one table; of more, the most frequent confusions are listed
PAIRS = 20
Array = NDArray[np.int64]
Numbers = NDArray[np.float64]


def class_table(targets: Array, predictions: Array, labels: Sequence[str]) -> Table:
    """Precision, recall, F1 and exact counts of each class; targets may be class indices or, with several labels an example,
    rows of 0 and 1."""
    from sklearn.metrics import multilabel_confusion_matrix

    matrices = multilabel_confusion_matrix(targets, predictions, labels=[*range(len(labels))])
    counts = ((label, right + missed, right + false, right) for label, ((_, false), (missed, right)) in zip(labels, matrices))  # fmt: skip
    meaning = "examples that have the label" if targets.ndim > 1 else "examples of the class"
    note = f"Examples: {meaning}. Predicted: examples that the model gives it. Precision: right / predicted. Recall: right / examples. F1: 2 · right / (examples + predicted)."  # fmt: skip
    return _counted("class", "examples", counts, note)


def span_table(targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> Table:
    """Precision, recall, F1 and exact counts of each type of span, such as PER, as conlleval counts them."""
    from seqeval.metrics.sequence_labeling import get_entities

    actual, predicted = ({*get_entities([*map(as_bioes, tags)])} for tags in (targets, predictions))
    by_type = (Counter(span[0] for span in spans) for spans in (actual, predicted, actual & predicted))
    note = "A span is right where its first word, its last word and its type are."
    return _counted("type", "spans", _each_name(*by_type), note)


def tag_table(targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> Table:
    """Precision, recall, F1 and exact counts of each tag, such as NOUN."""
    actual, predicted = ([tag for tags in sentences for tag in tags] for sentences in (targets, predictions))
    right = Counter(tag for tag, other in zip(actual, predicted, strict=True) if tag == other)
    note = "Words: words that have the tag. Predicted: words that the model gives it."
    return _counted("tag", "words", _each_name(Counter(actual), Counter(predicted), right), note)


def _each_name(actual: Counter[str], predicted: Counter[str], right: Counter[str]) -> list[tuple[str, int, int, int]]:
    return [(name, actual[name], predicted[name], right[name]) for name in sorted(actual | predicted)]


def _counted(row_name: str, counted: str, counts: Iterable[tuple[str, int, int, int]], note: str) -> Table:
    """A row per name. counted: what is counted. counts: name, and how many there are, are predicted, and are right."""
    rows = []
    for name, actual, predicted, right in counts:
        shares = ((right, predicted), (right, actual), (2 * right, actual + predicted))
        cells = (Cell(100 * float(part / whole) if whole else None) for part, whole in shares)
        rows.append([Cell(name), *cells, *map(Cell.count, (actual, predicted, right))])
    columns = [row_name, "precision ×100", "recall ×100", "F1 ×100", counted, "predicted", "right"]
    return Table("classes", f"Precision, recall and F1 of each {row_name}", columns, [Block("", rows)], [note])


def worst_class(table: Table) -> str:
    """A sentence about the class with the lowest F1; empty where all are found equally well."""
    known = [(row[3].value, row[0].text) for _, row in table.rows if isinstance(row[3].value, float)]
    if len(known) < 2 or min(known)[0] == max(known)[0]:
        return ""
    (low, worst), (high, best) = min(known), max(known)
    return f"{best!r} is recognised best (F1 {high:.0f}), {worst!r} worst (F1 {low:.0f})."


def confusion_table(targets: Array, predictions: Array, labels: Sequence[str]) -> Table:
    """How many examples of each class are predicted as which class; of many classes, the most frequent confusions."""
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(targets, predictions, labels=[*range(len(labels))])
    if len(labels) > MATRIX:
        wrong = [(-int(counts[i, j]), labels[i], labels[j]) for i, j in zip(*np.nonzero(counts)) if i != j]
        rows = [[Cell(label), Cell(prediction), Cell.count(-n)] for n, label, prediction in sorted(wrong)[:PAIRS]]
        columns = ["label", "prediction", "examples"]
        return Table("confusion", "The most frequent confusions", columns, [Block("", rows)])
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    marks = np.where(np.eye(len(labels), dtype=bool), "diagonal", "")
    cells = [map(Cell.count, *row) for row in zip(counts, shares, marks)]
    note = "Rows are labels, columns predictions; the diagonal is right. The darker a cell, the larger its share of the row."
    rows = [[Cell(label), *row] for label, row in zip(labels, cells)]
    return Table("confusion", "Which classes are confused", ["class", *labels], [Block("", rows)], [note])


def error_table(targets: Float[Numbers, " example"], predictions: Float[Numbers, " example"]) -> Table:
    """Errors of all examples, and of each fifth of them by their label: a model may be good only in the middle."""
    order = np.argsort(targets, kind="stable")
    rows = [_row("all", np.arange(len(targets)), targets, predictions)]
    if len(targets) >= 10 * FIFTHS:
        for fifth in np.array_split(order, FIFTHS):
            low, high = targets[fifth[0]], targets[fifth[-1]]
            rows.append(_row(f"{short(low)} to {short(high)}", fifth, targets, predictions))
    return Table(
        "errors", "Errors in the unit of the labels", ["label", "examples", "mean absolute error", "half are within", "nine in ten are within", "mean error"], [Block("", rows)],
        ["Mean error: prediction less label. Where it falls from the first fifth to the last, predictions are too near to the mean."],
    )  # fmt: skip


def short(value: float) -> str:
    """A number to four digits, without an exponent where it is large."""
    return (f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}").replace("-", "−")


def _row(name: str, examples: NDArray[np.intp], targets: Numbers, predictions: Numbers) -> list[Cell]:
    error = predictions[examples] - targets[examples]
    distance = np.abs(error)
    digits = min(6, max(0, 2 - int(np.floor(np.log10(max(float(distance.mean()), 1e-12))))))
    values = [float(value) for value in (distance.mean(), *np.quantile(distance, (0.5, 0.9)))]
    mean = Cell(float(error.mean()), digits=digits, signed=True)
    return [Cell(name), Cell.count(len(examples)), *(Cell(value, digits=digits) for value in values), mean]


def residual_figure(targets: Numbers, predictions: Numbers) -> Figure:
    """Prediction against label."""
    with canvas("residuals", 1, 1, 4.0, 3.3) as (drawing, (panel,)):
        panel.plot(targets, predictions, "o", color=BLUE, markersize=3, alpha=0.5, markeredgewidth=0)
        ends = [float(targets.min()), float(targets.max())]
        panel.plot(ends, ends, color=INK, linewidth=0.8, linestyle="--")
        panel.set(xlabel="label", ylabel="prediction")
        panel.grid()
        panel.locator_params(nbins=6)
        caption = "Each dot is an example; its distance from the dashed line, up or down, is the error."
        return finish("residuals", "Predictions and labels", caption, drawing)
