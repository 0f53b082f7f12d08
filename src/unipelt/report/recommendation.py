"""Which method to take: the validation rows choose it, rows that chose nothing say how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from unipelt.report.cells import Seeds, gather, mean
from unipelt.report.names import listed
from unipelt.report.significance import LEVEL, Estimate, difference, estimate, holm, level_of, sample
from unipelt.study.choose import choose

CORRELATIONS = ("matthews", "spearman", "pearson")  # from -1; other metrics from 0


@dataclass(frozen=True)
class Line:
    """One method."""

    method: str
    lr: float
    seeds: int
    parameters: int
    validation: float
    """mean over its seeds"""
    test: Estimate
    """mean over its seeds, with its 95 % interval over rows and seeds"""
    gap: Estimate | None
    """test, this method − the one to take, over the seeds of both; None for that one itself, and where they share no seed"""
    corrected: float | None
    """p of the gap after Holm's correction over the methods"""

    @property
    def differs(self) -> bool:
        return self.corrected is not None and self.corrected < LEVEL


@dataclass(frozen=True)
class Verdict:
    """Methods from the best validation metric to the worst, and which of them to take."""

    metric: str
    lines: list[Line]
    take: str
    best: str
    """the best on the validation rows"""
    why: str
    majority: float | None
    """test accuracy of always naming the largest class; None where the metric is another"""

    @property
    def chosen(self) -> Line:
        return next(line for line in self.lines if line.method == self.take)


def verdict(rows: Sequence[dict[str, Any]]) -> Verdict:
    """rows: the finished runs of one task and size, as a store has them. Of each method the best rate by validation metric.

    Two methods are judged on the seeds that both have: where a budget or a failure left one of them fewer, its seeds may be
    the lucky ones. The best is ahead of the most others, less those that are ahead of it. The method to take is the smallest
    whose mean validation metric is within one standard error of the best's (Breiman et al. 1984, §3.4.3, for sizes of trees),
    which takes two seeds: without them, the best itself.
    """
    chosen = choose(rows)
    validation = {method: values for (_, _, method), values in gather(chosen, "validation").items()}
    test = {method: values for (_, _, method), values in gather(chosen).items()}
    sizes = {row["method"]: sum(row["parameters"].values()) for row in chosen}
    rates = {row["method"]: row["lr"] for row in chosen}
    ahead = {one: sum(_lead(validation[one], other) for other in validation.values()) for one in validation}
    order = sorted(validation, key=lambda method: (-ahead[method], sizes[method]))
    best = order[0]
    near = [method for method in order if method == best or _within(validation[best], validation[method])]
    take = min(near, key=lambda method: (sizes[method], order.index(method)))
    of = sample(f"{chosen[0]['k']}/{chosen[0]['task']}", chosen[0]["metric"], test, chosen)
    gaps = {
        method: estimate([difference(of, method, take)])
        for method in order
        if method != take and test[method].keys() & test[take].keys()
    }
    corrected = dict(zip(gaps, holm([gap.p for gap in gaps.values()])))
    lines = [
        Line(
            method=method, lr=rates[method], seeds=len(validation[method]), parameters=sizes[method], validation=mean(validation[method]),
            test=_bounded(estimate([level_of(of, method)]), chosen[0]["metric"]), gap=gaps.get(method), corrected=corrected.get(method),
        )
        for method in order
    ]  # fmt: skip
    metric = chosen[0]["metric"]
    majorities = [row["majority"] for row in chosen if row["majority"] is not None and metric == "accuracy"]
    majority = fmean(majorities) if majorities else None
    own = lines[order.index(take)].test
    why = " ".join([*_chosen(validation, take, best, len(near)), *_held_out(lines), *_beside_one_class(own, majority)])
    return Verdict(metric, lines, take, best, why, majority)


def _bounded(found: Estimate, metric: str) -> Estimate:
    """Without what no metric can be: Student's tails go on for ever."""
    least = -1.0 if metric in CORRELATIONS else 0.0
    low, high = (None if edge is None else min(1.0, max(least, edge)) for edge in (found.low, found.high))
    return replace(found, low=low, high=high)


def _lead(one: Seeds, other: Seeds) -> int:
    """1 where one is ahead over the seeds of both, −1 where it is behind, 0 where they are equal or share none."""
    shared = one.keys() & other.keys()
    if not shared:
        return 0
    ours, theirs = (fmean(of[seed] for seed in shared) for of in (one, other))
    return (ours > theirs) - (ours < theirs)


def _within(best: Seeds, other: Seeds) -> bool:
    """Whether the mean gap over the seeds of both, two at least, is at most its standard error."""
    gaps = [best[seed] - other[seed] for seed in best if seed in other]
    return len(gaps) > 1 and fmean(gaps) <= stdev(gaps) / len(gaps) ** 0.5


def _chosen(validation: dict[str, Seeds], take: str, best: str, near: int) -> list[str]:
    """What the validation rows say, and on which seeds, where those are not the same for all."""
    shared: dict[tuple[int, ...], list[str]] = {}
    for method in validation:
        if method != best:
            shared.setdefault(tuple(sorted(validation[best].keys() & validation[method].keys())), []).append(method)
    if not shared:
        return [f"There is no other method to compare {take} with."]
    if not any(shared):
        return [f"It is the smallest, and nothing more is known: no other method has finished a seed that {take} has."]
    equal = [
        other
        for seeds, others in shared.items()
        for other in others
        if seeds and not _lead(validation[best], validation[other])
    ]
    if take == best and equal:
        said = [f"{take} is the smallest of {len(equal) + 1} that are equal, and the best, on the validation rows."]
    elif take == best:
        said = [f"{take} is the best on the validation rows."]
    else:
        said = [f"{best} is ahead on the validation rows, by less than one standard error; {take} is the smallest of {near} that near."]  # fmt: skip
    unlike = len({*map(frozenset, validation.values())}) > 1
    for seeds, others in shared.items() if unlike else ():
        names = listed(others)
        if not seeds:
            said.append(f"Of {names} nothing is known beside it: they have no finished seed in common.")
        elif len(seeds) < len(set().union(*validation.values())):
            which = f"seed{'s' * (len(seeds) > 1)} {listed(seeds)} alone, which {'all' if others[1:] else 'both'} have."
            said.append(f"Against {names} it was judged on {which}")
    if any(len(seeds) == 1 for seeds in shared):
        said.append(
            "One seed cannot tell how much of that is chance; more can, by --seeds, or by --minutes where some are still to come."
        )
    return said


def _held_out(lines: Sequence[Line]) -> list[str]:
    """What the rows say that chose nothing."""
    worse = [line.method for line in lines if line.differs and line.gap and line.gap.value < 0]
    better = [line.method for line in lines if line.differs and line.gap and line.gap.value > 0]
    said = []
    if better:
        said.append(f"On the held-out rows {listed(better)} did better, beyond chance: look again with more seeds.")
    if worse:
        said.append(f"On the held-out rows it is better than {listed(worse)}, beyond chance.")
    if any(line.gap for line in lines) and not worse and not better:
        said.append("On the held-out rows no difference to it is beyond chance.")
    return said


def _beside_one_class(own: Estimate, majority: float | None) -> list[str]:
    """What is to be known of a method whose answers may be worth no more than one answer for all rows."""
    if majority is None or (own.low is not None and own.low > majority):
        return []
    return [f"It is not shown to be better than always naming the largest class: {majority:.4f}."]
