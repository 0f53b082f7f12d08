"""The paper's three claims, judged on a study's own runs.          Mao et al. 2022, arXiv:2110.07577, §4.2"""

from collections.abc import Sequence
from dataclasses import dataclass

from unipelt.report.cells import mean
from unipelt.report.names import FULL, OURS, PARTS, task_label
from unipelt.report.significance import LEVEL, Estimate, Sample, average_difference, difference, estimate


@dataclass(frozen=True)
class Claim:
    """One claim at one size."""

    text: str
    verdict: str
    """yes, no or not decided"""
    number: Estimate | None
    """None: the runs for it are not there"""
    why: str


def best_parts(samples: Sequence[Sample], mixture: str) -> list[str] | None:
    """The best submodule of a mixture on each task; None where a task lacks one of them, or the mixture."""
    parts = PARTS[mixture]
    if not samples or any(method not in of.values for of in samples for method in (mixture, *parts)):
        return None
    return [max(parts, key=lambda part: mean(of.values[part])) for of in samples]


def claims(samples: Sequence[Sample]) -> list[Claim]:
    """Judged over all of these tasks; a difference whose interval holds 0 decides nothing."""
    return [_beats_its_parts(samples), _beats_full(samples), _never_worst(samples)]


def _beats_its_parts(samples: Sequence[Sample]) -> Claim:
    text = f"{OURS} beats the best of its parts on average"
    parts = best_parts(samples, OURS)
    if parts is None:
        return _missing(text, (OURS, *PARTS[OURS]))
    return _judged(
        text, average_difference(samples, [(OURS, part) for part in parts]), "over the best part of each task"
    )


def _beats_full(samples: Sequence[Sample]) -> Claim:
    text = f"{OURS} beats full fine-tuning on average"
    if not samples or any(method not in of.values for of in samples for method in (OURS, FULL)):
        return _missing(text, (OURS, FULL))
    return _judged(text, average_difference(samples, [(OURS, FULL)] * len(samples)), "over full fine-tuning")


def _never_worst(samples: Sequence[Sample]) -> Claim:
    """Yes: on every task the lowest other method is surely below. No: on some task even the lowest is surely above, the
    interval widened to that many tasks (Bonferroni)."""
    text = f"{OURS} is never the worst"
    if not samples or any(OURS not in of.values or len(of.values) < 2 for of in samples):
        return _missing(text, (OURS, "another method"))
    margins = []
    for of in samples:
        lowest = min((method for method in of.values if method != OURS), key=lambda method: mean(of.values[method]))
        gap = [difference(of, OURS, lowest)]
        margins.append((estimate(gap), estimate(gap, LEVEL / len(samples)).verdict, of.name.rpartition("/")[2], lowest))
    found = {"no"} & {wide for _, wide, _, _ in margins} or {one.verdict for one, _, _, _ in margins}
    said = found.pop() if len(found) == 1 else "not decided"
    least, _, task, lowest = min(
        margins, key=lambda margin: margin[0].value if margin[0].low is None else margin[0].low
    )
    return Claim(text, said, least, f"over {lowest}, the lowest other, on {task_label(task)}, the least sure task")


def _judged(text: str, found: Estimate, why: str) -> Claim:
    return Claim(
        text,
        found.verdict,
        found,
        why if found.low is not None else f"{why}; no interval: one seed, and no predictions",
    )


def _missing(text: str, needed: Sequence[str]) -> Claim:
    return Claim(text, "not decided", None, f"needs {', '.join(needed)} on the same tasks")
