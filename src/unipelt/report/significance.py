"""Which differences are real: paired intervals over test rows and seeds, Holm's correction, ranks over tasks.

A difference of two methods on one task is the mean over the seeds that both have; over tasks, the mean of theirs. Its draws are
    the mean difference on resampled test rows  +  t · √(Σ vᵢ) / tasks,    vᵢ = variance over the seeds of task i / its seeds
where t is Student's, of Welch and Satterthwaite's degrees of freedom (Σ vᵢ)² / Σ (vᵢ² / (seedsᵢ − 1)). So rows and seeds both count;
without predictions the interval is Student's own, with one seed the bootstrap's. t is not drawn: its quantiles at (i + ½) / draws meet
the sorted differences in a lattice's order, which knows no luck and is its own mirror image: A − B has the interval of B − A.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from unipelt.report.bootstrap import DRAWS, Array, counts, resampled
from unipelt.report.cells import Seeds, mean, spread

LEVEL = 0.05
STRIDE = 1237  # no common divisor with 2,000; their ratio is near the golden one, which spreads pairs evenly
LATTICE = (
    STRIDE * np.arange(DRAWS) + (STRIDE - 1) // 2
) % DRAWS  # the half stride mirrors it: LATTICE[-1 - i] = DRAWS - 1 - LATTICE[i]


@dataclass(frozen=True)
class Sample:
    """The runs of one task and size."""

    name: str
    values: dict[str, Seeds]
    """by method and seed"""
    moves: dict[tuple[str, int], Array] = field(default_factory=dict)
    """by method and seed: what each resample of the test rows adds to the value; empty without predictions"""


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval, and how easily chance alone gives one as far from 0; no interval: nothing says how sure."""

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @property
    def verdict(self) -> str:
        """Whether the number is above 0, by its interval."""
        if self.low is None or self.high is None:
            return "not decided"
        return "yes" if self.low > 0 else "no" if self.high < 0 else "not decided"


def sample(name: str, metric: str, values: dict[str, Seeds], rows: Sequence[dict[str, Any]]) -> Sample:
    """rows: `method`, `seed`, `predictions`, `targets` of these runs. Runs whose targets are equal share their resamples."""
    groups: dict[bytes, list[tuple[dict[str, Any], Array]]] = {}
    for row in rows:
        predictions, targets = row["predictions"], row["targets"]
        if predictions and targets and len(predictions) == len(targets):
            right = np.asarray(targets, dtype=float)
            groups.setdefault(right.tobytes(), []).append((row, np.asarray(predictions, dtype=float)))
    moves: dict[tuple[str, int], Array] = {}
    for place in sorted(groups):
        targets = np.frombuffer(place)
        found = groups[place]
        predictions = np.stack([column for _, column in found])
        label = name if len(groups) == 1 else f"{name}/{min(row['seed'] for row, _ in found)}"
        drawn = resampled(metric, predictions, targets, counts(label, len(targets)))
        if drawn is None:
            return Sample(name, values)
        here = resampled(metric, predictions, targets, np.ones((len(targets), 1), dtype=np.float32))
        assert here is not None
        for (row, _), move in zip(found, drawn - here):
            moves[row["method"], row["seed"]] = move.astype(np.float32)
    return Sample(name, values, moves)


@dataclass(frozen=True)
class Gap:
    """A difference on one task."""

    value: float
    moves: Array | float = 0.0
    """what each resample of the test rows adds"""
    variance: float = 0.0
    """of the mean over seeds"""
    freedom: int = 0
    known: bool = True
    """whether anything says how sure it is"""


def difference(of: Sample, one: str, other: str) -> Gap:
    """Mean difference over the seeds that both have, or of what they have where they share none."""
    ours, theirs = of.values[one], of.values[other]
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return Gap(mean(ours) - mean(theirs), known=False)
    gaps = [ours[seed] - theirs[seed] for seed in seeds]
    moved = all((method, seed) in of.moves for method in (one, other) for seed in seeds)
    moves = np.mean([of.moves[one, seed] - of.moves[other, seed] for seed in seeds], axis=0) if moved else 0.0
    variance = (spread(gaps) or 0.0) ** 2 / len(seeds)
    return Gap(fmean(gaps), moves, variance, len(seeds) - 1, moved or len(seeds) > 1)


def level_of(of: Sample, method: str) -> Gap:
    """A method's own metric on one task, as its difference to nothing."""
    values = of.values[method]
    moved = all((method, seed) in of.moves for seed in values)
    moves = np.mean([of.moves[method, seed] for seed in values], axis=0) if moved else 0.0
    variance = (spread(list(values.values())) or 0.0) ** 2 / len(values)
    return Gap(mean(values), moves, variance, len(values) - 1, moved or len(values) > 1)


def estimate(gaps: Sequence[Gap], level: float = LEVEL) -> Estimate:
    """The mean over tasks: interval between quantiles of its draws; p: twice the smaller share of them on one side of 0, with
    0 itself as one more draw."""
    value = fmean(gap.value for gap in gaps)
    if not all(gap.known for gap in gaps):
        return Estimate(value)
    draws = np.sort(np.full(DRAWS, value) + sum(gap.moves for gap in gaps) / len(gaps))
    if total := sum(gap.variance for gap in gaps):
        from scipy.special import stdtrit

        freedom = total**2 / sum(gap.variance**2 / gap.freedom for gap in gaps if gap.variance)
        draws += stdtrit(freedom, (np.arange(DRAWS) + 0.5) / DRAWS)[LATTICE] * total**0.5 / len(gaps)
    low, high = np.quantile(draws, [level / 2, 1 - level / 2], method="hazen")
    aside = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return Estimate(value, float(low), float(high), min(1.0, 2 * (aside + 1) / (DRAWS + 1)))


def average_difference(samples: Sequence[Sample], pairs: Sequence[tuple[str, str]], level: float = LEVEL) -> Estimate:
    """Mean over tasks of the difference of each task's pair of methods."""
    return estimate([difference(of, *pair) for of, pair in zip(samples, pairs)], level)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of the p that are there."""
    known = sorted((value, place) for place, value in enumerate(p) if value is not None)
    corrected: list[float | None] = [None] * len(p)
    least = 0.0
    for rank, (value, place) in enumerate(known):
        least = max(least, min(1.0, value * (len(known) - rank)))
        corrected[place] = least
    return corrected


@dataclass(frozen=True)
class Compared:
    """Methods against the best of them."""

    best: str
    to_best: dict[str, Estimate]
    """method − best, the best itself left out, the nearest first"""
    corrected: dict[str, float | None]
    """p after Holm's correction"""

    def real(self, method: str) -> bool:
        corrected = self.corrected[method]
        return corrected is not None and corrected < LEVEL


def against_best(samples: Sequence[Sample], methods: Sequence[str]) -> Compared:
    """Each method's average difference over these tasks to the method with the best average; ties go to the first."""
    averages = {method: fmean(mean(of.values[method]) for of in samples) for method in methods}
    best = max(methods, key=lambda method: averages[method])
    rest = sorted((method for method in methods if method != best), key=lambda method: -averages[method])
    found = {method: average_difference(samples, [(method, best)] * len(samples)) for method in rest}
    return Compared(best, found, dict(zip(rest, holm([found[method].p for method in rest]))))


def average_ranks(samples: Sequence[Sample], methods: Sequence[str]) -> dict[str, float]:
    """Mean rank over tasks, 1 the best, ties their mean; the best first."""
    from scipy.stats import rankdata

    ranks = [rankdata([-mean(of.values[method]) for method in methods]) for of in samples]
    means = dict(zip(methods, np.mean(ranks, axis=0).tolist()))
    return dict(sorted(means.items(), key=lambda item: item[1]))


def critical_difference(methods: int, tasks: int) -> float:
    """q √(k (k + 1) / 6N): average ranks nearer than this do not differ          Nemenyi 1963; Demšar 2006, §3.2.2"""
    from scipy.stats import studentized_range

    q = studentized_range.ppf(1 - LEVEL, methods, np.inf) / 2**0.5
    return float(q * (methods * (methods + 1) / (6 * tasks)) ** 0.5)
