"""The examples that are answered wrongly: the most confident ones first, and those whose label looks wrong."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from unipelt.report.evidence import Answered, Probabilities
from unipelt.report.tables import Block, Cell, Table
from unipelt.tasks.metrics import Metric

LETTERS = 240  # of a text that is shown
CONFIDENT = "The most confident mistakes"
LABEL_NOTE = "Check the label: the model gives another class at least the average probability that it gives to the examples labelled with that class (confident learning, Northcutt et al. 2021). Many of these labels are right and the model is wrong, but wrong labels are among them."  # fmt: skip
Mistake = tuple[float, int, list[Cell]]
"""how bad it is, the index of its example, and its cells"""


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
    targets, predictions = np.array(one.targets), np.array(one.predictions)
    known, doubtful = one.probabilities, np.zeros(len(targets), bool)
    if known is not None:
        doubtful = label_looks_wrong(known, targets)
    found: list[Mistake] = []
    for i in np.flatnonzero(~one.right).tolist():
        label, said = targets[i], predictions[i]
        of_said, of_label = (np.nan, np.nan) if known is None else (known[i, said], known[i, label])
        cells = [Cell(one.labels[label]), Cell(one.labels[said]), _percent(of_said), _percent(of_label)]
        found.append((np.nan_to_num(of_said), i, [*cells, Cell("yes" if doubtful[i] else "")]))
    columns = ["label", "prediction", "probability, %", "of the label, %", "check the label"]
    return _table(one, columns, found, note=LABEL_NOTE), int(doubtful[~one.right].sum())


def label_mistakes(one: Answered) -> Table:
    """Of a task with several labels an example: each label that is missing or wrongly added, the most confident first."""
    targets, words = np.array(one.targets), ("no", "yes")
    chances = np.full(targets.shape, np.nan) if one.probabilities is None else one.probabilities
    found: list[Mistake] = []
    for i, j in zip(*np.nonzero(~one.right)):
        label = targets[i, j]
        cells = [Cell(one.labels[j]), Cell(words[label]), Cell(words[1 - label]), _percent(chances[i, j])]
        found.append((np.nan_to_num(abs(chances[i, j] - label)), i, cells))
    return _table(one, ["class", "labelled", "predicted", "probability, %"], found)


def number_mistakes(one: Answered) -> Table:
    """Every example of a task of numbers, the largest error first."""
    found: list[Mistake] = []
    for i, (label, said) in enumerate(zip(map(float, one.targets), map(float, one.predictions))):
        found.append((abs(said - label), i, [Cell(label), Cell(said), Cell(said - label, signed=True)]))
    return _table(one, ["label", "prediction", "error"], found, "The largest errors")


def tag_mistakes(one: Answered) -> Table:
    """Every sentence with a wrong tag, those with most of them first: the words whose tags differ."""
    words = next(iter(one.inputs.values()), None)
    found: list[Mistake] = []
    for i, (right, said) in enumerate(zip(one.targets, one.predictions)):
        differ = [k for k, (a, b) in enumerate(zip(right, said)) if a != b]
        shown = "; ".join(f"{words[i][k] if words else k + 1}: {right[k]} → {said[k]}" for k in differ)
        if differ:
            found.append((len(differ), i, [Cell.count(len(differ)), Cell(cut(shown))]))
    return _table(one, ["wrong tags", "label → prediction"], found, "The most wrong tags")


def text_mistakes(one: Answered, metric: Metric) -> Table:
    """Every example of a task of written texts, the worst by the metric first."""
    found: list[Mistake] = []
    for i, (label, said) in enumerate(zip(one.targets, one.predictions)):
        score = metric.shown_as * metric([said], [label])
        found.append((-score, i, [Cell(score), Cell(cut(str(label))), Cell(cut(str(said)))]))
    columns = [metric.name.replace("_", " "), "label", "prediction"]
    return _table(one, columns, found, "The texts furthest from their labels")


def loss_mistakes(one: Answered) -> Table:
    """Every example of a language model, the least expected first: predictions are sums of losses, targets numbers of tokens."""
    found: list[Mistake] = []
    for i, (total, tokens) in enumerate(zip(one.predictions, one.targets)):
        loss = total / max(1, tokens)
        found.append((loss, i, [Cell(loss), Cell.count(tokens)]))
    return _table(one, ["loss a token", "tokens"], found, "The least expected answers")


def _percent(share: float) -> Cell:
    """Not a number: nothing is known."""
    return Cell(None if np.isnan(share) else 100 * float(share), digits=0)


def _table(one: Answered, columns: Sequence[str], found: Iterable[Mistake], title: str = CONFIDENT, note: str = "") -> Table:  # fmt: skip
    """The worst mistakes first, each with the number and line of its example, whose file is the same for all, and its text."""
    rows = []
    for _, i, cells in sorted(found, key=lambda mistake: (-round(float(mistake[0]), 9), mistake[1])):
        name = one.names[i].rpartition(", ")[2] if one.names else f"example {i + 1}"
        rows.append([Cell(name), *cells, Cell(shown_text(one.inputs, i) if one.inputs else "")])
    return Table("mistakes", title, ["example", *columns, "text"], [Block("", rows)], [note] if note else [], most=20)
