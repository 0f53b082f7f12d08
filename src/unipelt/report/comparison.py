"""Methods compared with a reference method: the one object that the terminal, the page and every file of a report show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unipelt.report.names import listed, seeds_text, size_label
from unipelt.report.samples import LARGEST, TIE, Sample, difference, metric_label, own
from unipelt.report.statistics import BOTH, SEEDS, Estimate, estimate, holm, own_estimate
from unipelt.report.tables import Block, Cell, Table, side_by_side
from unipelt.tasks.metrics import Metric

CONSTANT = "constant"  # the baseline
REAL, CHANCE, ONE_SEED, NO_SEED = "real", "may be chance", "not judged: one seed", "no seed in common"
Columns = dict[str, dict[str, Cell]]
"""by the name of a column, its cells by method"""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One method."""

    method: str
    score: Estimate
    """its own test metric, the mean over tasks"""
    gap: Estimate | None = None
    """this method less the reference, positive where it is better; None for the reference itself"""
    corrected: float | None = None
    """p of the gap after Holm's correction"""

    @property
    def real(self) -> bool:
        """Whether the gap is beyond chance."""
        return self.gap is not None and self.gap.real(self.corrected)

    @property
    def equal(self) -> bool:
        return self.gap is not None and abs(self.gap.value) < TIE

    @property
    def verdict(self) -> str:
        """What the gap means."""
        if self.gap is None:
            return ""
        if self.gap.covers == BOTH:
            return REAL if self.real else "equal" if self.equal else CHANCE
        if self.gap.seeds < 2:
            return ONE_SEED if self.gap.seeds else NO_SEED
        return f"not judged: no {'predictions' if self.gap.covers == SEEDS else 'interval'}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods on the same tasks, compared with a reference method; numbers are in the unit of the metric."""

    tasks: int
    metric: Metric
    """of the first task; all have its direction and unit"""
    label: str
    """of the metric, as tables name it"""
    reference: str
    lines: Sequence[Line]
    """in the order in which they are shown"""

    @property
    def chosen(self) -> Line:
        """The reference's own line."""
        return next(line for line in self.lines if line.method == self.reference)

    @property
    def others(self) -> list[Line]:
        return [line for line in self.lines if line.method != self.reference]

    @property
    def seeds(self) -> str:
        """`3 seeds` that two methods share, or `1 to 3 seeds`."""
        return seeds_text(
            *(line.gap.seeds for line in self.others if line.gap), *[self.chosen.score.seeds] * (not self.others)
        )

    @property
    def answer(self) -> str:
        """Which method is the best, or all that share the best result, and whether the lead over the next one is real."""
        if not self.others:
            return f"{self.reference} alone, nothing to compare it with"
        tied = [self.reference, *(line.method for line in self.others if line.equal)]
        who = f"all {len(tied)} methods" if 2 < len(tied) == len(self.lines) else listed(tied)
        said = f"{who} {'share' if tied[1:] else 'has'} the best {'average' if self.tasks > 1 else 'test result'}"
        following = next((line for line in self.others if not line.equal), None)
        if following is None or following.gap is None:
            return said
        verdict = following.verdict if following.verdict == CHANCE else f"is {following.verdict.partition(':')[0]}"
        return f"{said}; the lead over the next method {verdict} ({seeds_text(following.gap.seeds)})"


def compare(samples: Sequence[Sample], methods: Sequence[str], reference: str | None = None) -> Comparison:
    """Every method less the reference, averaged over these tasks, whose metrics have one direction and unit.

    p is corrected by Holm's method: over the methods where a reference is given, which test examples must not have chosen; else
    the reference is the method with the best test metric, and every pair of methods counts.
    """
    judge = samples[0].metric
    scores = {method: _score(samples, method) for method in methods}
    order = sorted(methods, key=lambda method: -round(judge.sign * scores[method].value, 12))
    first = reference or order[0]
    rest = [method for method in order if method != first]
    gaps = {method: _gap(samples, method, first) for method in rest}
    pairs = 0 if reference else len(methods) * (len(methods) - 1) // 2
    corrected = dict(zip(rest, holm([gaps[method].p for method in rest], pairs)))
    lines = [Line(method=m, score=scores[m], gap=gaps.get(m), corrected=corrected.get(m)) for m in [first, *rest]]
    alike = len({of.metric.name for of in samples}) == 1
    label = metric_label(judge if alike else replace(judge, name="average metric"))
    return Comparison(tasks=len(samples), metric=judge, label=label, reference=first, lines=lines)


def _gap(samples: Sequence[Sample], method: str, first: str) -> Estimate:
    """One method less another.

    The class that `constant` names may change with the training examples of a seed, which says nothing of the other method.
    No constant answer is right more often than the best one, so that one is what the difference must leave behind.
    """
    found = estimate([difference(of, method, first) for of in samples])
    if CONSTANT not in (method, first) or not all(map(_constant_changes, samples)):
        return found
    pair = [LARGEST if one == CONSTANT else one for one in (method, first)]
    bound = estimate([difference(of, *pair) for of in samples])
    if method == CONSTANT:
        return replace(found, high=bound.high, p=bound.p) if bound.value < 0 else found
    return replace(found, low=bound.low, p=bound.p) if bound.value > 0 else found


def _constant_changes(of: Sample) -> bool:
    """Whether the metric is accuracy, and `constant` does not name the same class with every seed."""
    named = {str(one.predictions[0]) for (method, _), one in of.answers.items() if method == CONSTANT}
    return of.metric.name == "accuracy" and bool(of.largest) and len(named) > 1


def _score(samples: Sequence[Sample], method: str) -> Estimate:
    if len(samples) == 1:
        return own_estimate(own(samples[0], method), samples[0].metric)
    return estimate([own(of, method) for of in samples])


def headline(found: Mapping[int | str, Comparison]) -> str:
    """The answer of each size."""
    if not found:
        return "Nothing can be compared yet"
    return " ".join(f"{size_label(k)}: {one.answer}." for k, one in found.items())


def estimate_cell(found: Estimate | None, factor: float = 1.0, signed: bool = False, mark: str = "") -> Cell:
    """A number × factor, with its interval."""
    if found is None:
        return Cell()
    found = found.times(factor)
    return Cell(found.value, low=found.low, high=found.high, signed=signed, mark=mark)


def gap_cell(one: Comparison, line: Line) -> Cell:
    """A method's metric less the reference's in the unit of tables, marked where the difference is real."""
    if line.verdict == NO_SEED:
        return Cell()
    return estimate_cell(line.gap, one.metric.sign * one.metric.shown_as, signed=True, mark=REAL if line.real else "")


NOTES = [
    "In brackets: 95 % intervals over test examples and training seeds; with one seed over test examples only, without predictions over seeds only. Differences are paired: over the same seeds and test examples.",
    "Real: p < 0.05 after Holm's correction over the comparisons, with two seeds at least. One seed cannot show what training changes, so nothing is judged from it.",
]  # fmt: skip
BASELINE_NOTES = {
    CONSTANT: "constant: always the most frequent class of the training examples, or their mean.",
    "tfidf": "tfidf: logistic or ridge regression on words and pairs of words.",
    "probe": "probe: logistic or ridge regression on the frozen base's pooled hidden state.",
}
BEST_NOTE = "The best is chosen by test results, so the correction counts every pair of methods."


def comparison_notes(lines: Sequence[Line]) -> list[str]:
    methods = {line.method for line in lines}
    return [*NOTES, *(note for method, note in BASELINE_NOTES.items() if method in methods)]


def comparison_columns(one: Comparison, score: str, reference: str, word: str) -> Columns:
    """Score, difference to the reference, verdict and seeds of each method.

    score and reference: how the heads of the columns name them; word: what stands for the reference's own difference.
    """
    scores = {line.method: estimate_cell(line.score, one.metric.shown_as) for line in one.lines}
    gaps = {one.reference: Cell(word)} | {line.method: gap_cell(one, line) for line in one.others}
    verdicts = {line.method: Cell(line.verdict) for line in one.lines}
    seeds = {line.method: Cell.count(line.score.seeds) for line in one.lines}
    return {score: scores, f"difference to {reference}": gaps, "verdict": verdicts, "seeds": seeds}


def comparison_rows(one: Comparison, columns: Columns) -> list[list[Cell]]:
    """A row a method, the reference marked."""
    rows = side_by_side([line.method for line in one.lines], columns.values())
    return [[replace(row[0], mark="best" if row[0].value == one.reference else ""), *row[1:]] for row in rows]


def comparison_table(name: str, title: str, found: Mapping[str, Comparison]) -> Table:
    """Every method compared with the best, a block for each comparison. found: by the heading of its block."""
    blocks, columns = [], ["method"]
    for heading, one in found.items():
        cells = comparison_columns(one, "test metric", "the best", "best")
        columns = ["method", *cells]
        blocks.append(Block(f"{heading}, {one.label}, {one.seeds}", comparison_rows(one, cells)))
    notes = comparison_notes([line for one in found.values() for line in one.lines])
    return Table(name, title, columns, blocks, [BEST_NOTE, *notes])
