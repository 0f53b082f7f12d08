"""The papers' claims, judged on a study's own runs.          Mao et al. 2022, arXiv:2110.07577, §4.2; He et al. 2022, §4"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unipelt.report.comparison import scaled
from unipelt.report.names import OURS, PARTS, occurrences, seeds_text, size_label, task_label
from unipelt.report.samples import Sample, difference
from unipelt.report.statistics import BOTH, LEVEL, Estimate, estimate
from unipelt.report.tables import Block, Cell, Table
from unipelt.train.records import FULL

UNDECIDED = "not decided"
CLAIMS = {
    f"{OURS} beats the best of its parts on average": (OURS, *PARTS[OURS]),
    f"{OURS} beats full fine-tuning on average": (OURS, FULL),
    "parallel adapters beat sequential ones": ("parallel-adapter", "adapter"),
    "changing the FFN beats changing the attention": ("parallel-adapter", "multi-head-parallel-adapter"),
    "a scaled addition beats a plain one": ("scaled-parallel-adapter", "parallel-adapter"),
    "mam is the best": ("mam",),
}
"""by claim: the method that it calls better, and those of which the best on each task is the other; without any, all others"""


@dataclass(frozen=True)
class Claim:
    """One claim at one size."""

    text: str
    verdict: str
    """yes, no or not decided"""
    number: Estimate | None
    """None: the runs for it are not there"""
    why: str
    scale: float = 100.0
    """what the number is multiplied with in tables"""


def claims(samples: Sequence[Sample]) -> list[Claim]:
    """The verdict over all of these tasks. Not decided: the interval contains 0, or there is only one seed."""
    return [*(_beats(samples, text, presets) for text, presets in CLAIMS.items()), _never_worst(samples)]


def _beats(samples: Sequence[Sample], text: str, presets: Sequence[str]) -> Claim:
    methods, why = methods_for(samples, presets)
    if not methods:
        return Claim(text, UNDECIDED, None, why)
    pairs = best_others(samples, *methods)
    number, others = average_difference(samples, pairs), ", ".join(dict.fromkeys(other for _, other in pairs))
    of_each = ", the best of each task" if len(presets) != 2 else ""
    return Claim(text, verdict(number), number, f"{methods[0]} over {others}{of_each}", shown_as(samples))


def shown_as(samples: Sequence[Sample]) -> float:
    """What differences are multiplied with in tables; 100 where the tasks' metrics differ."""
    scales = {of.metric.shown_as for of in samples}
    return scales.pop() if len(scales) == 1 else 100.0


def methods_for(samples: Sequence[Sample], presets: Sequence[str]) -> tuple[list[str], str]:
    """For each of these presets the method that is in the study on every task, with any options; else none, and the reason.

    One preset alone needs another method on each task.
    """
    there = {preset: occurrences(preset, {method for of in samples for method in of.values}) for preset in presets}
    for preset, found in there.items():
        if len(found) > 1:
            return [], f"{preset} occurs with several sets of options: {', '.join(found)}"
    methods = [method for found in there.values() for method in found]
    if len(methods) < len(presets) or any(method not in of.values for of in samples for method in methods):
        return [], f"needs {', '.join(presets)} on the same tasks"
    if any(len(of.values) < 2 for of in samples):
        return [], f"needs {presets[0]} and another method on the same tasks"
    return methods, ""


def best_others(samples: Sequence[Sample], method: str, *others: str) -> list[tuple[str, str]]:
    """For each task the method, and the best of these others; of all others where none are given."""
    return [(method, max(others or [one for one in of.values if one != method], key=of.score)) for of in samples]


def average_difference(samples: Sequence[Sample], pairs: Sequence[tuple[str, str]]) -> Estimate:
    """Mean over tasks of the difference of each task's pair of methods."""
    return estimate([difference(of, *pair) for of, pair in zip(samples, pairs)])


def verdict(found: Estimate) -> str:
    """Whether a number is above 0, by its interval over test examples and seeds."""
    if found.covers != BOTH or found.low is None or found.high is None:
        return UNDECIDED
    return "yes" if found.low > 0 else "no" if found.high < 0 else UNDECIDED


def _never_worst(samples: Sequence[Sample]) -> Claim:
    """Yes: on every task the lowest other method is surely below. No: on some task even the lowest is surely above, with an
    interval widened to that many tasks (Bonferroni)."""
    text, (methods, why) = f"{OURS} is never the worst", methods_for(samples, (OURS,))
    if not methods:
        return Claim(text, UNDECIDED, None, why)
    (ours,) = methods
    margins, said, surely = [], set(), set()
    for of in samples:
        lowest = min((method for method in of.values if method != ours), key=of.score)
        gap = [difference(of, ours, lowest)]
        margin = estimate(gap)
        said.add(verdict(margin))
        surely.add(verdict(estimate(gap, LEVEL / len(samples))))
        margins.append((margin.value if margin.low is None else margin.low, margin, of, lowest))
    _, least, of, lowest = min(margins, key=lambda margin: margin[0])
    word = "no" if "no" in surely else said.pop() if len(said) == 1 else UNDECIDED
    task = task_label(of.name.rpartition("/")[2])
    return Claim(text, word, least, f"{ours} over {lowest}, the lowest other, on {task}, the least sure task", of.metric.shown_as)  # fmt: skip


def claim_table(found: Mapping[int | str, Sequence[Claim]]) -> Table:
    """A row a claim, a column a size; empty where the runs for every claim are missing."""
    rows = [[Cell(of[0].text), *map(_cell, of)] for of in zip(*found.values()) if any(claim.number for claim in of)]
    note = "Yes or no: the 95 % interval over test examples and training seeds leaves out 0, with two seeds at least; else not decided. Differences as in the tables of scores, positive where the first is better."
    return Table("claims", "The papers' claims on these runs", ["claim", *map(size_label, found)], [Block("", rows)], [note])  # fmt: skip


def claim_line(k: int | str, claim: Claim) -> str:
    """One line; empty where the runs for it are missing."""
    if claim.number is None:
        return ""
    shown = scaled(claim.number, claim.scale, signed=True)
    numbers = ", ".join(filter(None, [shown.text, shown.spread, seeds_text(claim.number.seeds)]))
    return f"{size_label(k)}: {claim.text}: {claim.verdict} ({numbers})"


def _cell(claim: Claim) -> Cell:
    if claim.number is None:
        return Cell(claim.verdict, note=claim.why)
    shown = scaled(claim.number, claim.scale, signed=True)
    mark = "" if claim.verdict == UNDECIDED else claim.verdict
    note = f"{shown.text} {claim.why}; {seeds_text(claim.number.seeds)}, interval over {claim.number.covers}"
    return replace(shown, value=claim.verdict, mark=mark, note=note)
