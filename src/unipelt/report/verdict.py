"""Which method to take: the development rows choose it, rows that chose nothing say how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from unipelt.report.cells import gather, mean
from unipelt.report.significance import LEVEL, Estimate, Gap, difference, estimate, holm, level_of, sample
from unipelt.study.choose import choose


@dataclass(frozen=True)
class Line:
    """One method."""

    method: str
    lr: float
    seeds: int
    parameters: int
    dev: float
    """mean over seeds"""
    test: Estimate
    """mean over seeds, with its 95 % interval over rows and seeds"""
    gap: Estimate | None
    """test, this method − the one to take; None for that one itself"""
    corrected: float | None
    """p of the gap after Holm's correction over the methods"""

    @property
    def differs(self) -> bool:
        return self.corrected is not None and self.corrected < LEVEL


@dataclass(frozen=True)
class Verdict:
    """Methods from the best development metric to the worst, and which of them to take."""

    metric: str
    lines: list[Line]
    take: str
    best: str
    """the best on the development rows"""
    why: str
    majority: float | None

    @property
    def chosen(self) -> Line:
        return next(line for line in self.lines if line.method == self.take)


def verdict(rows: Sequence[dict[str, Any]]) -> Verdict:
    """rows: the finished runs of one task and size, as a store has them. Of each method the best rate by development metric.

    The method to take is the smallest whose mean development metric is within one standard error of the best's, over the seeds
    that both have (Breiman et al. 1984, §3.4.3, for sizes of trees); with one seed the best itself.
    """
    chosen = choose(rows)
    dev = {method: values for (_, _, method), values in gather(chosen, "dev").items()}
    test = {method: values for (_, _, method), values in gather(chosen).items()}
    sizes = {row["method"]: sum(row["parameters"].values()) for row in chosen}
    rates = {row["method"]: row["lr"] for row in chosen}
    order = sorted(dev, key=lambda method: (-mean(dev[method]), sizes[method]))
    best = order[0]
    near = [method for method in order if _within(dev[best], dev[method])]
    take = min(near, key=lambda method: (sizes[method], order.index(method)))
    of = sample(chosen[0]["task"], chosen[0]["metric"], test, chosen)
    levels = dict(zip(order, map(estimate_one, pooled([level_of(of, method) for method in order]))))
    others = [method for method in order if method != take]
    gaps = dict(zip(others, map(estimate_one, pooled([difference(of, method, take) for method in others]))))
    corrected = dict(zip(gaps, holm([gap.p for gap in gaps.values()])))
    lines = [
        Line(
            method=method, lr=rates[method], seeds=len(dev[method]), parameters=sizes[method], dev=mean(dev[method]),
            test=levels[method], gap=gaps.get(method), corrected=corrected.get(method),
        )
        for method in order
    ]  # fmt: skip
    majorities = [row["majority"] for row in chosen if row["majority"] is not None]
    return Verdict(
        chosen[0]["metric"], lines, take, best, _why(lines, take, best, near), fmean(majorities) if majorities else None
    )


def pooled(gaps: Sequence[Gap]) -> list[Gap]:
    """Each with the variance over seeds of all of them together: two or three seeds alone tell next to nothing of it."""
    freedom = sum(gap.freedom for gap in gaps)
    if not freedom:
        return list(gaps)
    # a Gap's variance is that of its mean, of freedom + 1 seeds
    spread = sum(gap.variance * (gap.freedom + 1) * gap.freedom for gap in gaps) / freedom
    return [replace(gap, variance=spread / (gap.freedom + 1), freedom=freedom) for gap in gaps]


def estimate_one(gap: Gap) -> Estimate:
    return estimate([gap])


def _within(best: dict[int, float], other: dict[int, float]) -> bool:
    """Whether the mean gap over the seeds of both is at most its standard error."""
    gaps = [best[seed] - other[seed] for seed in best if seed in other]
    if len(gaps) < 2:
        return best is other
    return fmean(gaps) <= stdev(gaps) / len(gaps) ** 0.5


def _why(lines: Sequence[Line], take: str, best: str, near: Sequence[str]) -> str:
    rest = [line for line in lines if line.method != take]
    if not rest:
        return f"{take} is the only method that finished."
    worse = [line.method for line in rest if line.differs and line.gap and line.gap.value < 0]
    better = [line.method for line in rest if line.differs and line.gap and line.gap.value > 0]
    said = []
    if take == best:
        said.append(f"{take} is the best on the development rows.")
        if all(line.seeds < 2 for line in lines):
            said.append("One seed cannot tell how much of that is chance; more --seeds can.")
    else:
        said.append(
            f"{best} is ahead on the development rows, by less than one standard error; {take} is the smallest of {len(near)} that near."
        )
    if better:
        said.append(
            f"On the held-out rows {' and '.join(better)} did better, beyond chance: look again with more seeds."
        )
    if worse:
        said.append(f"On the held-out rows it is better than {' and '.join(worse)}, beyond chance.")
    if not worse and not better:
        said.append("On the held-out rows no difference to it is beyond chance.")
    return " ".join(said)
