"""Metrics: what each measures, its range, and which direction is better. Every number is an exact count or a float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unipelt.errors import DataError
from unipelt.tasks.text_metrics import TEXT_METRICS, exact_match, loss, perplexity

BIOES = {"L-": "E-", "U-": "S-", "M-": "I-"}  # prefixes of BILOU and BMES
Array = NDArray[Any]
Values = Sequence[Any] | Array
"""one prediction, or one target, an example; of a task with several labels an example, a row of 0 and 1 an example"""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that says how good predictions are. `metric(predictions, targets)` computes it."""

    name: str
    function: Callable[[Any, Any], Any]
    """of predictions and targets, one of each per example; of classes and numbers, of arrays"""
    low: float = 0.0
    """the least value it can have"""
    high: float = 1.0
    higher_is_better: bool = True
    of: Literal["classes", "numbers", "tags", "texts", "losses"] = "texts"
    """what is predicted"""
    batched: bool = False
    """whether the function also takes many samples at once: arrays `[…, example]`, broadcast, to values `[…]`"""
    several: Callable[[Array, Array], Array] | None = None
    """the metric where examples may have several labels, of arrays `[label, example]` that say which; None: not defined there"""
    averages: bool = False
    """whether it is the mean of its values of single examples"""

    def __call__(self, predictions: Values, targets: Values) -> float:
        """Raises DataError where there are no examples, or not one prediction for each target."""
        if len(predictions) != len(targets) or len(targets) == 0:
            raise DataError(
                f"{self.name}: {len(predictions)} predictions for {len(targets)} labels; "
                "give one prediction for each of at least one example"
            )
        return self._value(predictions, targets)

    def _value(self, predictions: Values, targets: Values) -> float:
        if self.of not in ("classes", "numbers"):
            return float(self.function(predictions, targets))
        kind = float if self.of == "numbers" else None
        predicted, right = np.asarray(predictions, kind), np.asarray(targets, kind)
        if right.ndim == 1:
            return float(self.function(predicted, right))
        if self.several is None:
            raise DataError("this metric needs one class per example; take accuracy, micro_f1 or macro_f1")
        return float(self.several(predicted.T == 1, right.T == 1))

    @property
    def fast(self) -> bool:
        """Whether a hundred samples cost little more than one."""
        return self.batched or self.averages

    @property
    def sign(self) -> float:
        """1, or −1 where lower is better."""
        return 1.0 if self.higher_is_better else -1.0

    @property
    def display_factor(self) -> float:
        """What tables multiply it with: shares and correlations stand ×100."""
        return 100.0 if self.high == 1.0 else 1.0

    def sampled(self, predictions: Array, targets: Array, samples: NDArray[np.intp]) -> NDArray[np.float64]:
        """The metric `[run, sample]` of predictions `[run, example]` on samples of the examples: indices `[sample, example]`."""
        if self.averages and not self.batched:
            indices = range(len(targets))
            each = [[self._value(run[i : i + 1], targets[i : i + 1]) for i in indices] for run in predictions]
            return np.array(each, dtype=np.float64)[:, samples].mean(axis=-1)
        if not self.batched or targets.ndim > 1:
            values = [[self._value(run[rows], targets[rows]) for rows in samples] for run in predictions]
            return np.array(values, dtype=np.float64)
        size = max(1, 2_000_000 // (samples.shape[1] * len(predictions)))  # samples at once: 2 million values are 16 MB
        pieces = [samples[start : start + size] for start in range(0, len(samples), size)]
        return np.concatenate([self.function(predictions[:, piece], targets[piece]) for piece in pieces], axis=-1)

    def better(self, first: float, second: float) -> bool:
        """Whether the first value is better than the second."""
        return first > second if self.higher_is_better else first < second


def accuracy(predictions: Array, targets: Array) -> Array:
    """Share of examples whose class is right."""
    return (predictions == targets).sum(axis=-1) / targets.shape[-1]


def _subset_accuracy(predictions: Array, targets: Array) -> Array:
    """Share of examples whose whole set of labels is right."""
    return (predictions == targets).all(axis=0).sum() / targets.shape[-1]


def _members(predictions: Array, targets: Array) -> tuple[Array, Array]:
    """Whether each example is in each class, `[…, class, example]`, of the classes that occur."""
    classes = np.unique(np.concatenate([predictions.ravel(), targets.ravel()]))[:, None]
    return predictions[..., None, :] == classes, targets[..., None, :] == classes


def _counts(predictions: Array, targets: Array) -> tuple[Array, Array, Array]:
    """Of each class, `[…, class]`: examples rightly predicted to be in it, predicted to be in it, and in it."""
    return (predictions & targets).sum(axis=-1), predictions.sum(axis=-1), targets.sum(axis=-1)


def _share(part: Array, whole: Array) -> Array:
    """part / whole, 0 where the whole is 0."""
    return part / np.maximum(whole, 1)


def f1(predictions: Array, targets: Array) -> Array:
    """2TP / (2TP + FP + FN) of class 1, GLUE's positive class; 0 without any"""
    right, predicted, actual = _counts(predictions == 1, targets == 1)
    return _share(2 * right, predicted + actual)


def macro_f1(predictions: Array, targets: Array) -> Array:
    """mean of the F1 of every class that occurs in predictions or targets"""
    return _macro(*_members(predictions, targets))


def _macro(predictions: Array, targets: Array) -> Array:
    right, predicted, actual = _counts(predictions, targets)
    occurs = (predicted + actual > 0).sum(axis=-1)
    return _share(_share(2 * right, predicted + actual).sum(axis=-1), occurs)


def micro_f1(predictions: Array, targets: Array) -> Array:
    """2TP / (2TP + FP + FN) summed over classes; equal to accuracy where each example has one class"""
    return _micro(*_members(predictions, targets))


def _micro(predictions: Array, targets: Array) -> Array:
    right, predicted, actual = (count.sum(axis=-1) for count in _counts(predictions, targets))
    return _share(2 * right, predicted + actual)


def matthews(predictions: Array, targets: Array) -> Array:
    """(c s − Σ pₖ tₖ) / √((s² − Σ pₖ²)(s² − Σ tₖ²)); 0 where either side is constant          Gorodkin 2004"""
    right, predicted, actual = _counts(*_members(predictions, targets))
    number = float(targets.shape[-1])
    cross = right.sum(axis=-1) * number - (predicted * actual).sum(axis=-1)
    scale = np.sqrt((number**2 - (predicted**2).sum(axis=-1)) * (number**2 - (actual**2).sum(axis=-1)))
    return np.divide(cross, scale, out=np.zeros_like(scale), where=scale > 0)


def pearson(predictions: Array, targets: Array) -> Array:
    """correlation of values; 0 where either side is constant or not finite (a run that diverged)"""
    x, y = _centred(predictions), _centred(targets)
    scale = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    across = (x * y).sum(axis=-1)
    return np.clip(np.divide(across, scale, out=np.zeros_like(scale), where=scale > 0), -1.0, 1.0)


def _centred(values: Array) -> Array:
    """Less their mean, in units of the farthest from it; zeros where they are all equal, or not all finite."""
    usable = np.isfinite(values).all(axis=-1, keepdims=True)
    centred = np.where(usable, values, 0.0)
    centred = centred / np.maximum(np.abs(centred).max(axis=-1, keepdims=True), np.finfo(float).tiny)
    varied = centred.max(axis=-1, keepdims=True) > centred.min(axis=-1, keepdims=True)
    centred = np.where(varied, centred - centred.mean(axis=-1, keepdims=True), 0.0)
    return centred / np.maximum(np.abs(centred).max(axis=-1, keepdims=True), np.finfo(float).tiny)


def spearman(predictions: Array, targets: Array) -> Array:
    """correlation of ranks, ties their mean; 0 where either side is constant or not finite (a run that diverged)"""
    return pearson(_ranks(predictions), _ranks(targets))


def _ranks(values: Array) -> Array:
    """Ties their mean; all alike where not all are finite."""
    from scipy.stats import rankdata

    usable = np.isfinite(values).all(axis=-1, keepdims=True)
    return rankdata(np.where(usable, values, 0.0), axis=-1)


def rmse(predictions: Array, targets: Array) -> Array:
    """root of the mean squared error, in the targets' unit"""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.sqrt(((predictions - targets) ** 2).mean(axis=-1))


def mae(predictions: Array, targets: Array) -> Array:
    """mean absolute error, in the targets' unit"""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.abs(predictions - targets).mean(axis=-1)


def as_bioes(tags: Sequence[str]) -> list[str]:
    """Tags of the schemes BILOU (L last, U unit) and BMES (M middle) as those of BIOES: B-X, I-X, E-X, S-X and O."""
    return [BIOES.get(tag[:2], tag[:2]) + tag[2:] for tag in map(str, tags)]


def span_f1(predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> float:
    """2TP / (2TP + FP + FN) of spans in the tags of BIO, BIOES, BILOU or BMES, as conlleval counts them; 0 without any."""
    from seqeval.metrics import f1_score

    predicted, right = ([as_bioes(tags) for tags in sentences] for sentences in (predictions, targets))
    return float(f1_score(right, predicted, zero_division=0))


def tag_accuracy(predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> float:
    """Share of words, over all sentences, whose tag is right; 0 without any."""
    right = [a == b for tags, others in zip(predictions, targets) for a, b in zip(tags, others, strict=True)]
    return sum(right) / max(1, len(right))


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="accuracy", of="classes", function=accuracy, batched=True, several=_subset_accuracy, averages=True),
        Metric(name="f1", of="classes", function=f1, batched=True),
        Metric(name="macro_f1", of="classes", function=macro_f1, batched=True, several=_macro),
        Metric(name="micro_f1", of="classes", function=micro_f1, batched=True, several=_micro),
        Metric(name="matthews", of="classes", function=matthews, low=-1.0, batched=True),
        Metric(name="pearson", of="numbers", function=pearson, low=-1.0, batched=True),
        Metric(name="spearman", of="numbers", function=spearman, low=-1.0, batched=True),
        Metric(name="rmse", of="numbers", function=rmse, high=inf, higher_is_better=False, batched=True),
        Metric(name="mae", of="numbers", function=mae, high=inf, higher_is_better=False, batched=True, averages=True),
        Metric(name="span_f1", of="tags", function=span_f1),
        Metric(name="tag_accuracy", of="tags", function=tag_accuracy),
        *(
            Metric(name=name, function=function, high=100.0, averages=name.startswith("rouge"))
            for name, function in TEXT_METRICS.items()
        ),
        Metric(name="exact_match", function=exact_match, averages=True),
        Metric(name="loss", of="losses", function=loss, high=inf, higher_is_better=False),
        Metric(name="perplexity", of="losses", function=perplexity, low=1.0, high=inf, higher_is_better=False),
    )
}
"""A new metric is one entry; where it is not `batched`, many samples are a loop over its function."""
