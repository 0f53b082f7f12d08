"""How good the answers for each class are, and which classes are confused."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from unipelt.report.tables import Block, Cell, Table

MATRIX = 12  # classes whose confusions fit into one table; of more, the most frequent confusions are listed
PAIRS = 20
Array = NDArray[np.int64]


def class_table(targets: Array, predictions: Array, labels: Sequence[str]) -> Table:
    """Precision, recall, F1 and exact counts of each class; targets may be class indices or, with several labels an example,
    rows of 0 and 1."""
    from sklearn.metrics import multilabel_confusion_matrix

    found = multilabel_confusion_matrix(targets, predictions, labels=[*range(len(labels))])
    counts = ((label, right + missed, right + false, right) for label, ((_, false), (missed, right)) in zip(labels, found))  # fmt: skip
    said = "examples that have the label" if targets.ndim > 1 else "examples of the class"
    note = f"Examples: {said}. Predicted: how often the model names it. Precision: the share of these that is right. Recall: the share of its examples that is found. F1: 2 · right / (examples + predicted)."  # fmt: skip
    return _counted("class", "examples", counts, note)


def span_table(targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> Table:
    """Precision, recall, F1 and exact counts of each type of span, such as PER, as conlleval counts them."""
    from seqeval.metrics.sequence_labeling import get_entities

    right, said = ({*get_entities([*map(list, of)])} for of in (targets, predictions))
    kinds = [Counter(span[0] for span in of) for of in (right, said, right & said)]
    counts = ((kind, *(of[kind] for of in kinds)) for kind in sorted(kinds[0] | kinds[1]))
    return _counted("type", "spans", counts, "A span is right where its first word, its last word and its type are.")  # type: ignore[arg-type]


def _counted(what: str, of: str, counts: Iterable[tuple[str, int, int, int]], note: str) -> Table:
    """counts: name, number that there is, number that was predicted, and number that is right."""
    rows = []
    for name, actual, predicted, right in counts:
        shares = ((right, predicted), (right, actual), (2 * right, actual + predicted))
        cells = (Cell(100 * float(part / whole) if whole else None) for part, whole in shares)
        rows.append([Cell(name), *cells, *map(Cell.count, (actual, predicted, right))])
    columns = [what, "precision ×100", "recall ×100", "F1 ×100", of, "predicted", "right"]
    return Table("classes", f"Precision, recall and F1 of each {what}", columns, [Block("", rows)], [note])


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
        wrong = [(-int(counts[i, j]), labels[i], labels[j]) for i, j in zip(*np.nonzero(counts)) if i != j]
        rows = [[Cell(right), Cell(said), Cell.count(-n)] for n, right, said in sorted(wrong)[:PAIRS]]
        columns = ["class", "named as", "examples"]
        return Table("confusion", "The most frequent confusions", columns, [Block("", rows)])
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    marks = np.where(np.eye(len(labels), dtype=bool), "diagonal", "")
    cells = [map(Cell.count, *of) for of in zip(counts, shares, marks)]
    note = "A row is a class, a column what the model says; the diagonal is right. The darker, the larger the share of the row."
    rows = [[Cell(label), *row] for label, row in zip(labels, cells)]
    return Table("confusion", "Which classes are confused", ["class", *labels], [Block("", rows)], [note])
