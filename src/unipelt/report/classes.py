"""How good the answers for each class are, and which classes are confused."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unipelt.report.tables import Block, Cell, Table

MATRIX = 12  # classes whose confusions fit into one table; of more, the most frequent confusions are listed
PAIRS = 20
Array = NDArray[np.int64]


def class_table(targets: Array, predictions: Array, labels: Sequence[str]) -> Table:
    """Precision, recall, F1 and exact counts of each class; targets may be class indices or, with several labels an example,
    rows of 0 and 1."""
    from sklearn.metrics import multilabel_confusion_matrix, precision_recall_fscore_support

    several = targets.ndim > 1
    which = [*range(len(labels))]
    found = precision_recall_fscore_support(targets, predictions, labels=which, zero_division=0)
    counts = multilabel_confusion_matrix(targets, predictions, labels=which)
    rows = []
    for label, precision, recall, f1, ((_, false), (missed, right)) in zip(labels, *found[:3], counts):
        predicted, actual = int(right + false), int(right + missed)
        shares = [
            Cell(100 * precision if predicted else None), Cell(100 * recall if actual else None),
            Cell(100 * f1 if predicted or actual else None),
        ]  # fmt: skip
        rows.append([Cell(label), *shares, *(Cell(float(n), digits=0) for n in (actual, predicted, right))])
    said = "examples that have the label" if several else "examples of the class"
    return Table(
        "classes", "Precision, recall and F1 of each class", ["class", "precision ×100", "recall ×100", "F1 ×100", "examples", "predicted", "right"], [Block("", rows)],
        [f"Examples: {said}. Predicted: how often the model names it. Precision: the share of these that is right. Recall: the share of its examples that is found. F1: 2 · right / (examples + predicted)."],
    )  # fmt: skip


def worst_class(table: Table) -> str:
    """A sentence about the class with the lowest F1; empty where all are found equally well."""
    known = [(row[3].value, row[0].text) for _, row in table.rows if isinstance(row[3].value, float)]
    if len(known) < 2 or min(known)[0] == max(known)[0]:
        return ""
    (low, worst), (high, best) = min(known), max(known)
    return f"{best!r} is recognised best (F1 {high:.0f}), {worst!r} worst (F1 {low:.0f})."


def confusion_table(targets: Array, predictions: Array, labels: Sequence[str]) -> Table:
    """How many examples of each class are named as which class; of many classes, the most frequent confusions."""
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(targets, predictions, labels=[*range(len(labels))])
    if len(labels) > MATRIX:
        wrong = [(int(counts[i, j]), labels[i], labels[j]) for i, j in zip(*np.nonzero(counts)) if i != j]
        wrong.sort(key=lambda one: (-one[0], one[1:]))
        rows = [[Cell(right), Cell(said), Cell(float(n), digits=0)] for n, right, said in wrong[:PAIRS]]
        columns = ["class", "named as", "examples"]
        return Table("confusion", "The most frequent confusions", columns, [Block("", rows)])
    of = counts.sum(axis=1)
    rows = [
        [
            Cell(label),
            *(Cell(float(n), digits=0, shade=n / max(1, of[i]), mark="diagonal" if i == j else "") for j, n in enumerate(counts[i])),
        ]
        for i, label in enumerate(labels)
    ]  # fmt: skip
    note = "A row is a class, a column what the model says; the diagonal is right. The darker, the larger the share of the row."
    return Table("confusion", "Which classes are confused", ["class", *labels], [Block("", rows)], [note])


def span_table(targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> Table:
    """Precision, recall, F1 and exact counts of each type of span, such as PER, as conlleval counts them."""
    from seqeval.metrics.sequence_labeling import get_entities

    right = {*get_entities([*map(list, targets)])}
    said = {*get_entities([*map(list, predictions)])}
    rows = []
    for kind in sorted({one[0] for one in right | said}):
        actual, predicted, both = (sum(one[0] == kind for one in of) for of in (right, said, right & said))
        shares = [(both, predicted), (both, actual), (2 * both, actual + predicted)]
        cells = [Cell(100 * part / whole if whole else None) for part, whole in shares]
        rows.append([Cell(kind), *cells, *(Cell(float(n), digits=0) for n in (actual, predicted, both))])
    return Table(
        "classes", "Precision, recall and F1 of each type", ["type", "precision ×100", "recall ×100", "F1 ×100", "spans", "predicted", "right"], [Block("", rows)],
        ["A span is right where its first word, its last word and its type are."],
    )  # fmt: skip
