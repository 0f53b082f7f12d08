"""The short answer: which method won, by how much, and whether it is real."""

from collections.abc import Sequence
from dataclasses import dataclass

from unipelt.report.cells import comparable, mean
from unipelt.report.names import listed, size_label
from unipelt.report.significance import Estimate
from unipelt.report.study import Study
from unipelt.report.table import Cell

EQUAL = 1e-9  # averages nearer than this differ by the rounding of sums alone


@dataclass(frozen=True)
class Answer:
    """Of one size."""

    k: int | str
    best: str
    average: float
    tasks: int
    methods: int
    tied: tuple[str, ...] = ()
    """methods whose average is as good as the best's"""
    next: str | None = None
    lead: Estimate | None = None
    """over the next method"""
    real: bool = False
    behind: int = 0
    """methods that are really behind"""

    @property
    def size(self) -> str:
        return size_label(self.k)

    @property
    def first(self) -> str:
        """The best, or all that are as good."""
        if not self.tied:
            return self.best
        return (
            f"all {self.methods} methods" if 2 < self.methods == len(self.tied) + 1 else listed([self.best, *self.tied])
        )

    @property
    def said(self) -> str:
        """One line."""
        over = f"over {self.tasks} tasks" if self.tasks > 1 else "on one task"
        start = f"{self.size}: {self.first}, {100 * self.average:.1f} {over}"
        if self.lead is None:
            return f"{start}; nothing to compare it with"
        if self.tied:
            return f"{start}: equal"
        return f"{start}; {signed(self.lead.value)} over {self.next} ({interval(self.lead)}): {self.word}"

    @property
    def word(self) -> str:
        return "real" if self.real else "not decided"


def answers(study: Study) -> list[Answer]:
    """By size; a size where nothing can be compared yet is left out."""
    found = []
    for k in study.sizes:
        over, which = comparable(study.test, k)
        if not over:
            continue
        compared = study.compared.get(k)
        best = compared.best if compared else which[0]
        average = sum(mean(study.test[k, task, best]) for task in over) / len(over)
        if compared is None:
            found.append(Answer(k, best, average, len(over), 1))
            continue
        rival = next(iter(compared.to_best))
        lead = _turned(compared.to_best[rival])
        behind = sum(compared.real(method) for method in compared.to_best)
        tied = tuple(method for method, one in compared.to_best.items() if abs(one.value) < EQUAL)
        found.append(Answer(k, best, average, len(over), len(which), tied, rival, lead, compared.real(rival), behind))
    return found


def headline(found: Sequence[Answer]) -> str:
    """All sizes in two sentences."""
    judged = [one for one in found if one.lead is not None]
    if not judged:
        return "; ".join(one.said for one in found) or "Nothing can be compared yet"
    leaders: dict[str, list[Answer]] = {}
    for one in judged:
        leaders.setdefault(one.first, []).append(one)
    what = "average" if any(one.tasks > 1 for one in judged) else "test result"
    led = "; ".join(
        f"{first} {'share' if each[0].tied else 'has'} the best {what} at {_listed(each)}"
        for first, each in leaders.items()
    )
    apart = [one for one in judged if not one.tied]
    real, chance = [one for one in apart if one.real], [one for one in apart if not one.real]
    if not apart:
        return f"{led}."
    if not chance:
        return f"{led}, and {'its lead' if len(leaders) == 1 else 'each lead'} over the next method is real."
    if not real:
        return f"{led}, but {'its lead' if len(leaders) == 1 else 'any lead'} over the next method may be chance."
    return f"{led}. The lead over the next method is real at {_listed(real)}, and may be chance at {_listed(chance)}."


def _listed(found: Sequence[Answer]) -> str:
    return f"K\u00a0=\u00a0{listed(one.k for one in found)}"


def _turned(found: Estimate) -> Estimate:
    if found.low is None or found.high is None:
        return Estimate(-found.value)
    return Estimate(-found.value, -found.high, -found.low, found.p)


def signed(value: float) -> str:
    """×100, with its sign."""
    return Cell(digits=1, signed=True).number(100 * value)


def interval(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return "no interval"
    return f"{signed(found.low)} to {signed(found.high)}"


def progress(study: Study) -> str:
    """How far the study is."""
    said = f"{study.done:,} of {len(study.runs):,} runs finished"
    if study.failed:
        said += f", {len(study.failed):,} failed"
    return said + (f", {study.open:,} still to come" if study.open else "")
