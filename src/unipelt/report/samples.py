"""Runs side by side on one task: their metrics by seed, what moves a difference between two of them, and by how much."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from math import inf
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipelt.tasks.metrics import METRICS, Metric

TIE = 1e-12  # numbers nearer than this differ by rounding alone
GROUPS = 100  # of test examples, at most, that the jackknife leaves out one after another
SLOW_GROUPS = 20  # the same for a slow metric
EXCHANGED = 10  # differing predictions, at most, for which all 2^10 = 1,024 exchanges are tried
COUNTED = 100  # the same for a metric that is a mean over examples, such as accuracy
BEST_CONSTANT = "best constant answer"
"""label of always predicting one class of the test examples, the one with the best metric"""
Array = NDArray[Any]
Seeds = dict[int, float]
"""seed → metric"""
PredictionRow = tuple[str, int, list[Any] | None, list[Any] | None]
"""method, seed, predictions and targets of a run"""
Values = tuple[Array, Array]
"""values and their probabilities"""


@dataclass(frozen=True)
class RunPredictions:
    """One run's predictions for the test examples."""

    predictions: Array
    targets: Array
    """one object for all runs with the same test examples"""
    left_out: Array
    """the metric when each group of examples is left out, `[group]`"""


@dataclass(frozen=True)
class Sample:
    """The runs of one task and size."""

    task: str
    metric: Metric
    values: dict[str, Seeds]
    """by method"""
    runs: dict[tuple[str, int], RunPredictions] = field(default_factory=dict)
    """by method and seed, where predictions are known; method BEST_CONSTANT always predicts one class"""
    best_constant: Seeds = field(default_factory=dict)
    """the metric of BEST_CONSTANT; empty where there are no classes"""

    def seeds_of(self, method: str) -> Seeds:
        """A method's metric by seed."""
        return self.best_constant if method == BEST_CONSTANT else self.values[method]

    @property
    def best_constant_score(self) -> float | None:
        """Mean metric of BEST_CONSTANT; 0 for a correlation, as a constant correlates with nothing; None: not known."""
        if self.best_constant:
            return fmean(self.best_constant.values())
        return 0.0 if self.runs and self.metric.of == "numbers" and self.metric.low < 0 else None

    def score(self, method: str) -> float:
        """Mean over seeds, higher is better; values that differ by rounding alone are equal."""
        return round(self.metric.sign * fmean(self.values[method].values()), 12)


def metric_of(name: str) -> Metric:
    """The metric of this name; if a plug-in that is not installed here defines it, one without a range."""
    return METRICS.get(name) or Metric(name=name, function=lambda *_: 0.0, low=-inf, high=inf)


def metric_label(metric: Metric) -> str:
    """`accuracy ×100`: the name of a metric in the unit that tables show it in."""
    return metric.name.replace("_", " ") + ("" if metric.display_factor == 1 else " ×100")


def make_sample(task: str, metric_name: str, values: dict[str, Seeds], rows: Iterable[PredictionRow]) -> Sample:
    """A Sample. rows: method, seed, predictions and targets of its runs. Runs whose targets are equal share their test examples."""
    metric = metric_of(metric_name)
    if metric_name not in METRICS:  # nothing can be computed again
        return Sample(task, metric, values)
    tests: dict[str, list[PredictionRow]] = defaultdict(list)
    for row in rows:
        _, _, predictions, row_targets = row
        if predictions and row_targets and len(predictions) == len(row_targets):
            tests[repr(row_targets)].append(row)
    runs: dict[tuple[str, int], RunPredictions] = {}
    best_constant: Seeds = {}
    for test_rows in tests.values():
        targets = _array(test_rows[0][3] or [])
        predicted = [((method, seed), _array(predictions or [])) for method, seed, predictions, _ in test_rows]
        if metric.of == "classes" and targets.ndim == 1 and targets.dtype != object:
            constant = _best_constant_answer(metric, targets)
            seeds = sorted({seed for (_, seed), _ in predicted})
            predicted += [((BEST_CONSTANT, seed), constant) for seed in seeds]
            best_constant |= dict.fromkeys(seeds, metric(constant, targets))
        if len(targets) > 1:
            kept = kept_examples(len(targets), GROUPS if metric.fast else SLOW_GROUPS)
            left_out = metric.sampled(_stacked([predictions for _, predictions in predicted]), targets, kept)
        else:  # nothing stays
            left_out = np.zeros((len(predicted), 1))
        runs |= {
            key: RunPredictions(predictions, targets, metric_values)
            for (key, predictions), metric_values in zip(predicted, left_out)
        }
    return Sample(task, metric, values, runs, dict(sorted(best_constant.items())))


def _best_constant_answer(metric: Metric, targets: Array) -> Array:
    """One class for every example: the one with the best metric, of equally good ones the most frequent."""
    classes, counts = np.unique(targets, return_counts=True)
    answers = (np.full(len(targets), label) for label in classes[np.argsort(-counts, kind="stable")])
    return max(answers, key=lambda answer: metric.sign * metric(answer, targets))


def _array(values: Sequence[Any]) -> Array:
    """An array with one entry per example; lists of unequal lengths stay lists."""
    try:
        return np.asarray(values)
    except ValueError:
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array


def _stacked(arrays: list[Array]) -> Any:
    """`[run, example]`, or a list where their examples differ in shape."""
    return np.stack(arrays) if len({(array.shape, array.dtype == object) for array in arrays}) == 1 else arrays


@lru_cache(maxsize=4)
def kept_examples(examples: int, groups: int) -> NDArray[np.intp]:
    """Indices `[group, example]` of what stays when one of at most this many groups of examples is left out, drawn once."""
    drawn = np.random.default_rng(examples).permutation(examples)
    size = -(-examples // groups)
    starts = range(0, examples - examples % size, size)
    return np.stack([np.concatenate([drawn[:start], drawn[start + size :]]) for start in starts])


@dataclass(frozen=True)
class Difference:
    """On one task, the first method less the second; positive where the first is better. Or one method's own metric."""

    value: float
    examples_variance: float | None = None
    """from the test examples; None: not known"""
    groups: int = 0
    examples: int = 0
    """number of test examples; 0: not known"""
    training_variance: float | None = None
    """from training, of the mean over seeds; None: not known"""
    seeds: int = 1
    exchanged: Values | None = None
    """the difference's distribution over every exchange of the two methods' predictions; None: too many examples differ"""


def difference(sample: Sample, first: str, second: str) -> Difference:
    """Over the seeds that both have; if they share none, over the seeds of each, without an interval."""
    sign, first_seeds, second_seeds = sample.metric.sign, sample.seeds_of(first), sample.seeds_of(second)
    gains = {seed: sign * (first_seeds[seed] - second_seeds[seed]) for seed in first_seeds if seed in second_seeds}
    if not gains:
        return Difference(sign * (fmean(first_seeds.values()) - fmean(second_seeds.values())), seeds=0)
    result = _with_variances(sample, gains, first, second)
    known = result.examples_variance is not None
    exchanged = _exchanged(sample, first, second, [*gains]) if known else None
    return replace(result, value=0.0 if abs(result.value) < TIE else result.value, exchanged=exchanged)


def own_metric(sample: Sample, method: str) -> Difference:
    """A method's own metric."""
    return _with_variances(sample, sample.seeds_of(method), method)


def _with_variances(sample: Sample, gains: Seeds, *methods: str) -> Difference:
    """The mean of gains (one method's metrics, or differences of two), with the variances over test examples and training.

    Seeds with different test sets count as independent in the former.
    """
    seeds, values = len(gains), [*gains.values()]
    training_variance = _variance(values, 1) / seeds if seeds > 1 else None
    if not all((method, seed) in sample.runs for method in methods for seed in gains):
        return Difference(fmean(values), training_variance=training_variance, seeds=seeds)
    tests: dict[int, list[Array]] = defaultdict(list)
    for seed in gains:
        runs = [sample.runs[method, seed] for method in methods]
        tests[id(runs[0].targets)].append(np.subtract.reduce([run.left_out for run in runs]))
    left_out_means = [(len(left_outs) / seeds, np.mean(left_outs, axis=0)) for left_outs in tests.values()]
    groups = min(len(means) for _, means in left_out_means)
    variances = (share**2 * (len(means) - 1) * _variance(means, 0) for share, means in left_out_means)
    examples_variance = sum(variances) if groups > 1 else None
    examples = min(len(sample.runs[method, seed].targets) for method in methods for seed in gains)
    return Difference(fmean(values), examples_variance, groups, examples, training_variance, seeds)


def _variance(values: Sequence[float] | Array, lost_freedom: int) -> float:
    """Variance; infinite if it overflows, as that of a perplexity may. lost_freedom: degrees of freedom."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.var(values, ddof=lost_freedom))


def _exchanged(sample: Sample, first: str, second: str, seeds: list[int]) -> Values | None:
    """Without a true difference, the two methods' predictions for an example may be exchanged: each exchange is as likely."""
    metric, pairs = sample.metric, [(sample.runs[first, seed], sample.runs[second, seed]) for seed in seeds]
    targets = pairs[0][0].targets
    if any(run.targets is not targets for pair in pairs for run in pair):
        return None
    predictions = [(a.predictions, b.predictions) for a, b in pairs]
    differs = [a != b for a, b in predictions]
    differing = np.flatnonzero(np.any([mask.any(axis=-1) if mask.ndim > 1 else mask for mask in differs], axis=0))
    if metric.averages and len(differing) <= COUNTED:
        single = [(slice(i, i + 1), targets[i : i + 1]) for i in differing]
        steps = [sum(metric(a[i], right) - metric(b[i], right) for a, b in predictions) for i, right in single]
        return _signs(np.abs(steps), len(targets) * len(seeds))
    if not metric.batched or len(differing) > EXCHANGED:
        return None
    differences = []
    for swap in product((False, True), repeat=len(differing)):
        mask = np.zeros(targets.shape, dtype=bool)
        mask[differing] = np.reshape(swap, (-1, *[1] * (targets.ndim - 1)))
        sides = [(np.where(mask, b, a), np.where(mask, a, b)) for a, b in predictions]
        differences.append(metric.sign * fmean(metric(a, targets) - metric(b, targets) for a, b in sides))
    return np.array(differences), np.full(len(differences), 1 / len(differences))


def _signs(steps: Array, scale: int) -> Values | None:
    """The distribution of Σ ± steps / scale, each sign as likely: a binomial where all steps are 1 (McNemar 1947)."""
    steps = steps[steps > 0]
    if steps.sum() <= COUNTED**2 and np.array_equal(steps, steps.round()):
        chances, total = np.ones(1), int(steps.sum())
        for step in steps.astype(int):
            chances = np.convolve(chances, [0.5, *[0.0] * (2 * step - 1), 0.5])
        return np.arange(-total, total + 1) / scale, chances
    if len(steps) > EXCHANGED:
        return None
    sums = np.array([*product((-1.0, 1.0), repeat=len(steps))]) @ steps
    return sums / scale, np.full(len(sums), 1 / len(sums))
