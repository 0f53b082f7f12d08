"""What the recommended method answered to each test example, from which the sections on classes, probabilities and mistakes
are computed. Everything is read from the study's file, where `unipelt compare` keeps the texts of each test set once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from unipelt.report.samples import metric_of
from unipelt.report.study import Run
from unipelt.study.store import Store

Probabilities = Float[NDArray[np.float64], "example label"]


@dataclass(frozen=True, kw_only=True)
class PredictedExamples:
    """Each test example once. No run trained on an example that it answers here."""

    method: str
    subject: str
    """how sentences name the examples: `1,000 test examples`; with folds, `1,000 out-of-fold answers`"""
    labels: tuple[str, ...]
    """class names, whose index is a prediction or a target; empty for tasks without classes"""
    predictions: list[Any]
    """a class index, a number, a list of 0 and 1 (multi-label), a list of tags, or a text"""
    targets: list[Any]
    probabilities: Probabilities | None
    """of each class, from logits that are divided by each run's temperature; None for tasks without classes, and test sets of
    more than 20,000 numbers"""
    inputs: dict[str, list[Any]]
    """`text`, `text_pair` or `tokens` of each example; empty where the study's file has no texts"""
    names: list[str]
    """the file and line of each example, such as `reviews.csv, example 3 (line 4)`"""

    @property
    def multi_label(self) -> bool:
        """Whether an example may have several labels."""
        return isinstance(self.targets[0], list) and bool(self.labels)

    @property
    def right(self) -> Bool[NDArray[np.bool_], " example"]:
        """Which examples with one class each are answered rightly."""
        return np.array(self.predictions) == np.array(self.targets)


def predicted_examples(store: Store, runs: Sequence[Run], folds: int = 0) -> PredictedExamples | None:
    """The answers of the run whose model was saved; of a cross-validation, those of every fold of the first repeat.

    runs: finished runs of one method and learning rate. None where they have no predictions.
    """
    chosen = [run for run in runs if run.seed < folds] if folds else [_saved(runs)]
    rows = [
        row
        for row in store.runs(("labels", "predictions", "targets", "logits", "examples", "temperature"), [run.id for run in chosen])
        if row["predictions"] and row["targets"] and len(row["predictions"]) == len(row["targets"])
    ]  # fmt: skip
    if not rows:
        return None
    predictions, targets = ([answer for row in rows for answer in row[name]] for name in ("predictions", "targets"))
    labels = tuple(rows[0]["labels"] or ())
    multi_label = isinstance(targets[0], list)
    has_logits = all(row["logits"] and len(row["logits"]) == len(row["predictions"]) for row in rows)
    probabilities = None
    if has_logits:
        chances = [to_probabilities(row["logits"], multi_label, row["temperature"] or 1.0) for row in rows]
        probabilities = np.concatenate(chances)
    test_sets = [store.noted(row["examples"]["test"]["fingerprint"]) if row["examples"] else None for row in rows]
    stored = [test_set for test_set in test_sets if test_set and test_set["names"]]
    names = [name for test_set in stored for name in test_set["names"]]
    complete = len(names) == len(predictions)
    inputs: dict[str, list] = {}
    if complete:
        inputs = {name: [text for tests in stored for text in tests["inputs"][name]] for name in stored[0]["inputs"]}
    return PredictedExamples(
        method=chosen[0].method, subject=f"{len(targets):,} {'out-of-fold answers' if folds else 'test examples'}", labels=labels,
        predictions=predictions, targets=targets, probabilities=probabilities,
        inputs=inputs, names=names if complete else [],
    )  # fmt: skip


def _saved(runs: Sequence[Run]) -> Run:
    """The run whose model was saved: the best validation metric, the last of equal ones."""
    sign = metric_of(runs[0].record.metric).sign
    candidates = [(sign * run.record.validation, run.seed, run) for run in runs if run.record.validation is not None]
    return max(candidates, key=lambda candidate: candidate[:2])[2] if candidates else runs[0]


def to_probabilities(logits: Sequence[Sequence[float]], multi_label: bool, temperature: float) -> Probabilities:
    """softmax(logits / temperature), or each label's σ where an example may have several."""
    from scipy.special import expit, softmax

    scaled = np.array(logits, dtype=np.float64) / temperature
    return expit(scaled) if multi_label else softmax(scaled, axis=-1)
