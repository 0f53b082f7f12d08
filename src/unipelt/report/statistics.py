"""How sure a difference is, over the test examples and the training seeds.

The difference of two methods on a task is the mean of their differences gₛ over the seeds s that both have. Two things move it:
- the test examples: variance v, by a jackknife that leaves out one group of examples at a time from the mean over seeds;
- training: variance u = (variance of gₛ over seeds) / seeds.
The chance of a difference as large as |x| without a true one is P(|√v tₐ + √u t_b| ≥ |x|), where tₐ and t_b are Student's with
groups − 1 and seeds − 1 degrees of freedom (Behrens 1929, Fisher 1935). It is conservative; Welch's approximation is not, with
two or three seeds (benchmarks/false_claims.py). Where few test examples differ, an exact test of exchanged predictions is computed
too (McNemar's for accuracy with one seed), and the larger p counts. With one seed training's part is not known, so nothing is called real.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import exp, isfinite
from statistics import fmean

import numpy as np

from unipelt.report.samples import TIE, Difference, Values
from unipelt.tasks.metrics import Metric

LEVEL = 0.05
NODES = 1001
NO_INTERVAL, EXAMPLES, SEEDS = "nothing", "test examples only", "training seeds only"
BOTH = "test examples and training seeds"


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval, and how easily chance alone gives one as far from 0."""

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    seeds: int = 0
    """that each method has, at least"""
    covers: str = NO_INTERVAL
    """what the interval allows for"""

    def real(self, p: float | None) -> bool:
        """Whether the number differs from 0 beyond chance; p: its own, or corrected for the number of comparisons."""
        return self.covers == BOTH and p is not None and p < LEVEL

    def times(self, factor: float) -> "Estimate":
        """Multiplied by a factor; a negative one swaps the ends of the interval."""
        low, high = (None if edge is None else factor * edge + 0.0 for edge in (self.low, self.high))
        return replace(
            self, value=factor * self.value + 0.0, low=low if factor > 0 else high, high=high if factor > 0 else low
        )


def estimate(differences: Sequence[Difference], level: float = LEVEL) -> Estimate:
    """The mean over tasks, with the interval of all numbers that are not too far from it at this level."""
    tasks = len(differences)
    value = fmean(task.value for task in differences)
    examples, groups, training, training_freedom = _sum_over_tasks(differences)
    seeds = min(task.seeds for task in differences)
    v, u = (examples or 0.0) / tasks**2, (training or 0.0) / tasks**2
    # nothing, or a variance of 0 from the few seeds there are, or values that are too large for one
    if (examples is None and u <= TIE**2) or not isfinite(v + u):
        return Estimate(value, seeds=seeds)
    covers = SEEDS if examples is None else EXAMPLES if training is None else BOTH
    half = half_width(level, v, groups, u, training_freedom)
    low, high, exact = value - half, value + half, exact_p([task.exchanged for task in differences], value)
    if exact > level:
        low, high = min(low, 0.0), max(high, 0.0)
    return Estimate(value, low, high, max(exact, tail(abs(value), v, groups, u, training_freedom)), seeds, covers)


def _sum_over_tasks(differences: Sequence[Difference]) -> tuple[float | None, int, float | None, float]:
    """Sums over tasks: variance and groups of test examples, variance and degrees of freedom of training.

    The freedom is Welch's and Satterthwaite's (Σ u)² / Σ (u² / (seeds − 1)); a part that is not known for one task is not for all.
    """
    examples = [task.examples_variance for task in differences if task.examples_variance is not None]
    training = [(task.training_variance, task.seeds - 1) for task in differences if task.training_variance is not None]
    v = sum(examples) if len(examples) == len(differences) else None
    u = sum(variance for variance, _ in training) if len(training) == len(differences) else None
    squares = sum(variance**2 / freedom for variance, freedom in training)
    freedom = u**2 / squares if u is not None and squares > 0 else 1.0
    return v, min(task.groups for task in differences), u, freedom


def own_estimate(difference: Difference, metric: Metric) -> Estimate:
    """A metric with an interval that stays within its range: Wilson's of a share, with the number of examples whose share would
    vary as much (Wilson 1927; Kott and Carr 1997); of a metric without upper end, of its logarithm."""
    estimated = estimate([replace(difference, exchanged=None)])
    if estimated.low is None or estimated.high is None or not isfinite(metric.low):
        return estimated
    half = (estimated.high - estimated.low) / 2
    if not isfinite(metric.high):
        factor = exp(min(half / estimated.value, 700.0)) if estimated.value > 0 else 1.0
        return replace(estimated, low=estimated.value / factor, high=estimated.value * factor)
    metric_range = metric.high - metric.low
    share, half = (estimated.value - metric.low) / metric_range, half / metric_range
    variance = share * (1 - share)
    if half <= TIE or variance <= TIE:  # no variance: Wilson's interval for the number of test examples
        variance, quantile, number = 0.0, 1.96, float(difference.examples)
    else:
        quantile = half / max(
            ((difference.examples_variance or 0.0) + (difference.training_variance or 0.0)) ** 0.5 / metric_range, TIE
        )
        number = variance * (quantile / half) ** 2
    shrink = 1 + quantile**2 / number
    centre = (share + quantile**2 / (2 * number)) / shrink
    half = quantile / shrink * (variance / number + quantile**2 / (4 * number**2)) ** 0.5
    low, high = (metric.low + metric_range * min(1.0, max(0.0, edge)) for edge in (centre - half, centre + half))
    return replace(estimated, low=min(low, estimated.value), high=max(high, estimated.value))


@lru_cache(maxsize=64)
def _nodes(freedom: int) -> Values:
    """Points of Student's distribution, near together at 0, and what each weighs."""
    from scipy.stats import t

    grid = np.linspace(-7.6, 7.6, NODES)  # sinh(7.6) is 1,000
    points = np.sinh(grid)
    weights = t.pdf(points, freedom) * np.cosh(grid)
    return points, weights / weights.sum()


def tail(distance: float, examples: float, groups: int, training: float, freedom: float) -> float:
    """P(|√examples tₐ + √training t_b| ≥ distance), a = groups − 1, b = freedom."""
    from scipy.special import stdtr

    if distance < TIE:
        return 1.0
    if training <= TIE**2 or examples <= TIE**2:
        scale, degrees = (examples, groups - 1) if training <= TIE**2 else (training, freedom)
        return float(2 * stdtr(degrees, -distance / scale**0.5)) if scale > TIE**2 else 0.0
    points, weights = _nodes(groups - 1)
    return min(1.0, float(2 * (weights * stdtr(freedom, (points * examples**0.5 - distance) / training**0.5)).sum()))


def half_width(level: float, examples: float, groups: int, training: float, freedom: float) -> float:
    """The distance whose `tail` is the level."""
    from scipy.optimize import brentq
    from scipy.special import stdtrit

    def excess(distance: float) -> float:
        return tail(distance, examples, groups, training, freedom) - level

    parts = ((examples, groups - 1), (training, freedom))
    scales = [(variance**0.5, degrees) for variance, degrees in parts if variance > TIE**2]
    if not scales:
        return 0.0
    # by Bonferroni, surely far enough
    upper_bound = sum(scale * -float(stdtrit(degrees, level / 4)) for scale, degrees in scales)
    return float(brentq(excess, TIE, upper_bound, xtol=1e-5 * upper_bound))


def exact_p(distributions: Sequence[Values | None], value: float) -> float:
    """Share of exchanges whose mean over tasks is as far from 0; 0 where too many examples differ for an exact test."""
    values, chances = np.zeros(1), np.ones(1)
    for distribution in distributions:
        if distribution is None or len(values) * len(distribution[0]) > 100_000:
            return 0.0
        values = (values[:, None] + distribution[0]).ravel()
        chances = (chances[:, None] * distribution[1]).ravel()
    return min(1.0, float(chances[np.abs(values) / len(distributions) >= abs(value) - TIE].sum()))


def holm(p: Sequence[float | None], comparisons: int = 0) -> list[float | None]:
    """Holm's step-down correction of the p that are there, as some of this many comparisons."""
    known = sorted((value, index) for index, value in enumerate(p) if value is not None)
    corrected: list[float | None] = [None] * len(p)
    largest_so_far = 0.0
    for rank, (value, index) in enumerate(known):
        largest_so_far = max(largest_so_far, min(1.0, value * (max(comparisons, len(known)) - rank)))
        corrected[index] = largest_so_far
    return corrected
