"""Runs side by side on one task: their metrics by seed, what moves a difference between two of them, and by how much."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
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


def sample(name: str, metric: str, values: dict[str, Seeds], rows: Iterable[Row]) -> Sample:
    """rows: method, seed, predictions and targets of these runs. Runs whose targets are equal share their test examples."""
    if metric not in METRICS:  # of a plug-in that is not installed here: nothing can be computed again
        return Sample(name, Metric(name=metric, function=lambda *_: 0.0), values)
    judge = METRICS[metric]
    tests: dict[str, list[Row]] = {}
    for row in rows:
        _, _, said, right = row
        if said and right and len(said) == len(right):
            tests.setdefault(repr(right), []).append(row)
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
            _stacked([one for _, one in found]), targets, left_in(len(targets), GROUPS if judge.fast else FEW)
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
def left_in(examples: int, groups: int) -> NDArray[np.intp]:
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
    sign = 1.0 if of.metric.higher_is_better else -1.0
    ours, theirs = of.of(one), of.of(other)
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return Difference(sign * (fmean(ours.values()) - fmean(theirs.values())), seeds=0)
    gains = [sign * (ours[seed] - theirs[seed]) for seed in seeds]
    found = _spread(
        of, gains, seeds, lambda seed: of.answers[one, seed].without - of.answers[other, seed].without, one, other
    )
    value = fmean(gains)
    value = 0.0 if abs(value) < TIE else value
    exchanged = _exchanged(of, one, other, seeds, sign) if found.examples is not None else None
    return replace(found, value=value, exchanged=exchanged)


def own(of: Sample, method: str) -> Difference:
    """A method's own metric."""
    values = of.of(method)
    return _spread(of, [*values.values()], [*values], lambda seed: of.answers[method, seed].without, method)


def _spread(of: Sample, gains: list[float], seeds: list[int], without: Any, *methods: str) -> Difference:
    """Both variances. Seeds with other test examples are independent of each other in them."""
    training = _variance(gains, 1) / len(seeds) if len(seeds) > 1 else None
    if not all((method, seed) in of.answers for method in methods for seed in seeds):
        return Difference(fmean(gains), training=training, seeds=len(seeds))
    tests: dict[int, list[int]] = {}
    for seed in seeds:
        tests.setdefault(id(of.answers[methods[0], seed].targets), []).append(seed)
    examples, groups = 0.0, GROUPS
    for here in tests.values():
        left = np.mean([without(seed) for seed in here], axis=0)
        groups = min(groups, len(left))
        examples += (len(here) / len(seeds)) ** 2 * (len(left) - 1) * _variance(left, 0)
    known = groups > 1
    return Difference(fmean(gains), examples if known else None, groups, training, len(seeds))


def _variance(values: Any, lost: int) -> float:
    """Infinite where the values are too large, as a perplexity may be; lost: degrees of freedom."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.var(values, ddof=lost))


def _exchanged(of: Sample, one: str, other: str, seeds: list[int], sign: float) -> Values | None:
    """Without a true difference, the two methods' predictions for an example may be exchanged: each exchange is as likely."""
    pairs = [(of.answers[one, seed], of.answers[other, seed]) for seed in seeds]
    targets = pairs[0][0].targets
    if any(run.targets is not targets for pair in pairs for run in pair):
        return None
    unlike = np.any([_unlike(ours.predictions, theirs.predictions) for ours, theirs in pairs], axis=0)
    places = np.flatnonzero(unlike)
    if of.metric.averages and len(places) <= COUNTED:
        each = [[_each(of.metric, run, places) for run in pair] for pair in pairs]
        return _signs(np.abs(np.sum([ours - theirs for ours, theirs in each], axis=0)), len(targets) * len(seeds))
    if not of.metric.batched or len(places) > EXCHANGED:
        return None
    found = []
    for number in range(2 ** len(places)):
        swap = places[[bool(number >> place & 1) for place in range(len(places))]]
        gains = []
        for ours, theirs in pairs:
            first, second = ours.predictions.copy(), theirs.predictions.copy()
            first[swap], second[swap] = theirs.predictions[swap], ours.predictions[swap]
            gains.append(sign * (of.metric(first, targets) - of.metric(second, targets)))
        found.append(fmean(gains))
    return np.array(found), np.full(len(found), 1 / len(found))


def _each(metric: Metric, run: Answers, places: Array) -> Array:
    """The metric of single examples."""
    return np.array([metric(run.predictions[i : i + 1], run.targets[i : i + 1]) for i in places])


def _unlike(one: Array, other: Array) -> Array:
    found = one != other
    return found.any(axis=-1) if found.ndim > 1 else found


def _signs(steps: Array, scale: int) -> Values | None:
    """The distribution of Σ ± steps / scale, each sign as likely: a binomial where all steps are 1 (McNemar 1947)."""
    steps = steps[steps > 0]
    if not np.array_equal(steps, steps.round()):
        if len(steps) > EXCHANGED:
            return None
        sums = np.zeros(1)
        for step in steps:
            sums = np.concatenate([sums - step, sums + step])
        return sums / scale, np.full(len(sums), 1 / len(sums))
    chances = np.ones(1)
    for step in steps.astype(int):
        wider = np.zeros(len(chances) + 2 * step)
        wider[: len(chances)] += chances / 2
        wider[2 * step :] += chances / 2
        chances = wider
    total = int(steps.sum())
    return np.arange(-total, total + 1) / scale, chances
