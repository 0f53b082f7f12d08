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
GROUPS, FEW = 100, 20  # of test examples, at most, that the jackknife leaves out one after another; of a slow metric
EXCHANGED = 10  # examples with unlike predictions whose every exchange is looked at: 1,024 of them
COUNTED = 100  # the same where an exchange only changes a sign, as for accuracy
LARGEST = "largest class"
Array = NDArray[Any]
Seeds = dict[int, float]
"""seed → metric"""
Row = tuple[str, int, list[Any] | None, list[Any] | None]
"""method, seed, predictions and targets of a run"""
Values = tuple[Array, Array]
"""values and their probabilities"""


@dataclass(frozen=True)
class Answers:
    """One run's answers to the test examples."""

    predictions: Array
    targets: Array
    """one object for all runs with the same test examples"""
    without: Array
    """the metric without each group of examples, `[group]`"""


@dataclass(frozen=True)
class Sample:
    """The runs of one task and size."""

    name: str
    metric: Metric
    values: dict[str, Seeds]
    """by method"""
    answers: dict[tuple[str, int], Answers] = field(default_factory=dict)
    """by method and seed, where predictions are known; method LARGEST names the most frequent class every time"""
    largest: Seeds = field(default_factory=dict)
    """the metric of always naming the largest class; empty where there are no classes"""

    def of(self, method: str) -> Seeds:
        return self.largest if method == LARGEST else self.values[method]

    @property
    def constant(self) -> float | None:
        """Mean metric of always naming the largest class; a constant correlates with nothing: 0. None: not known."""
        if self.largest:
            return fmean(self.largest.values())
        return 0.0 if self.answers and self.metric.of == "numbers" and self.metric.low < 0 else None

    def score(self, method: str) -> float:
        """Mean over seeds, higher is better; values that differ by rounding alone are equal."""
        return round(self.metric.sign * fmean(self.values[method].values()), 12)


def metric_of(name: str) -> Metric:
    """The metric of this name; of a plug-in that is not installed here, one whose values stand as they are."""
    return METRICS.get(name) or Metric(name=name, function=lambda *_: 0.0, low=-inf, high=inf)


def metric_label(metric: Metric) -> str:
    """`accuracy ×100`: the name of a metric in the unit that tables show it in."""
    return metric.name.replace("_", " ") + ("" if metric.shown_as == 1 else " ×100")


def sample(name: str, metric: str, values: dict[str, Seeds], rows: Iterable[Row]) -> Sample:
    """rows: method, seed, predictions and targets of these runs. Runs whose targets are equal share their test examples."""
    judge = metric_of(metric)
    if metric not in METRICS:  # nothing can be computed again
        return Sample(name, judge, values)
    tests: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        _, _, said, right = row
        if said and right and len(said) == len(right):
            tests[repr(right)].append(row)
    answers: dict[tuple[str, int], Answers] = {}
    largest: Seeds = {}
    for here in tests.values():
        targets = _array(here[0][3] or [])
        found = [((method, seed), _array(said or [])) for method, seed, said, _ in here]
        if judge.of == "classes" and targets.ndim == 1 and targets.dtype != object:
            kinds, counts = np.unique(targets, return_counts=True)
            constant = np.full(len(targets), kinds[counts.argmax()])
            seeds = sorted({seed for (_, seed), _ in found})
            found += [((LARGEST, seed), constant) for seed in seeds]
            largest |= dict.fromkeys(seeds, judge(constant, targets))
        left = judge.sampled(
            _stacked([one for _, one in found]), targets, kept_examples(len(targets), GROUPS if judge.fast else FEW)
        )
        answers |= {key: Answers(one, targets, without) for (key, one), without in zip(found, left)}
    return Sample(name, judge, values, answers, dict(sorted(largest.items())))


def _array(values: Sequence[Any]) -> Array:
    """An array with one entry per example; lists of unequal lengths stay lists."""
    try:
        return np.asarray(values)
    except ValueError:
        found = np.empty(len(values), dtype=object)
        found[:] = values
        return found


def _stacked(arrays: list[Array]) -> Any:
    """`[run, example]`, or a list where their examples differ in shape."""
    return np.stack(arrays) if len({(one.shape, one.dtype == object) for one in arrays}) == 1 else arrays


@lru_cache(maxsize=4)
def kept_examples(examples: int, groups: int) -> NDArray[np.intp]:
    """Indices `[group, example]` of what stays when one of at most this many groups of examples is left out, drawn once."""
    drawn = np.random.default_rng(examples).permutation(examples)
    size = -(-examples // groups)
    starts = range(0, examples - examples % size, size)
    return np.stack([np.concatenate([drawn[:start], drawn[start + size :]]) for start in starts])


@dataclass(frozen=True)
class Difference:
    """On one task, one method less another; positive where the one is better. Or one method's own metric, less nothing."""

    value: float
    examples: float | None = None
    """variance from the test examples; None: not known"""
    groups: int = 0
    training: float | None = None
    """variance from training, of the mean over seeds; None: not known"""
    seeds: int = 1
    exchanged: Values | None = None
    """the difference's distribution over every exchange of the two methods' predictions; None: too many examples differ"""


def difference(of: Sample, one: str, other: str) -> Difference:
    """Over the seeds that both have; if they share none, over the seeds of each, without an interval."""
    sign, ours, theirs = of.metric.sign, of.of(one), of.of(other)
    gains = {seed: sign * (ours[seed] - theirs[seed]) for seed in ours if seed in theirs}
    if not gains:
        return Difference(sign * (fmean(ours.values()) - fmean(theirs.values())), seeds=0)
    found = _spread(of, gains, one, other)
    exchanged = _exchanged(of, one, other, [*gains]) if found.examples is not None else None
    return replace(found, value=0.0 if abs(found.value) < TIE else found.value, exchanged=exchanged)


def own(of: Sample, method: str) -> Difference:
    """A method's own metric."""
    return _spread(of, of.of(method), method)


def _spread(of: Sample, gains: Seeds, *methods: str) -> Difference:
    """Their mean with both variances; of two methods, gains are differences. Seeds with other test examples are independent of
    each other in them."""
    number, values = len(gains), [*gains.values()]
    training = _variance(values, 1) / number if number > 1 else None
    if not all((method, seed) in of.answers for method in methods for seed in gains):
        return Difference(fmean(values), training=training, seeds=number)
    tests: dict[int, list[Array]] = defaultdict(list)
    for seed in gains:
        answers = [of.answers[method, seed] for method in methods]
        tests[id(answers[0].targets)].append(np.subtract.reduce([one.without for one in answers]))
    left = [(len(here) / number, np.mean(here, axis=0)) for here in tests.values()]
    groups = min(len(means) for _, means in left)
    examples = sum(share**2 * (len(means) - 1) * _variance(means, 0) for share, means in left) if groups > 1 else None
    return Difference(fmean(values), examples, groups, training, number)


def _variance(values: Sequence[float] | Array, lost: int) -> float:
    """Infinite where the values are too large, as a perplexity may be; lost: degrees of freedom."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.var(values, ddof=lost))


def _exchanged(of: Sample, one: str, other: str, seeds: list[int]) -> Values | None:
    """Without a true difference, the two methods' predictions for an example may be exchanged: each exchange is as likely."""
    metric, pairs = of.metric, [(of.answers[one, seed], of.answers[other, seed]) for seed in seeds]
    targets = pairs[0][0].targets
    if any(run.targets is not targets for pair in pairs for run in pair):
        return None
    answers = [(ours.predictions, theirs.predictions) for ours, theirs in pairs]
    unlike = [ours != theirs for ours, theirs in answers]
    differing = np.flatnonzero(np.any([gap.any(axis=-1) if gap.ndim > 1 else gap for gap in unlike], axis=0))
    if metric.averages and len(differing) <= COUNTED:
        single = [(slice(i, i + 1), targets[i : i + 1]) for i in differing]
        steps = [sum(metric(a[i], right) - metric(b[i], right) for a, b in answers) for i, right in single]
        return _signs(np.abs(steps), len(targets) * len(seeds))
    if not metric.batched or len(differing) > EXCHANGED:
        return None
    found = []
    for swap in product((False, True), repeat=len(differing)):
        mask = np.zeros(targets.shape, dtype=bool)
        mask[differing] = np.reshape(swap, (-1, *[1] * (targets.ndim - 1)))
        sides = [(np.where(mask, theirs, ours), np.where(mask, ours, theirs)) for ours, theirs in answers]
        found.append(metric.sign * fmean(metric(ours, targets) - metric(theirs, targets) for ours, theirs in sides))
    return np.array(found), np.full(len(found), 1 / len(found))


def _signs(steps: Array, scale: int) -> Values | None:
    """The distribution of Σ ± steps / scale, each sign as likely: a binomial where all steps are 1 (McNemar 1947)."""
    steps = steps[steps > 0]
    if np.array_equal(steps, steps.round()):
        chances, total = np.ones(1), int(steps.sum())
        for step in steps.astype(int):
            chances = np.convolve(chances, [0.5, *[0.0] * (2 * step - 1), 0.5])
        return np.arange(-total, total + 1) / scale, chances
    if len(steps) > EXCHANGED:
        return None
    sums = np.array([*product((-1.0, 1.0), repeat=len(steps))]) @ steps
    return sums / scale, np.full(len(sums), 1 / len(sums))
