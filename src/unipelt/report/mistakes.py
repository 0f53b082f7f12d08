"""The examples that are answered wrongly: the most confident ones first, and those whose label looks wrong."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from unipelt.report.evidence import PredictedExamples, Probabilities
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
    examples, classes = probabilities.shape
    usual = np.array(
        [probabilities[targets == j, j].mean() if (targets == j).any() else np.inf for j in range(classes)]
    )
    confident = np.where(probabilities >= usual, probabilities, -np.inf)
    best = confident.argmax(axis=1)
    of_label = probabilities[np.arange(examples), targets]
    return (best != targets) & (confident[np.arange(examples), best] > of_label)


def cut(text: str) -> str:
    """A text on one line, cut where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= LETTERS else text[: LETTERS - 1].rstrip() + "…"


def shown_text(inputs: dict[str, list], index: int) -> str:
    """The text of an example on one line, cut where it is long; two texts with a bar between."""
    example = (values[index] for values in inputs.values())
    return cut(" | ".join(value if isinstance(value, str) else " ".join(map(str, value)) for value in example))


def class_mistakes(examples: PredictedExamples) -> tuple[Table, int]:
    """Every wrongly answered example of a task with one class each, the most confident first; and how many labels are worth
    checking."""
    targets, predictions, labels = np.array(examples.targets), np.array(examples.predictions), examples.labels
    probabilities, doubtful = examples.probabilities, np.zeros(len(targets), bool)
    if probabilities is not None:
        doubtful = label_looks_wrong(probabilities, targets)
    mistakes: list[Mistake] = []
    for i in np.flatnonzero(~examples.right).tolist():
        label, prediction = targets[i], predictions[i]
        chances = np.full(len(labels), np.nan) if probabilities is None else probabilities[i]
        cells = [Cell(labels[label]), Cell(labels[prediction]), _percent(chances[prediction]), _percent(chances[label])]
        mistakes.append((np.nan_to_num(chances[prediction]), i, [*cells, Cell("yes" if doubtful[i] else "")]))
    columns = ["label", "prediction", "probability, %", "of the label, %", "check the label"]
    return _table(examples, columns, mistakes, note=LABEL_NOTE), int(doubtful[~examples.right].sum())


def label_mistakes(examples: PredictedExamples) -> Table:
    """Of a task with several labels an example: each label that is missing or wrongly added, the most confident first."""
    targets, words = np.array(examples.targets), ("no", "yes")
    probabilities = np.full(targets.shape, np.nan) if examples.probabilities is None else examples.probabilities
    mistakes: list[Mistake] = []
    for i, j in zip(*np.nonzero(~examples.right)):
        label = targets[i, j]
        cells = [Cell(examples.labels[j]), Cell(words[label]), Cell(words[1 - label]), _percent(probabilities[i, j])]
        mistakes.append((np.nan_to_num(abs(probabilities[i, j] - label)), i, cells))
    return _table(examples, ["class", "labelled", "predicted", "probability, %"], mistakes)


def number_mistakes(examples: PredictedExamples) -> Table:
    """Every example of a task of numbers, the largest error first."""
    mistakes: list[Mistake] = []
    for i, (label, prediction) in enumerate(zip(map(float, examples.targets), map(float, examples.predictions))):
        cells = [Cell(label), Cell(prediction), Cell(prediction - label, signed=True)]
        mistakes.append((abs(prediction - label), i, cells))
    return _table(examples, ["label", "prediction", "error"], mistakes, "The largest errors")


def tag_mistakes(examples: PredictedExamples) -> Table:
    """Every sentence with a wrong tag, those with most of them first: the words whose tags differ."""
    words = next(iter(examples.inputs.values()), None)
    mistakes: list[Mistake] = []
    for i, (labels, predicted) in enumerate(zip(examples.targets, examples.predictions)):
        wrong = [k for k, (a, b) in enumerate(zip(labels, predicted)) if a != b]
        shown = "; ".join(f"{words[i][k] if words else k + 1}: {labels[k]} → {predicted[k]}" for k in wrong)
        if wrong:
            mistakes.append((len(wrong), i, [Cell.count(len(wrong)), Cell(cut(shown))]))
    return _table(examples, ["wrong tags", "label → prediction"], mistakes, "The most wrong tags")


def text_mistakes(examples: PredictedExamples, metric: Metric) -> Table:
    """Every example of a task that generates texts, the worst by the metric first."""
    mistakes: list[Mistake] = []
    for i, (label, prediction) in enumerate(zip(examples.targets, examples.predictions)):
        score = metric.display_factor * metric([prediction], [label])
        mistakes.append((-score, i, [Cell(score), Cell(cut(str(label))), Cell(cut(str(prediction)))]))
    columns = [metric.name.replace("_", " "), "label", "prediction"]
    return _table(examples, columns, mistakes, "The texts furthest from their labels")


def loss_mistakes(examples: PredictedExamples) -> Table:
    """Every example of a language model, the least expected first: predictions are sums of losses, targets numbers of tokens."""
    losses = [total / max(1, tokens) for total, tokens in zip(examples.predictions, examples.targets)]
    mistakes = [(losses[i], i, [Cell(losses[i]), Cell.count(n)]) for i, n in enumerate(examples.targets)]
    return _table(examples, ["loss a token", "tokens"], mistakes, "The least expected answers")


def _percent(share: float) -> Cell:
    """Not a number: nothing is known."""
    return Cell(None if np.isnan(share) else 100 * float(share), digits=0)


def _table(examples: PredictedExamples, columns: Sequence[str], mistakes: Iterable[Mistake], title: str = CONFIDENT, note: str = "") -> Table:  # fmt: skip
    """The worst mistakes first, each with the number and line of its example, whose file is the same for all, and its text."""
    rows = []
    for _, i, cells in sorted(mistakes, key=lambda mistake: (-round(float(mistake[0]), 9), mistake[1])):
        name = examples.names[i].rpartition(", ")[2] if examples.names else f"example {i + 1}"
        rows.append([Cell(name), *cells, Cell(shown_text(examples.inputs, i) if examples.inputs else "")])
    return Table(
        "mistakes", title, ["example", *columns, "text"], [Block("", rows)], [note] if note else [], max_rows=20
    )
