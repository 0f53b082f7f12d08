"""Predictions of each method for each test example, from which the sections on classes, calibration and mistakes are computed.

`evidence(store, runs)` returns an `Answered` for each method, in the order of `runs`, which hold one learning rate per method. Everything is
read from the study's file: predictions, targets and logits of each run (`RunRecord`), and the texts of the test examples, which
`unipelt compare` keeps once for each different test set.

- With `--folds`, the test examples of a run are those of its fold, which it was not trained on: `origin` is OUT_OF_FOLD, and the
  entries of one repeat cover every example of the file once.
- Else every seed answers the same held-out test examples: `origin` is TEST; entries of several seeds repeat these examples.

`run` tells entries apart: of one run, targets, predictions, logits and names stand in the order of its test examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from unipelt.report.runs import Run
from unipelt.study.store import Store

OUT_OF_FOLD, TEST = "out-of-fold", "test"


@dataclass(kw_only=True)
class Answered:
    """Predictions of one method. Each list has one entry per example and run, ordered by run."""

    method: str
    origin: str
    """OUT_OF_FOLD or TEST: which examples these are; none of them was trained on by the run that answers"""
    labels: tuple[str, ...]
    """class names, whose index is a prediction or a target; empty for tasks without classes"""
    predictions: list[Any] = field(default_factory=list)
    """a class index, a number, a list of 0 and 1 (multi-label), a list of tags, or a text"""
    targets: list[Any] = field(default_factory=list)
    logits: list[list[float]] = field(default_factory=list)
    """a number per class; empty where a run has none: tasks without classes, and test sets of more than 20,000 numbers"""
    temperatures: dict[int, float] = field(default_factory=dict)
    """by run: what its logits are divided by for probabilities"""
    run: list[int] = field(default_factory=list)
    """seed of the run that answered; with folds, its number: repeat × folds + fold"""
    inputs: dict[str, list[Any]] = field(default_factory=dict)
    """`text`, `text_pair` or `tokens` of each example; empty where the study's file has no texts"""
    names: list[str] = field(default_factory=list)
    """the file and line of each example, such as `reviews.csv, example 3 (line 4)`"""

    def probabilities(self, calibrated: bool = True) -> Float[np.ndarray, "entry label"]:
        """softmax(logits / temperature), or each label's σ where an example may have several; of shape (0, labels) without logits."""
        logits = np.array(self.logits, dtype=np.float64).reshape(len(self.logits), len(self.labels))
        if calibrated and len(logits):
            logits = logits / np.array([[self.temperatures.get(run, 1.0)] for run in self.run])
        if self.targets and isinstance(self.targets[0], list):
            return 1 / (1 + np.exp(-logits))
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
        return powers / powers.sum(axis=-1, keepdims=True)

    def once(self, seed: int) -> "Answered":
        """Each example once: of held-out test examples the answers of one run, of folds those of the first repeat."""
        if self.origin == TEST or not self.names:
            kept = [index for index, run in enumerate(self.run) if run == seed or self.origin != TEST]
        else:
            first: dict[str, int] = {}
            for index, name in enumerate(self.names):
                first.setdefault(name, index)
            kept = [*first.values()]

        def chosen(values: list) -> list:
            return [values[index] for index in kept] if values else []

        parts: dict[str, Any] = {
            name: chosen(getattr(self, name)) for name in ("predictions", "targets", "logits", "run", "names")
        }
        parts["inputs"] = {name: chosen(values) for name, values in self.inputs.items()}
        return replace(self, **parts)


COLUMNS = ("id", "labels", "predictions", "targets", "logits", "rows", "temperature")


def evidence(store: Store, runs: Sequence[Run], folds: bool = False) -> dict[str, Answered]:
    """By method, what its runs answered. runs: finished runs of one task and size, such as `Study.listed`.

    folds: whether their test examples are folds of a cross-validation.
    """
    found: dict[str, Answered] = {}
    rows = {row["id"]: row for row in store.runs(COLUMNS, [run.id for run in runs])}
    for run in sorted(runs, key=lambda run: run.seed):
        row = rows[run.id]
        said, right = row["predictions"], row["targets"]
        if not said or not right or len(said) != len(right):
            continue
        labels = tuple(row["labels"] or ())
        one = found.setdefault(
            run.method, Answered(method=run.method, origin=OUT_OF_FOLD if folds else TEST, labels=labels)
        )
        before = len(one.predictions)
        one.predictions += said
        one.targets += right
        one.run += [run.seed] * len(said)
        if row["temperature"]:
            one.temperatures[run.seed] = row["temperature"]
        one.logits += row["logits"] or [] if len(one.logits) == before else []
        kept = store.examples(str(row["rows"]["test"]["fingerprint"])) if row["rows"] else None
        inputs, names = kept or ({}, [])
        if len(names) == len(said) and len(one.names) == before:
            one.names += names
            for name, values in inputs.items():
                one.inputs.setdefault(name, []).extend(values)
    for one in found.values():  # logits or names of only some runs would not align with the predictions
        one.logits = one.logits if len(one.logits) == len(one.predictions) else []
        if len(one.names) < len(one.predictions):
            one.names, one.inputs = [], {}
    return {run.method: found[run.method] for run in runs if run.method in found}
