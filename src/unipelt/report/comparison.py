"""Methods compared with a reference method: the one object that the terminal, the page and every file of a report show."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from unipelt.report.names import counts_text, in_folds, listed, seeds_text, size_label
from unipelt.report.samples import LARGEST, TIE, Sample, difference, own
from unipelt.report.statistics import BOTH, EXAMPLES, SEEDS, Estimate, estimate, holm, own_estimate
from unipelt.report.tables import Block, Cell, Table

CONSTANT = "constant"  # the baseline
REAL, CHANCE, ONE_SEED, NO_SEED = "real", "may be chance", "not judged: one seed", "no seed in common"


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
        unknown = (NO_SEED, "not judged: one seed, no predictions", "not judged: no interval")
        judged = REAL if self.real else "equal" if self.equal else CHANCE
        words = {EXAMPLES: ONE_SEED, SEEDS: "not judged: no predictions", BOTH: judged}
        return words.get(self.gap.covers) or unknown[min(self.gap.seeds, 2)]

    @property
    def covers(self) -> str:
        """What the intervals of its row allow for."""
        return self.gap.covers if self.gap and self.word != NO_SEED else self.score.covers


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods on the same tasks, compared with a reference method. Numbers are in the unit of the metric; tables show them × scale."""

    tasks: int
    metric: str
    """empty where tasks have different ones"""
    scale: float
    sign: float
    """1, or −1 where lower is better"""
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
    names = {of.metric.name for of in samples}
    return Comparison(
        tasks=len(samples), metric=judge.name if len(names) == 1 else "", scale=judge.shown_as, reference=first, lines=lines,
        sign=judge.sign, largest=_largest(samples),
    )  # fmt: skip


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


def _largest(samples: Sequence[Sample]) -> float | None:
    known = [of.constant for of in samples if of.constant is not None]
    return fmean(known) if len(known) == len(samples) and any(of.largest for of in samples) else None


def headline(found: Mapping[int | str, Comparison]) -> str:
    """All sizes in a few sentences: the best method, and whether its lead is real. Nothing is judged from one seed."""
    judged = {k: one for k, one in found.items() if one.others}
    if not judged:
        alone = [f"{size_label(k)}: {one.reference} alone, nothing to compare it with" for k, one in found.items()]
        return "; ".join(alone) or "Nothing can be compared yet"
    leaders, leads = defaultdict(list), defaultdict(list)
    for k, one in judged.items():
        leaders[f"{one.best} {'share' if any(line.equal for line in one.others) else 'has'}"].append(k)
        if one.next is not None and one.next.gap is not None:
            word = one.next.word if one.next.word == CHANCE else f"is {one.next.word.partition(':')[0]}"
            leads[word, seeds_text(one.next.gap.seeds)].append(k)
    what = "average" if any(one.tasks > 1 for one in judged.values()) else "test result"
    said = [f"{who} the best {what} at K\u00a0=\u00a0{listed(sizes)}" for who, sizes in leaders.items()]
    verdicts = [f"{word} at K\u00a0=\u00a0{listed(sizes)} ({seeds})" for (word, seeds), sizes in leads.items()]
    return "; ".join(said) + "." + (f" The lead over the next method {listed(verdicts)}." if verdicts else "")


def scaled(found: Estimate | None, scale: float, negate: bool = False, signed: bool = False, mark: str = "") -> Cell:
    """A number with its interval, as tables show it; negate: of a metric that is better when lower, the difference as it is."""
    if found is None:
        return Cell()
    found = found.negated if negate else found
    low, high = (None if edge is None else scale * edge for edge in (found.low, found.high))
    return Cell(scale * found.value, low=low, high=high, signed=signed, mark=mark)


def gap_cell(one: Comparison, line: Line) -> Cell:
    """A method's difference to the reference; marked where it is real."""
    return scaled(line.gap, one.scale, one.sign < 0, signed=True, mark=REAL if line.real else "")


ABOUT = {
    CONSTANT: "always the largest class of the training examples, or their mean",
    "tfidf": "logistic or ridge regression on words and pairs of words",
    "probe": "logistic or ridge regression on what the head of the untuned base reads",
}
FOLDS_NOTE = "Every example was answered once, by a model that did not see it. These answers rank the methods too, so the best is a little flattered. Validation examples inside the folds chose the learning rates."  # fmt: skip
OWN_NOTE = "Validation examples rank the methods and choose their learning rates; test examples chose nothing."
BEST_NOTE = "The best is chosen by test results, so the correction counts every pair of methods."
REAL_NOTE = "Real: p < 0.05 after Holm's correction over the comparisons, with two seeds at least. One seed cannot show what training changes, so nothing is judged from it."  # fmt: skip
STORED_NOTE = "Stored: what the file of a run holds; the MLP of a prefix is needed in training alone."
TIMES_NOTE = "Times are those of one run on this machine, its share where several ran at once."


def comparison_table(found: Mapping[int | str, Comparison], own_file: bool) -> Table:
    """One block per size: every method compared with the reference. own_file: validation chose the reference, which comes first."""
    blocks, columns = [], ["method"]
    lines = [line for one in found.values() for line in one.lines]
    covers = {line.covers for line in lines}
    alike = len(covers) == 1
    for k, one in found.items():
        rows = [_cells(one, line, own_file, alike) for line in one.lines]
        columns = [*rows[0]]
        if one.largest is not None and not any(line.method == CONSTANT for line in one.lines):
            scored = columns[columns.index("verdict") - 2]
            rows.append(
                dict.fromkeys(columns, Cell("")) | {"method": Cell(LARGEST), scored: Cell(one.scale * one.largest)}
            )
        tasks = f"{one.tasks} tasks" if one.tasks > 1 else ""
        heading = "" if own_file else ", ".join(filter(None, [size_label(k), tasks, one.seeds]))
        blocks.append(Block(heading, [[*row.values()] for row in rows]))
    over = f"the intervals allow for {next(iter(covers))}" if alike else "'intervals over' says what they allow for"
    notes = [OWN_NOTE if own_file else BEST_NOTE]
    notes += [STORED_NOTE] * any(line.stored not in (None, line.parameters) for line in lines if own_file)
    notes += [f"In brackets: 95 % intervals; {over}. Differences are paired: over the same seeds and test examples."]
    notes += [REAL_NOTE, *[TIMES_NOTE] * own_file]
    notes += [f"{name}: {what}." for name, what in ABOUT.items() if name in {line.method for line in lines}]
    if any(one.folds for one in found.values()):
        columns, notes = [in_folds(column) for column in columns], [FOLDS_NOTE, *map(in_folds, notes[1:])]
        blocks = [replace(block, rows=[[*map(_in_folds, row)] for row in block.rows]) for block in blocks]
    title = f"Every method beside the {'recommended one' if own_file else 'best'}"
    return Table("comparison", title, columns, blocks, notes)


def narrow(table: Table) -> Table:
    """A comparison as a terminal shows it: the columns up to the verdict, or the trained parameters where it has them."""
    last = max(place for place, name in enumerate(table.columns) if name in ("verdict", "trained parameters"))
    shown, left = table.columns[: last + 1], table.columns[last + 1 :]
    blocks = [replace(block, rows=[row[: last + 1] for row in block.rows]) for block in table.blocks]
    notes = [note for note in table.notes if note not in (TIMES_NOTE, in_folds(TIMES_NOTE))]
    notes.append(f"{table.name}.csv and the page also have: {'; '.join(left)}.")
    return replace(table, columns=shown, blocks=blocks, notes=notes)


def _in_folds(cell: Cell) -> Cell:
    return replace(cell, value=in_folds(cell.value)) if isinstance(cell.value, str) else cell


def _cells(one: Comparison, line: Line, own_file: bool, alike: bool) -> dict[str, Cell]:
    """The row of a method by column. alike: the intervals of every row allow for the same, which a note says."""
    first, word = line.method == one.reference, "recommended" if own_file else "best"
    what = (one.metric.replace("_", " ") if one.metric else "metric, average") + ("" if one.scale == 1 else " ×100")
    cells = {"method": Cell(line.method, mark="best" if first else "")}
    if own_file and not one.folds:
        cells[f"validation {what}"] = Cell(None if line.validation is None else one.scale * line.validation)
    cells[f"{'out-of-fold' if one.folds else 'test'} {what}"] = scaled(line.score, one.scale)
    gap = Cell(word) if first else Cell("") if line.word == NO_SEED else gap_cell(one, line)
    cells |= {f"difference to {one.reference if own_file else 'the best'}": gap, "verdict": Cell(line.word)}
    if own_file:
        cells |= {
            "trained parameters": Cell(counts_text(line.parameters, line.stored)),
            "training time, s": Cell(line.seconds, digits=0),
            "prediction time, ms an example": Cell(None if line.per_text is None else 1000 * line.per_text, digits=1),
            "learning rate": Cell(line.lr, digits=-1),
        }
    cells["seeds"] = Cell(line.score.seeds, digits=0)
    return cells if alike else cells | {"intervals over": Cell(line.covers)}
