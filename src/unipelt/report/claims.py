"""The papers' claims, judged on a study's own runs.          Mao et al. 2022, arXiv:2110.07577, §4.2; He et al. 2022, §4"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unipelt.report.comparison import estimate_cell
from unipelt.report.names import PAPER_METHOD, PARTS, occurrences, size_label, task_label
from unipelt.report.samples import Sample, difference
from unipelt.report.statistics import BOTH, LEVEL, Estimate, estimate
from unipelt.report.tables import Block, Cell, Table
from unipelt.train.records import FULL

UNDECIDED = "not decided"
CLAIMS = {
    f"{PAPER_METHOD} beats the best of its parts on average": (PAPER_METHOD, *PARTS[PAPER_METHOD]),
    f"{PAPER_METHOD} beats full fine-tuning on average": (PAPER_METHOD, FULL),
    "parallel adapters beat sequential ones": ("parallel-adapter", "adapter"),
    "changing the FFN beats changing the attention": ("parallel-adapter", "multi-head-parallel-adapter"),
    "a scaled addition beats a plain one": ("scaled-parallel-adapter", "parallel-adapter"),
    "mam is the best": ("mam",),
}
"""claim → (the method said to be better, the methods it is compared with: on each task with the best of them). With one entry:
compared with the best of all other methods."""
NEVER_WORST = f"{PAPER_METHOD} is never the worst"
ONE_RATE_NOTE = "Every method was trained at one learning rate. Another rate may change the order: --num-rates 2 tries a lower one too, and validation examples choose."  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """One claim at one size."""

    text: str
    verdict: str
    """yes, no or not decided: the interval contains 0, or there is only one seed"""
    number: Estimate
    """a difference of two methods, in the unit of tables"""
    between: str
    """which methods are compared"""


def claims(samples: Sequence[Sample]) -> list[Claim]:
    """The verdict on each claim whose methods are there, over all of these tasks."""
    judged = [_beats(samples, text, presets) for text, presets in CLAIMS.items()]
    return [claim for claim in (*judged, _never_worst(samples)) if claim]


def _beats(samples: Sequence[Sample], text: str, presets: Sequence[str]) -> Claim | None:
    methods = methods_for(samples, presets)
    if not methods:
        return None
    claimed, *parts = methods
    differences, others = [], []
    for sample in samples:
        best = max(parts or [method for method in sample.values if method != claimed], key=sample.score)
        differences.append(difference(sample, claimed, best))
        others.append(best)
    estimated = estimate(differences)
    of_each = ", the best of each task" if len(presets) != 2 else ""
    units = {sample.metric.display_factor for sample in samples}
    shown = estimated.times(units.pop() if len(units) == 1 else 100.0)
    return Claim(text, verdict(estimated), shown, f"{claimed} and {', '.join(dict.fromkeys(others))}{of_each}")


def methods_for(samples: Sequence[Sample], presets: Sequence[str]) -> list[str]:
    """For each of these presets the method that is in the study on every task, with any one set of options, where there is
    another method too; else none."""
    everywhere = set.intersection(*({*sample.values} for sample in samples)) if samples else set()
    matching = [occurrences(preset, {method for sample in samples for method in sample.values}) for preset in presets]
    if any(len(methods) != 1 or methods[0] not in everywhere for methods in matching):
        return []
    return [] if any(len(sample.values) < 2 for sample in samples) else [methods[0] for methods in matching]


def verdict(number: Estimate) -> str:
    """Whether a number is above 0, by its interval over test examples and seeds."""
    if number.covers != BOTH or number.low is None or number.high is None:
        return UNDECIDED
    return "yes" if number.low > 0 else "no" if number.high < 0 else UNDECIDED


def _never_worst(samples: Sequence[Sample]) -> Claim | None:
    """Yes: on every task the lowest other method is surely below. No: on some task even the lowest is surely above, with an
    interval widened to that many tasks (Bonferroni). Its number is that of the least sure task."""
    methods = methods_for(samples, (PAPER_METHOD,))
    if not methods:
        return None
    (claimed,) = methods
    margins, worst_somewhere = [], False
    for sample in samples:
        lowest = min((method for method in sample.values if method != claimed), key=sample.score)
        differences = [difference(sample, claimed, lowest)]
        margins.append((estimate(differences), lowest, sample))
        worst_somewhere |= verdict(estimate(differences, LEVEL / len(samples))) == "no"
    verdicts = {verdict(margin) for margin, *_ in margins}
    least_sure, lowest, sample = min(
        margins, key=lambda margin: margin[0].value if margin[0].low is None else margin[0].low
    )
    answer = "no" if worst_somewhere else verdicts.pop() if len(verdicts) == 1 else UNDECIDED
    task = task_label(sample.task)
    between = f"{claimed} and {lowest}, the lowest other, on {task}, the least sure task"
    return Claim(NEVER_WORST, answer, least_sure.times(sample.metric.display_factor), between)


def claim_table(claims_by_size: Mapping[int | str, Sequence[Claim]], one_rate: bool) -> Table:
    """A block a size, a row a claim. one_rate: whether each method was trained at one learning rate."""
    blocks = [Block(size_label(k), [*map(_row, claims)]) for k, claims in claims_by_size.items() if claims]
    note = "Yes or no: the 95 % interval over test examples and training seeds leaves out 0, with two seeds at least; else not decided. Differences are positive where the first method is better."  # fmt: skip
    columns = ["claim", "verdict", "difference", "seeds", "between"]
    notes = [note] + [ONE_RATE_NOTE] * one_rate
    return Table("claims", "The papers' claims on these runs", columns, blocks, notes)


def _row(claim: Claim) -> list[Cell]:
    mark, number = "" if claim.verdict == UNDECIDED else claim.verdict, estimate_cell(claim.number, signed=True)
    return [
        Cell(claim.text),
        Cell(claim.verdict, mark=mark),
        number,
        Cell.count(claim.number.seeds),
        Cell(claim.between),
    ]
