"""Methods compared with a reference method: the one object that the terminal, the page and every file of a report show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unipelt.report.names import listed, seeds_text, size_label
from unipelt.report.samples import BEST_CONSTANT, TIE, Sample, difference, metric_label, own_metric
from unipelt.report.statistics import BOTH, SEEDS, Estimate, estimate, holm, own_estimate
from unipelt.report.tables import Block, Cell, Table, side_by_side
from unipelt.tasks.metrics import Metric

CONSTANT = "constant"  # the baseline
REAL, CHANCE, ONE_SEED, NO_SEED = "real", "may be chance", "not judged: one seed", "no seed in common"
Columns = dict[str, dict[str, Cell]]
"""by the name of a column, its cells by method"""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One method's line of a comparison."""

    method: str
    score: Estimate
    """its own test metric, the mean over tasks"""
    difference: Estimate | None = None
    """this method less the reference, positive where it is better; None for the reference itself"""
    corrected_p: float | None = None
    """p of the difference after Holm's correction"""

    @property
    def real(self) -> bool:
        """Whether the difference is beyond chance."""
        return self.difference is not None and self.difference.real(self.corrected_p)

    @property
    def same_score(self) -> bool:
        """Whether the score is that of the reference, up to rounding."""
        return self.difference is not None and abs(self.difference.value) < TIE

    @property
    def verdict(self) -> str:
        """What the difference means."""
        if self.difference is None:
            return ""
        if self.difference.covers == BOTH:
            return REAL if self.real else "equal" if self.same_score else CHANCE
        if self.difference.seeds < 2:
            return ONE_SEED if self.difference.seeds else NO_SEED
        return f"not judged: no {'predictions' if self.difference.covers == SEEDS else 'interval'}"


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
    def reference_line(self) -> Line:
        """The reference's own line."""
        return next(line for line in self.lines if line.method == self.reference)

    @property
    def others(self) -> list[Line]:
        return [line for line in self.lines if line.method != self.reference]

    @property
    def seeds_text(self) -> str:
        """`3 seeds` that two methods share, or `1 to 3 seeds`."""
        return seeds_text(
            *(line.difference.seeds for line in self.others if line.difference),
            *[self.reference_line.score.seeds] * (not self.others),
        )

    @property
    def summary(self) -> str:
        """Which method is the best, or all that share the best result, and whether the lead over the next one is real."""
        if not self.others:
            return f"{self.reference} alone, nothing to compare it with"
        tied = [self.reference, *(line.method for line in self.others if line.same_score)]
        winners = f"all {len(tied)} methods" if 2 < len(tied) == len(self.lines) else listed(tied)
        sentence = (
            f"{winners} {'share' if tied[1:] else 'has'} the best {'average' if self.tasks > 1 else 'test result'}"
        )
        next_best = next((line for line in self.others if not line.same_score), None)
        if next_best is None or next_best.difference is None:
            return sentence
        if next_best.verdict == NO_SEED:
            return f"{sentence}; it has no seed in common with the next method, so its lead is not judged"
        verdict = next_best.verdict if next_best.verdict == CHANCE else f"is {next_best.verdict.partition(':')[0]}"
        return f"{sentence}; the lead over the next method {verdict} ({seeds_text(next_best.difference.seeds)})"


def compare(samples: Sequence[Sample], methods: Sequence[str], reference: str | None = None) -> Comparison:
    """Every method less the reference, averaged over these tasks, whose metrics have one direction and unit.

    p is corrected by Holm's method: over the methods where a reference is given, which test examples must not have chosen; else
    the reference is the method with the best test metric, and every pair of methods counts.
    """
    metric = samples[0].metric
    scores = {method: _score(samples, method) for method in methods}
    order = sorted(methods, key=lambda method: -round(metric.sign * scores[method].value, 12))
    reference_method = reference or order[0]
    others = [method for method in order if method != reference_method]
    differences = {method: _estimate_difference(samples, method, reference_method) for method in others}
    pairs = 0 if reference else len(methods) * (len(methods) - 1) // 2
    corrected_p = dict(zip(others, holm([differences[method].p for method in others], pairs)))
    lines = [
        Line(method=m, score=scores[m], difference=differences.get(m), corrected_p=corrected_p.get(m))
        for m in [reference_method, *others]
    ]
    one_metric = len({sample.metric.name for sample in samples}) == 1
    label = metric_label(metric if one_metric else replace(metric, name="average metric"))
    return Comparison(tasks=len(samples), metric=metric, label=label, reference=reference_method, lines=lines)


def _estimate_difference(samples: Sequence[Sample], method: str, reference: str) -> Estimate:
    """The method less the reference.

    `constant` may predict another class for each seed, which adds variance that is not the other method's. No constant answer is
    right more often than the best one. So the value stays, but p and the bound of the interval that is nearer to 0 come from the
    comparison with the best constant answer.
    """
    estimated = estimate([difference(sample, method, reference) for sample in samples])
    if CONSTANT not in (method, reference) or not all(map(_constant_changes, samples)):
        return estimated
    pair = [BEST_CONSTANT if name == CONSTANT else name for name in (method, reference)]
    bound = estimate([difference(sample, *pair) for sample in samples])
    if method == CONSTANT:
        return replace(estimated, high=bound.high, p=bound.p) if bound.value < 0 else estimated
    return replace(estimated, low=bound.low, p=bound.p) if bound.value > 0 else estimated


def _constant_changes(sample: Sample) -> bool:
    """Whether the metric is accuracy, and `constant` does not predict the same class with every seed."""
    classes = {str(run.predictions[0]) for (method, _), run in sample.runs.items() if method == CONSTANT}
    return sample.metric.name == "accuracy" and bool(sample.best_constant) and len(classes) > 1


def _score(samples: Sequence[Sample], method: str) -> Estimate:
    if len(samples) == 1:
        return own_estimate(own_metric(samples[0], method), samples[0].metric)
    return estimate([own_metric(sample, method) for sample in samples])


def headline(comparisons: Mapping[int | str, Comparison]) -> str:
    """The summary of each size."""
    if not comparisons:
        return "Nothing can be compared yet"
    return " ".join(f"{size_label(k)}: {comparison.summary}." for k, comparison in comparisons.items())


def estimate_cell(number: Estimate | None, factor: float = 1.0, signed: bool = False, mark: str = "") -> Cell:
    """A number × factor, with its interval."""
    if number is None:
        return Cell()
    number = number.times(factor)
    return Cell(number.value, low=number.low, high=number.high, signed=signed, mark=mark)


NOTES = [
    "In brackets: 95 % intervals over test examples and training seeds; with one seed over test examples only, without predictions over seeds only. Differences are paired: over the same seeds and test examples.",
    "Real: p < 0.05 after Holm's correction over the comparisons, with two seeds at least. One seed cannot show what training changes, so nothing is judged from it.",
]  # fmt: skip
BASELINE_NOTES = {
    CONSTANT: "constant: always the most frequent class of the training examples, or their mean.",
    "tfidf": "tfidf: logistic or ridge regression on words and pairs of words.",
    "probe": "probe: logistic or ridge regression on the frozen base's pooled hidden state.",
}
BEST_BY_TEST_NOTE = "The best is chosen by test results, so the correction counts every pair of methods."


def comparison_notes(lines: Sequence[Line]) -> list[str]:
    methods = {line.method for line in lines}
    return [*NOTES, *(note for method, note in BASELINE_NOTES.items() if method in methods)]


def comparison_columns(comparison: Comparison, score_column: str, reference: str, reference_text: str) -> Columns:
    """Score, difference to the reference, verdict and seeds of each method.

    score_column: heading of the scores. reference: name of the reference in the heading of the differences. reference_text: what
    stands in place of its own difference.
    """
    scores = {line.method: estimate_cell(line.score, comparison.metric.display_factor) for line in comparison.lines}
    scale = comparison.metric.sign * comparison.metric.display_factor
    differences = {comparison.reference: Cell(reference_text)}
    for line in comparison.others:
        difference = None if line.verdict == NO_SEED else line.difference
        differences[line.method] = estimate_cell(difference, scale, signed=True, mark=REAL if line.real else "")
    verdicts = {line.method: Cell(line.verdict) for line in comparison.lines}
    seeds = {line.method: Cell.count(line.score.seeds) for line in comparison.lines}
    return {score_column: scores, f"difference to {reference}": differences, "verdict": verdicts, "seeds": seeds}


def comparison_rows(comparison: Comparison, columns: Columns) -> list[list[Cell]]:
    """A row a method, the reference marked."""
    rows = side_by_side([line.method for line in comparison.lines], columns.values())
    return [[replace(row[0], mark="best" if row[0].value == comparison.reference else ""), *row[1:]] for row in rows]


def comparison_table(name: str, title: str, comparisons: Mapping[str, Comparison]) -> Table:
    """Every method compared with the best, a block for each comparison. comparisons: by the heading of its block."""
    blocks, columns = [], ["method"]
    for heading, comparison in comparisons.items():
        cells = comparison_columns(comparison, "test metric", "the best", "best")
        columns = ["method", *cells]
        blocks.append(
            Block(f"{heading}, {comparison.label}, {comparison.seeds_text}", comparison_rows(comparison, cells))
        )
    notes = comparison_notes([line for comparison in comparisons.values() for line in comparison.lines])
    return Table(name, title, columns, blocks, [BEST_BY_TEST_NOTE, *notes])
