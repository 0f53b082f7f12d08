"""The paper's three claims, judged on a study's own runs.          Mao et al. 2022, arXiv:2110.07577, §4.2"""

from collections.abc import Sequence
from dataclasses import dataclass

from unipelt.report.cells import mean
from unipelt.report.names import FULL, OURS, PARTS, occurrences, task_label
from unipelt.report.significance import LEVEL, Estimate, Sample, average_difference, difference, estimate

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


def standing(samples: Sequence[Sample], presets: Sequence[str]) -> tuple[list[str], str]:
    """The methods that stand for these presets on every task, whatever their options; else none, and why not."""
    there = {preset: occurrences(preset, {method for of in samples for method in of.values}) for preset in presets}
    for preset, found in there.items():
        if len(found) > 1:
            return [], f"{preset} occurs with several sets of options: {', '.join(found)}"
    methods = [method for found in there.values() for method in found]
    if len(methods) < len(presets) or any(method not in of.values for of in samples for method in methods):
        return [], f"needs {', '.join(presets)} on the same tasks"
    return methods, ""


def best_parts(samples: Sequence[Sample], methods: Sequence[str]) -> list[tuple[str, str]]:
    """methods: a mixture and its submodules. The mixture beside the best of them, for each task."""
    mixture, *parts = methods
    return [(mixture, max(parts, key=lambda part: mean(of.values[part]))) for of in samples]


def claims(samples: Sequence[Sample]) -> list[Claim]:
    """Judged over all of these tasks; a difference whose interval holds 0 decides nothing."""
    return [_beats_its_parts(samples), _beats_full(samples), _never_worst(samples)]


def _beats_its_parts(samples: Sequence[Sample]) -> Claim:
    text = f"{OURS} beats the best of its parts on average"
    methods, why = standing(samples, (OURS, *PARTS[OURS]))
    if not methods:
        return Claim(text, UNDECIDED, None, why)
    found = average_difference(samples, best_parts(samples, methods))
    return _judged(text, found, f"{_with_options(methods[0])}over the best part of each task")


def _beats_full(samples: Sequence[Sample]) -> Claim:
    text = f"{OURS} beats full fine-tuning on average"
    methods, why = standing(samples, (OURS, FULL))
    if not methods:
        return Claim(text, UNDECIDED, None, why)
    ours, full = methods
    found = average_difference(samples, [(ours, full)] * len(samples))
    return _judged(text, found, f"{_with_options(ours)}over full fine-tuning")


def _never_worst(samples: Sequence[Sample]) -> Claim:
    """Yes: on every task the lowest other method is surely below. No: on some task even the lowest is surely above, the
    interval pad_mask to that many tasks (Bonferroni)."""
    text = f"{OURS} is never the worst"
    methods, why = standing(samples, (OURS,))
    if not methods or any(len(of.values) < 2 for of in samples):
        return Claim(text, UNDECIDED, None, why or f"needs {OURS} and another method on the same tasks")
    (ours,) = methods
    margins = []
    for of in samples:
        lowest = min((method for method in of.values if method != ours), key=lambda method: mean(of.values[method]))
        gap = [difference(of, ours, lowest)]
        margins.append((estimate(gap), estimate(gap, LEVEL / len(samples)).verdict, of.name.rpartition("/")[2], lowest))
    found = {"no"} & {wide for _, wide, _, _ in margins} or {one.verdict for one, _, _, _ in margins}
    said = found.pop() if len(found) == 1 else UNDECIDED
    least, _, task, lowest = min(
        margins, key=lambda margin: margin[0].value if margin[0].low is None else margin[0].low
    )
    return Claim(
        text,
        said,
        least,
        f"{_with_options(ours)}over {lowest}, the lowest other, on {task_label(task)}, the least sure task",
    )


def _judged(text: str, found: Estimate, why: str) -> Claim:
    return Claim(
        text,
        found.verdict,
        found,
        why if found.low is not None else f"{why}; no interval: one seed, and no predictions",
    )


def _with_options(ours: str) -> str:
    return "" if ours == OURS else f"{ours} "
