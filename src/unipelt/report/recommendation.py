"""Which method to take for one's own file: validation examples choose it, test examples say how sure that is."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from unipelt.errors import UserError
from unipelt.report.comparison import CONSTANT, Comparison, compare
from unipelt.report.names import in_folds, listed, seeds_text
from unipelt.report.samples import LARGEST, Sample, Seeds, difference
from unipelt.report.statistics import BOTH, EXAMPLES, LEVEL, estimate
from unipelt.report.study import Study


@dataclass(frozen=True)
class Recommendation:
    """The method to take, and the evidence."""

    take: str
    lr: float | None
    """None for a baseline"""
    why: str
    comparison: Comparison
    """methods from the best validation metric to the worst"""


def recommend(study: Study) -> Recommendation:
    """Recommend the smallest method whose mean validation metric is within one standard error of the best (Breiman et al. 1984, §3.4.3, for
    sizes of trees), which takes two seeds; without them the best itself.

    Two methods are compared on the seeds that both have: where a budget or a failure left one of them fewer, its seeds may be
    the lucky ones. The best is ahead of the most others, less those that are ahead of it.
    """
    ((k, task), of), *_ = study.samples.items()
    sign = of.metric.sign
    runs = [run for run in study.listed if (run.k, run.task) == (k, task)]
    validation: dict[str, Seeds] = defaultdict(dict)
    for run in runs:
        value = (
            run.record.test if study.folds else run.record.validation
        )  # every example of a fold is a test example once
        if run.seed in of.values.get(run.method, ()) and value is not None:
            validation[run.method][run.seed] = sign * value
    if not validation:
        raise UserError(
            "no finished run has a validation metric, so nothing can be recommended; repeat `unipelt compare`"
        )
    sizes = {run.method: sum((run.record.parameters or {}).values()) for run in runs}
    ahead = {one: sum(_lead(validation[one], other) for other in validation.values()) for one in validation}
    order = sorted(validation, key=lambda method: (-ahead[method], sizes[method], method))
    best = order[0]
    # a constant answer is of no use to anyone, so it has to be the best itself
    near = [m for m in order if m == best or (m != CONSTANT and _within(validation[best], validation[m]))]
    take = min(near, key=lambda method: (sizes[method], order.index(method)))
    found = compare([of], order, take)
    lines = {line.method: line for line in found.lines}
    rates = {run.method: run.lr for run in runs}
    filled = []
    for method in order:
        own = {run.seed: run.record for run in runs if run.method == method}
        times = [(one.predicting, of.answers.get((method, seed))) for seed, one in own.items()]
        filled.append(replace(
            lines[method], validation=sign * fmean(validation[method].values()), lr=rates[method], parameters=sizes[method] or None,
            stored=[*own.values()][-1].stored, seconds=_mean(one.seconds for one in own.values()),
            per_text=_mean(seconds / len(said.targets) for seconds, said in times if seconds is not None and said),
        ))  # fmt: skip
    found = replace(found, lines=filled, folds=study.folds)
    said = _by_validation(validation, take, best, near, found.metric.replace("_", " "))
    why = " ".join([*said, *_by_test(found), *_beside_largest(found, of, take)])
    return Recommendation(take, found.chosen.lr, in_folds(why) if study.folds else why, found)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _lead(one: Seeds, other: Seeds) -> int:
    """1 where one is ahead over the seeds of both, −1 where it is behind, 0 where they are equal or share none."""
    shared = one.keys() & other.keys()
    if not shared:
        return 0
    gap = round(fmean(one[seed] - other[seed] for seed in sorted(shared)), 12)
    return (gap > 0) - (gap < 0)


def _within(best: Seeds, other: Seeds) -> bool:
    """Whether the mean difference over the seeds that both have, at least two, is at most its standard error."""
    gaps = [best[seed] - other[seed] for seed in best if seed in other]
    return len(gaps) > 1 and round(fmean(gaps) - stdev(gaps) / len(gaps) ** 0.5, 12) <= 0


def _by_validation(
    validation: Mapping[str, Seeds], take: str, best: str, near: Sequence[str], metric: str
) -> list[str]:
    """A sentence on the validation results, with the seeds if they are not the same for all methods."""
    shared: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for method in validation:
        if method != best:
            shared[tuple(sorted(validation[best].keys() & validation[method].keys()))].append(method)
    if not shared:
        return [f"There is no other method to compare {take} with."]
    if not any(shared):
        return [
            f"{take} is the smallest. No other method has finished a seed that {take} has, so they cannot be compared."
        ]
    alike = (other for seeds, of in shared.items() if seeds for other in of)
    equal = [other for other in alike if not _lead(validation[best], validation[other])]
    if take == best and equal:
        said = [f"{listed([take, *equal])} have the same validation {metric}; {take} is the smallest."]
    elif take == best:
        said = [f"{take} has the best validation {metric}."]
    else:
        others = [method for method in near if method != best]
        beside = f"{listed(others)} {'is' if len(others) == 1 else 'are'} within one standard error of it"
        smallest = "and smaller" if len(others) == 1 else f"and {take} is the smallest of these"
        said = [f"{best} has the best validation {metric}; {beside} {smallest}."]
    every = set().union(*validation.values())
    for seeds, others in shared.items():
        if not seeds:
            said.append(f"{listed([best, *others])} have no finished seed in common and cannot be compared.")
        elif set(seeds) < every:
            which = f"seed {seeds[0]}, the only seed" if len(seeds) == 1 else f"seeds {listed(seeds)}, the only seeds"
            said.append(
                f"{listed([best, *others])} are compared on {which} that {'all' if others[1:] else 'both'} have finished."
            )
    if any(len(seeds) == 1 for seeds in shared):
        said.append("One seed cannot show how much of this is chance; train more with --seeds, or with more --minutes.")
    return said


def _by_test(found: Comparison) -> list[str]:
    """A sentence on the test results, which select nothing."""
    gaps = {line.method: (line.gap, line.real) for line in found.others if line.gap}
    judged = {method: (gap, real) for method, (gap, real) in gaps.items() if gap.covers == BOTH}
    if not judged:
        one_seed = any(gap.covers == EXAMPLES for gap, _ in gaps.values())
        return ["On the test examples nothing is judged: one seed."] if one_seed else []
    seeds = seeds_text(*(gap.seeds for gap, _ in judged.values()))
    better = [method for method, (gap, real) in judged.items() if real and gap.value > 0]
    worse = [method for method, (gap, real) in judged.items() if real and gap.value < 0]
    said = []
    if better:
        said.append(f"On the test examples {listed(better)} {'is' if len(better) == 1 else 'are'} better, beyond chance ({seeds}); repeat with more seeds.")  # fmt: skip
    if worse:
        said.append(f"On the test examples it is better than {listed(worse)}, beyond chance ({seeds}).")
    return said or [f"On the test examples no difference to it is beyond chance ({seeds})."]


def _beside_largest(found: Comparison, of: Sample, take: str) -> list[str]:
    """Where a method's answers may be worth no more than one answer for all examples."""
    if found.largest is None or not of.largest:
        return []
    gap = estimate([difference(of, take, LARGEST)])
    if gap.value > 0 and gap.p is not None and gap.p < LEVEL:
        return []
    return [f"It is not shown to be better than always naming the largest class ({found.scale * found.largest:.2f})."]
