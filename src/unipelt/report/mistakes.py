"""The examples that are answered wrongly: the most confident ones first, and those whose label looks wrong."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from unipelt.report.evidence import Answered
from unipelt.report.tables import Block, Cell, Table
from unipelt.tasks.metrics import Metric

LETTERS = 240  # of a text that is shown
Array = NDArray[np.float64]


def label_looks_wrong(probabilities: Float[Array, "example label"], targets: Int[np.ndarray, " example"]) -> Bool[np.ndarray, " example"]:  # fmt: skip
    """Whether another class than the label is at least as probable as it usually is for examples labelled with it, and more
    probable than the label.

    Threshold of class j: mean of p(j) over the examples labelled j          Northcutt et al. 2021, arXiv:1911.00068, eq. 2
    The probabilities must come from models that did not train on these examples.
    """
    number, labels = probabilities.shape
    usual = np.array([probabilities[targets == j, j].mean() if (targets == j).any() else np.inf for j in range(labels)])
    sure = np.where(probabilities >= usual, probabilities, -np.inf)
    best = sure.argmax(axis=1)
    given = probabilities[np.arange(number), targets]
    return (best != targets) & (sure[np.arange(number), best] > given)


def shown_text(inputs: dict[str, list], index: int) -> str:
    """The text of an example on one line, cut where it is long; two texts with a bar between."""
    texts = [
        value[index] if isinstance(value[index], str) else " ".join(map(str, value[index])) for value in inputs.values()
    ]
    text = " | ".join(" ".join(one.split()) for one in texts)
    return text if len(text) <= LETTERS else text[: LETTERS - 1].rstrip() + "…"


def class_mistakes(one: Answered, probabilities: Array | None) -> Table:
    """Every wrongly answered example of a task with one class each, the most confident first."""
    targets, said = np.array(one.targets), np.array(one.predictions)
    wrong = np.flatnonzero(targets != said)
    sure = np.zeros(len(targets)) if probabilities is None else probabilities[np.arange(len(said)), said]
    doubtful = np.zeros(len(targets), bool) if probabilities is None else label_looks_wrong(probabilities, targets)
    order = sorted(wrong.tolist(), key=lambda i: (-round(float(sure[i]), 9), i))
    rows = []
    for i in order:
        known = [] if probabilities is None else [Cell(100 * float(sure[i]), digits=0), Cell(100 * float(probabilities[i, targets[i]]), digits=0)]  # fmt: skip
        rows.append([
            Cell(_name(one, i)), Cell(one.labels[targets[i]]), Cell(one.labels[said[i]]), *known,
            *([] if probabilities is None else [Cell("yes" if doubtful[i] else "")]), Cell(_text(one, i)),
        ])  # fmt: skip
    more = [] if probabilities is None else ["probability, %", "of the label, %", "check the label"]
    note = "Check the label: the predicted class is at least as probable as it is on average for the examples that are labelled with it (confident learning, Northcutt et al. 2021). Many of these labels are right and the model is wrong; but wrong labels are found here first."  # fmt: skip
    return _table(["example", "label", "prediction", *more, "text"], rows, *[note] * bool(more))


def label_mistakes(one: Answered, probabilities: Array | None) -> Table:
    """Of a task with several labels an example: each label that is missing or wrongly added, the most confident first."""
    targets, said = np.array(one.targets), np.array(one.predictions)
    found = []
    for i, j in zip(*np.nonzero(targets != said)):
        chance = None if probabilities is None else float(probabilities[i, j])
        off = 0.0 if chance is None else abs(chance - targets[i, j])
        found.append((-round(off, 9), int(i), int(j), chance))
    rows = [
        [Cell(_name(one, i)), Cell(one.labels[j]), Cell("yes" if targets[i, j] else "no"), Cell("yes" if said[i, j] else "no"),
         Cell(None if chance is None else 100 * chance, digits=0), Cell(_text(one, i))]
        for _, i, j, chance in sorted(found)
    ]  # fmt: skip
    return _table(["example", "class", "labelled", "predicted", "probability, %", "text"], rows)


def number_mistakes(one: Answered) -> Table:
    """Every example of a task of numbers, the largest error first."""
    errors = np.array(one.predictions, float) - np.array(one.targets, float)
    order = sorted(range(len(errors)), key=lambda i: (-abs(errors[i]) if np.isfinite(errors[i]) else -np.inf, i))
    rows = [
        [Cell(_name(one, i)), Cell(float(one.targets[i])), Cell(float(one.predictions[i])), Cell(float(errors[i]), signed=True), Cell(_text(one, i))]
        for i in order
    ]  # fmt: skip
    return _table(["example", "label", "prediction", "error", "text"], rows, title="The largest errors")


def tag_mistakes(one: Answered) -> Table:
    """Every sentence with a wrong tag, those with most of them first: the words whose tags differ."""
    words = next(iter(one.inputs.values()), None)
    found = []
    for i, (right, said) in enumerate(zip(one.targets, one.predictions)):
        differ = [k for k, (a, b) in enumerate(zip(right, said)) if a != b]
        if differ:
            shown = [f"{words[i][k] if words else k + 1}: {right[k]} → {said[k]}" for k in differ]
            found.append((-len(differ), i, "; ".join(shown)))
    rows = [[Cell(_name(one, i)), Cell(float(-n), digits=0), Cell(_cut(said)), Cell(_text(one, i))] for n, i, said in sorted(found)]  # fmt: skip
    return _table(["example", "wrong tags", "label → prediction", "text"], rows, title="The most wrong tags")


def text_mistakes(one: Answered, metric: Metric) -> Table:
    """Every example of a task of written texts, the worst by the metric first."""
    each = [metric([said], [right]) for said, right in zip(one.predictions, one.targets)]
    order = sorted(range(len(each)), key=lambda i: (each[i], i))
    rows = [
        [Cell(_name(one, i)), Cell(metric.shown_as * each[i]), Cell(_cut(str(one.targets[i]))), Cell(_cut(str(one.predictions[i]))), Cell(_text(one, i))]
        for i in order
    ]  # fmt: skip
    return _table(
        ["example", metric.name.replace("_", " "), "label", "prediction", "text"],
        rows,
        title="The texts furthest from their labels",
    )


def loss_mistakes(one: Answered) -> Table:
    """Every example of a language model, the least expected first: predictions are sums of losses, targets numbers of tokens."""
    each = [total / max(1, count) for total, count in zip(one.predictions, one.targets)]
    order = sorted(range(len(each)), key=lambda i: (-each[i], i))
    rows = [
        [Cell(_name(one, i)), Cell(each[i]), Cell(float(one.targets[i]), digits=0), Cell(_text(one, i))] for i in order
    ]
    return _table(["example", "loss a token", "tokens", "text"], rows, title="The least expected answers")


def _table(
    columns: Sequence[str], rows: list[list[Cell]], *notes: str, title: str = "The most confident mistakes"
) -> Table:
    return Table("mistakes", title, columns, [Block("", rows)], notes, most=20)


def _name(one: Answered, index: int) -> str:
    """The number and line of an example, without the name of the file, which is the same for all."""
    return one.names[index].rpartition(", ")[2] if one.names else f"example {index + 1}"


def _text(one: Answered, index: int) -> str:
    return shown_text(one.inputs, index) if one.inputs else ""


def _cut(text: str) -> str:
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"
