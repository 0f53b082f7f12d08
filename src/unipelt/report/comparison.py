"""Methods compared with a reference method: the one object that the terminal, the page and every file of a report show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from unipelt.report.names import counts_text, in_folds, listed, seeds_text, size_label
from unipelt.report.samples import LARGEST, TIE, Sample, difference, own
from unipelt.report.statistics import BOTH, EXAMPLES, NOTHING, Estimate, estimate, holm, own_estimate
from unipelt.report.tables import Block, Cell, Table

CONSTANT = "constant"  # the baseline
REAL, CHANCE, ONE_SEED = "real", "may be chance", "not judged: one seed"


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
    validation: float | None = None
    lr: float | None = None
    parameters: int | None = None
    """numbers that were trained"""
    seconds: float | None = None
    """of training, evaluation included: mean of its runs"""
    per_text: float | None = None
    """seconds to predict one test example: mean of its runs"""
    stored: int | None = None
    """numbers that the checkpoint holds"""

    @property
    def real(self) -> bool:
        """Whether the gap is beyond chance."""
        return self.gap is not None and self.gap.real(self.corrected)

    @property
    def equal(self) -> bool:
        return self.gap is not None and abs(self.gap.value) < TIE

    @property
    def word(self) -> str:
        """What the gap means."""
        if self.gap is None:
            return ""
        if self.gap.covers == NOTHING:
            return ("no seed in common", "not judged: one seed, no predictions", "not judged: no interval")[
                min(self.gap.seeds, 2)
            ]
        if self.gap.covers == EXAMPLES:
            return ONE_SEED
        if self.gap.covers != BOTH:
            return "not judged: no predictions"
        return REAL if self.real else "equal" if self.equal else CHANCE


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods on the same tasks, compared with a reference method. Numbers are in the unit of the metric; tables show them × scale."""

    tasks: int
    metric: str
    """empty where tasks have different ones"""
    scale: float
    higher_is_better: bool
    reference: str
    lines: Sequence[Line]
    """in the order in which they are shown"""
    folds: int = 0
    """of a cross-validation, which are the seeds"""
    largest: float | None
    """the metric of always naming the most frequent class of the test examples; None where there are no classes"""

    @property
    def chosen(self) -> Line:
        """The reference's own line."""
        return next(line for line in self.lines if line.method == self.reference)

    @property
    def others(self) -> list[Line]:
        return [line for line in self.lines if line.method != self.reference]

    @property
    def best(self) -> str:
        """The reference, or all methods that are as good."""
        tied = [self.reference, *(line.method for line in self.others if line.equal)]
        return f"all {len(tied)} methods" if 2 < len(tied) == len(self.lines) else listed(tied)

    @property
    def next(self) -> Line | None:
        """The best of those that are not as good."""
        return next((line for line in self.others if not line.equal), None)

    @property
    def seeds(self) -> str:
        """`3 seeds` that two methods share, or `1 to 3 seeds`."""
        return seeds_text(*sorted({line.gap.seeds for line in self.others if line.gap} or {self.chosen.score.seeds}))

    def shown(self, value: float | None) -> float | None:
        return None if value is None else self.scale * value


def compare(samples: Sequence[Sample], methods: Sequence[str], reference: str | None = None) -> Comparison:
    """Every method less the reference, averaged over these tasks, whose metrics have one direction and unit.

    p is corrected by Holm's method: over the methods where a reference is given, which test examples must not have chosen; else
    the reference is the method with the best test metric, and every pair of methods counts.
    """
    judge = samples[0].metric
    sign = 1.0 if judge.higher_is_better else -1.0
    scores = {method: _score(samples, method) for method in methods}
    order = sorted(methods, key=lambda method: -round(sign * scores[method].value, 12))
    first = reference or order[0]
    rest = [method for method in order if method != first]
    gaps = {method: _gap(samples, method, first) for method in rest}
    pairs = 0 if reference else len(methods) * (len(methods) - 1) // 2
    corrected = dict(zip(rest, holm([gaps[method].p for method in rest], pairs)))
    lines = [Line(method=m, score=scores[m], gap=gaps.get(m), corrected=corrected.get(m)) for m in [first, *rest]]
    names = {of.metric.name for of in samples}
    return Comparison(
        tasks=len(samples), metric=judge.name if len(names) == 1 else "", scale=judge.shown_as, reference=first, lines=lines,
        higher_is_better=judge.higher_is_better, largest=_largest(samples),
    )  # fmt: skip


def _gap(samples: Sequence[Sample], method: str, first: str) -> Estimate:
    """One method less another.

    The class that `constant` names may change with the training examples of a seed, which says nothing of the other method.
    No constant answer is right more often than the best one, so that one is what the difference must leave behind.
    """
    found = estimate([difference(of, method, first) for of in samples])
    if CONSTANT not in (method, first) or not all(map(_constant_changes, samples)):
        return found
    bound = estimate(
        [difference(of, *(LARGEST if one == CONSTANT else one for one in (method, first))) for of in samples]
    )
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


def _largest(samples: Sequence[Sample]) -> float | None:
    """A constant correlates with nothing: 0 for a task of numbers."""
    known = [of.largest for of in samples]
    if not any(known) or any(not one and of.metric.low == 0 for one, of in zip(known, samples)):
        return None
    return fmean(fmean(one.values()) if one else 0.0 for one in known)


def beside_largest_class(of: Sample, method: str) -> Estimate | None:
    """A method less always naming the largest class; None where there are no classes or predictions."""
    return estimate([difference(of, method, LARGEST)]) if of.largest else None


def headline(found: Mapping[int | str, Comparison]) -> str:
    """All sizes in a few sentences: the best method, and whether its lead is real. Nothing is judged from one seed."""
    judged = {k: one for k, one in found.items() if one.others}
    if not judged:
        alone = [f"{size_label(k)}: {one.reference} alone, nothing to compare it with" for k, one in found.items()]
        return "; ".join(alone) or "Nothing can be compared yet"
    leaders: dict[str, list[int | str]] = {}
    for k, one in judged.items():
        leaders.setdefault(one.best, []).append(k)
    what = "average" if any(one.tasks > 1 for one in judged.values()) else "test result"
    said = [f"{best} {'share' if _several(judged[sizes[0]]) else 'has'} the best {what} at {_sizes(sizes)}" for best, sizes in leaders.items()]  # fmt: skip
    leads: dict[tuple[str, int], list[int | str]] = {}
    for k, one in judged.items():
        if one.next is not None and one.next.gap is not None:
            leads.setdefault((one.next.word, one.next.gap.seeds), []).append(k)
    verdicts = [f"{_verdict(word)} at {_sizes(sizes)} ({seeds_text(seeds)})" for (word, seeds), sizes in leads.items()]
    return "; ".join(said) + "." + (f" The lead over the next method {listed(verdicts)}." if verdicts else "")


def _several(one: Comparison) -> bool:
    return any(line.equal for line in one.others)


def _verdict(word: str) -> str:
    return word if word == CHANCE else f"is {word.partition(':')[0]}"


def _sizes(sizes: Sequence[int | str]) -> str:
    return f"K\u00a0=\u00a0{listed(sizes)}"


def scaled(found: Estimate | None, scale: float, turn: bool = False, **more: object) -> Cell:
    """A number with its interval, as tables show it; turn: of a metric that is better when lower, the difference as it is."""
    if found is None:
        return Cell()
    found = found.turned if turn else found
    low, high = (None if edge is None else scale * edge for edge in (found.low, found.high))
    return replace(Cell(scale * found.value, low=low, high=high), **more)  # type: ignore[arg-type]


ABOUT = {
    CONSTANT: "always the largest class of the training examples, or their mean",
    "tfidf": "logistic or ridge regression on words and pairs of words",
    "probe": "logistic or ridge regression on what the head of the untuned base reads",
}
FOLDS_NOTE = "Every example was answered once, by a model that did not see it. These answers rank the methods too, so the best is a little flattered. Validation examples inside the folds chose the learning rates."  # fmt: skip
REAL_NOTE = "Real: p < 0.05 after Holm's correction over the comparisons, with two seeds at least. One seed cannot show what training changes, so nothing is judged from it."  # fmt: skip


def comparison_table(found: Mapping[int | str, Comparison], own_file: bool) -> Table:
    """One block per size: every method compared with the reference. own_file: validation chose the reference, which comes first."""
    blocks, columns, stored = [], [], False
    alike = own_file and {_covers(line) for one in found.values() for line in one.lines}
    for k, one in found.items():
        unit = "" if one.scale == 1 else " ×100"
        what = one.metric.replace("_", " ") if one.metric else "metric, average"
        left = [f"validation {what}{unit}"] if own_file and not one.folds else []
        against = f"difference to {one.reference}" if own_file else "difference to the best"
        right = (
            ["trained parameters", "training time, s", "prediction time, ms an example", "learning rate"]
            if own_file
            else []
        )
        right += ["seeds", *([] if alike and len(alike) == 1 else ["intervals over"])]
        scored = "out-of-fold" if one.folds else "test"
        stored = stored or any(line.stored not in (None, line.parameters) for line in one.lines if own_file)
        columns = ["method", *left, f"{scored} {what}{unit}", against, "verdict", *right]
        rows = [_row(one, line, own_file, len(columns)) for line in one.lines]
        if one.largest is not None and not any(line.method == CONSTANT for line in one.lines):
            row = [Cell(LARGEST), *[Cell("")] * len(left), Cell(one.shown(one.largest))]
            rows.append(row + [Cell("")] * (len(columns) - len(row)))
        tasks = f"{one.tasks} tasks" if one.tasks > 1 else ""
        blocks.append(Block("" if own_file else ", ".join(filter(None, [size_label(k), tasks, one.seeds])), rows))
    title = "Every method beside the recommended one" if own_file else "Every method beside the best"
    notes = ["Validation examples rank the methods and choose their learning rates; test examples chose nothing."] if own_file else ["The best is chosen by test results, so the correction counts every pair of methods."]  # fmt: skip
    if stored:
        notes.append("Stored: what the file of a run holds; the MLP of a prefix is needed in training alone.")
    over = (
        f"the intervals allow for {alike.pop()}"
        if alike and len(alike) == 1
        else "the last column says what they allow for"
    )
    paired = "Differences are paired: over the same seeds and test examples."
    times = ["Times are those of one run on this machine, its share where several ran at once."] if own_file else []
    there = {line.method for one in found.values() for line in one.lines}
    about = [f"{name}: {what}." for name, what in ABOUT.items() if name in there]
    notes += [f"In brackets: 95 % intervals; {over}. {paired}", REAL_NOTE, *times, *about]
    if any(one.folds for one in found.values()):
        columns, notes = [in_folds(column) for column in columns], [FOLDS_NOTE, *map(in_folds, notes[1:])]
        blocks = [replace(block, rows=[[_in_folds(cell) for cell in row] for row in block.rows]) for block in blocks]
    return Table("comparison", title, columns, blocks, notes)


def _in_folds(cell: Cell) -> Cell:
    return replace(cell, value=in_folds(cell.value)) if isinstance(cell.value, str) else cell


def _covers(line: Line) -> str:
    return line.gap.covers if line.gap and line.word != "no seed in common" else line.score.covers


def _row(one: Comparison, line: Line, own_file: bool, columns: int) -> list[Cell]:
    first = line.method == one.reference
    gap = scaled(line.gap, one.scale, not one.higher_is_better, signed=True, mark="real" if line.real else "")
    gap = (
        Cell("recommended" if own_file else "best") if first else gap if line.word != "no seed in common" else Cell("")
    )
    left = [Cell(one.shown(line.validation))] if own_file and not one.folds else []
    right = [
        Cell(counts_text(line.parameters, line.stored)), Cell(line.seconds, digits=0),
        Cell(None if line.per_text is None else 1000 * line.per_text, digits=1), Cell(line.lr, digits=-1),
    ] if own_file else []  # fmt: skip
    row = [
        Cell(line.method, mark="best" if first else ""), *left, scaled(line.score, one.scale), gap, Cell(line.word), *right,
        Cell(line.score.seeds, digits=0), Cell(_covers(line)),
    ]  # fmt: skip
    return row[:columns]
