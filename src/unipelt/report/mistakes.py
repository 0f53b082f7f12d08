"""The examples that are answered wrongly: the most confident ones first, and those whose label looks wrong."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from unipelt.report.evidence import Answered, Probabilities
from unipelt.report.tables import Block, Cell, Table
from unipelt.tasks.metrics import Metric

LETTERS = 240  # of a text that is shown
CONFIDENT = "The most confident mistakes"
LABEL_NOTE = "Check the label: the predicted class is at least as probable as it is on average for the examples that are labelled with it (confident learning, Northcutt et al. 2021). Many of these labels are right and the model is wrong; but wrong labels are found here first."  # fmt: skip
Found = Iterable[tuple[float, int, list[Cell]]]
"""how bad a mistake is, the index of its example, and its cells"""


def label_looks_wrong(
    probabilities: Probabilities, targets: Int[np.ndarray, " example"]
) -> Bool[np.ndarray, " example"]:
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


def cut(text: str) -> str:
    """A text on one line, cut where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= LETTERS else text[: LETTERS - 1].rstrip() + "…"


def shown_text(inputs: dict[str, list], index: int) -> str:
    """The text of an example on one line, cut where it is long; two texts with a bar between."""
    each = (values[index] for values in inputs.values())
    return cut(" | ".join(one if isinstance(one, str) else " ".join(map(str, one)) for one in each))


def class_mistakes(one: Answered) -> tuple[Table, int]:
    """Every wrongly answered example of a task with one class each, the most confident first; and how many labels are worth
    checking."""
    targets, said = np.array(one.targets), np.array(one.predictions)
    wrong = np.flatnonzero(~one.right).tolist()
    known = one.calibrated
    classes = {i: [Cell(one.labels[targets[i]]), Cell(one.labels[said[i]])] for i in wrong}
    if known is None:
        return _table(one, ["label", "prediction"], ((0.0, i, cells) for i, cells in classes.items())), 0
    doubtful = label_looks_wrong(known, targets)
    found: Found = (
        (known[i, said[i]], i, [*cells, _percent(known[i, said[i]]), _percent(known[i, targets[i]]), Cell("yes" if doubtful[i] else "")])
        for i, cells in classes.items()
    )  # fmt: skip
    columns = ["label", "prediction", "probability, %", "of the label, %", "check the label"]
    return _table(one, columns, found, note=LABEL_NOTE), int(doubtful[wrong].sum())


def label_mistakes(one: Answered) -> Table:
    """Of a task with several labels an example: each label that is missing or wrongly added, the most confident first."""
    targets = np.array(one.targets)
    chances = np.full(targets.shape, np.nan) if one.calibrated is None else one.calibrated
    off = np.nan_to_num(np.abs(chances - targets))
    words = ("no", "yes")
    found = (
        (off[i, j], i, [Cell(one.labels[j]), Cell(words[targets[i, j]]), Cell(words[1 - targets[i, j]]), _percent(chances[i, j])])
        for i, j in zip(*np.nonzero(~one.right))
    )  # fmt: skip
    return _table(one, ["class", "labelled", "predicted", "probability, %"], found)


def number_mistakes(one: Answered) -> Table:
    """Every example of a task of numbers, the largest error first."""
    said = [*map(float, one.predictions)]
    errors = [answer - float(target) for answer, target in zip(said, one.targets)]
    found = (
        (abs(error) if np.isfinite(error) else np.inf, i, [Cell(float(one.targets[i])), Cell(said[i]), Cell(error, signed=True)])
        for i, error in enumerate(errors)
    )  # fmt: skip
    return _table(one, ["label", "prediction", "error"], found, "The largest errors")


def tag_mistakes(one: Answered) -> Table:
    """Every sentence with a wrong tag, those with most of them first: the words whose tags differ."""
    words = next(iter(one.inputs.values()), None)
    found = []
    for i, (right, said) in enumerate(zip(one.targets, one.predictions)):
        differ = [k for k, (a, b) in enumerate(zip(right, said)) if a != b]
        shown = "; ".join(f"{words[i][k] if words else k + 1}: {right[k]} → {said[k]}" for k in differ)
        if differ:
            found.append((len(differ), i, [Cell.count(len(differ)), Cell(cut(shown))]))
    return _table(one, ["wrong tags", "label → prediction"], found, "The most wrong tags")


def text_mistakes(one: Answered, metric: Metric) -> Table:
    """Every example of a task of written texts, the worst by the metric first."""
    each = [metric([said], [right]) for said, right in zip(one.predictions, one.targets)]
    found = (
        (-score, i, [Cell(metric.shown_as * score), Cell(cut(str(one.targets[i]))), Cell(cut(str(one.predictions[i])))])
        for i, score in enumerate(each)
    )
    columns = [metric.name.replace("_", " "), "label", "prediction"]
    return _table(one, columns, found, "The texts furthest from their labels")


def loss_mistakes(one: Answered) -> Table:
    """Every example of a language model, the least expected first: predictions are sums of losses, targets numbers of tokens."""
    each = [(total / max(1, count), count) for total, count in zip(one.predictions, one.targets)]
    found = ((loss, i, [Cell(loss), Cell.count(count)]) for i, (loss, count) in enumerate(each))
    return _table(one, ["loss a token", "tokens"], found, "The least expected answers")


def _percent(share: float) -> Cell:
    """Not a number: nothing is known."""
    return Cell(None if np.isnan(share) else 100 * float(share), digits=0)


def _table(one: Answered, columns: Sequence[str], found: Found, title: str = CONFIDENT, note: str = "") -> Table:
    """The worst mistakes first, each with the number and line of its example, whose file is the same for all, and its text."""
    rows = []
    for _, i, cells in sorted(found, key=lambda mistake: (-round(float(mistake[0]), 9), mistake[1])):
        name = one.names[i].rpartition(", ")[2] if one.names else f"example {i + 1}"
        rows.append([Cell(name), *cells, Cell(shown_text(one.inputs, i) if one.inputs else "")])
    return Table("mistakes", title, ["example", *columns, "text"], [Block("", rows)], [note] if note else [], most=20)
