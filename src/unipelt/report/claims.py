"""The papers' claims, judged on a study's own runs.          Mao et al. 2022, arXiv:2110.07577, §4.2; He et al. 2022, §4"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from unipelt.report.comparison import scaled
from unipelt.report.names import FULL, OURS, PARTS, occurrences, seeds_text, size_label, task_label
from unipelt.report.samples import Sample, difference
from unipelt.report.statistics import BOTH, LEVEL, Estimate, estimate
from unipelt.report.tables import Block, Cell, Table

UNDECIDED = "not decided"


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
    return [_beats_its_parts(samples), _beats_full(samples), _never_worst(samples)]


UNIFIED = (
    ("parallel adapters beat sequential ones", "parallel-adapter", "adapter"),
    ("changing the FFN beats changing the attention", "parallel-adapter", "multi-head-parallel-adapter"),
    ("a scaled addition beats a plain one", "scaled-parallel-adapter", "parallel-adapter"),
)
"""claims of the unified view: the method that the claim calls better, and the other          He et al. 2022, §4"""


def unified_claims(samples: Sequence[Sample]) -> list[Claim]:
    """He et al.'s claims, judged in the same way; mam is best if it beats the best other method of each task."""
    found = []
    for text, better, other in UNIFIED:
        methods, why = standing(samples, (better, other))
        if not methods:
            found.append(Claim(text, UNDECIDED, None, why))
            continue
        number = average_difference(samples, [(methods[0], methods[1])] * len(samples))
        found.append(Claim(text, verdict(number), number, f"{methods[0]} over {methods[1]}", shown_as(samples)))
    text, (methods, why) = "mam is the best", standing(samples, ("mam",))
    if not methods or any(len(of.values) < 2 for of in samples):
        return [*found, Claim(text, UNDECIDED, None, why or "needs mam and another method on the same tasks")]
    (mam,) = methods
    pairs = [(mam, max(of.values.keys() - {mam}, key=lambda one, of=of: _mean(of, one))) for of in samples]  # type: ignore[misc]
    number = average_difference(samples, pairs)
    others = ", ".join(dict.fromkeys(other for _, other in pairs))
    return [*found, Claim(text, verdict(number), number, f"{mam} over {others}, the best other", shown_as(samples))]


def shown_as(samples: Sequence[Sample]) -> float:
    """What differences are multiplied with in tables; 100 where the tasks' metrics differ."""
    scales = {of.metric.shown_as for of in samples}
    return scales.pop() if len(scales) == 1 else 100.0


def standing(samples: Sequence[Sample], presets: Sequence[str]) -> tuple[list[str], str]:
    """For each of these presets the method that is in the study on every task, with any options; else none, and the reason."""
    there = {preset: occurrences(preset, {method for of in samples for method in of.values}) for preset in presets}
    for preset, found in there.items():
        if len(found) > 1:
            return [], f"{preset} occurs with several sets of options: {', '.join(found)}"
    methods = [method for found in there.values() for method in found]
    if len(methods) < len(presets) or any(method not in of.values for of in samples for method in methods):
        return [], f"needs {', '.join(presets)} on the same tasks"
    return methods, ""


def best_parts(samples: Sequence[Sample], methods: Sequence[str]) -> list[tuple[str, str]]:
    """The mixture compared with the best of its parts, for each task. methods: the mixture and its parts."""
    mixture, *parts = methods
    return [(mixture, max(parts, key=lambda part: _mean(of, part))) for of in samples]


def average_difference(samples: Sequence[Sample], pairs: Sequence[tuple[str, str]]) -> Estimate:
    """Mean over tasks of the difference of each task's pair of methods."""
    return estimate([difference(of, *pair) for of, pair in zip(samples, pairs)])


def verdict(found: Estimate) -> str:
    """Whether a number is above 0, by its interval over test examples and seeds."""
    if found.covers != BOTH or found.low is None or found.high is None:
        return UNDECIDED
    return "yes" if found.low > 0 else "no" if found.high < 0 else UNDECIDED


def _beats_its_parts(samples: Sequence[Sample]) -> Claim:
    text = f"{OURS} beats the best of its parts on average"
    methods, why = standing(samples, (OURS, *PARTS[OURS]))
    if not methods:
        return Claim(text, UNDECIDED, None, why)
    found = average_difference(samples, best_parts(samples, methods))
    return Claim(text, verdict(found), found, f"{_with_options(methods[0])}over the best part of each task")


def _beats_full(samples: Sequence[Sample]) -> Claim:
    text = f"{OURS} beats full fine-tuning on average"
    methods, why = standing(samples, (OURS, FULL))
    if not methods:
        return Claim(text, UNDECIDED, None, why)
    ours, full = methods
    found = average_difference(samples, [(ours, full)] * len(samples))
    return Claim(text, verdict(found), found, f"{_with_options(ours)}over full fine-tuning")


def _never_worst(samples: Sequence[Sample]) -> Claim:
    """Yes: on every task the lowest other method is surely below. No: on some task even the lowest is surely above, with an
    interval widened to that many tasks (Bonferroni)."""
    text = f"{OURS} is never the worst"
    methods, why = standing(samples, (OURS,))
    if not methods or any(len(of.values) < 2 for of in samples):
        return Claim(text, UNDECIDED, None, why or f"needs {OURS} and another method on the same tasks")
    (ours,) = methods
    margins = []
    for of in samples:
        lowest = min((method for method in of.values if method != ours), key=lambda method: _mean(of, method))
        gap = [difference(of, ours, lowest)]
        margins.append(
            (estimate(gap), verdict(estimate(gap, LEVEL / len(samples))), of.name.rpartition("/")[2], lowest)
        )
    found = {"no"} & {wide for _, wide, _, _ in margins} or {verdict(one) for one, _, _, _ in margins}
    said = found.pop() if len(found) == 1 else UNDECIDED
    least, _, task, lowest = min(
        margins, key=lambda margin: margin[0].value if margin[0].low is None else margin[0].low
    )
    return Claim(text, said, least, f"{_with_options(ours)}over {lowest}, the lowest other, on {task_label(task)}, the least sure task")  # fmt: skip


def _mean(of: Sample, method: str) -> float:
    """Higher is better."""
    value = round(fmean(of.values[method].values()), 12)
    return value if of.metric.higher_is_better else -value


def _with_options(ours: str) -> str:
    return "" if ours == OURS else f"{ours} "


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
    return f"{size_label(k)}: {claim.text}: {claim.verdict} ({', '.join(filter(None, [shown.text, shown.spread, seeds_text(claim.number.seeds)]))})"


def _cell(claim: Claim) -> Cell:
    if claim.number is None:
        return Cell(claim.verdict, note=claim.why)
    shown = scaled(claim.number, claim.scale, signed=True)
    mark = "" if claim.verdict == UNDECIDED else claim.verdict
    note = f"{shown.text} {claim.why}; {seeds_text(claim.number.seeds)}, interval over {claim.number.covers}"
    return replace(shown, value=claim.verdict, mark=mark, note=note)
