"""Which method to take for one's own file: validation examples choose it, test examples say how sure that is."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from unipelt.errors import UserError
from unipelt.report.comparison import (
    CONSTANT,
    Comparison,
    compare,
    comparison_columns,
    comparison_notes,
    comparison_rows,
)
from unipelt.report.names import counts_text, in_folds, listed, seeds_text
from unipelt.report.samples import BEST_CONSTANT, Sample, Seeds, difference
from unipelt.report.statistics import BOTH, EXAMPLES, LEVEL, estimate
from unipelt.report.study import Run, Study
from unipelt.report.tables import Block, Cell, Table
from unipelt.train.records import RunRecord

VALIDATION_NOTE = "Validation examples rank the methods and choose their learning rates. Test examples choose nothing; they only measure."
FOLDS_NOTE = "Each example was answered once, by a model that did not see it. These out-of-fold answers also rank the methods, so the score of the best is slightly optimistic. Validation examples inside the folds chose the learning rates."  # fmt: skip
COST_NOTE = "Stored: numbers that the file of a run holds, without the MLP of a prefix, which only training needs. Times are those of one run on this machine, or its share where several ran at once."  # fmt: skip


@dataclass(frozen=True)
class Recommendation:
    """The method to take, and the evidence."""

    method: str
    lr: float | None
    """None for a baseline"""
    why: str
    comparison: Comparison
    """methods from the best validation metric to the worst"""
    table: Table
    """the same with what the methods cost"""


def recommend(study: Study) -> Recommendation:
    """Recommend the smallest method whose mean validation metric is within one standard error of the best (Breiman et al. 1984, §3.4.3, for
    sizes of trees), which takes two seeds; without them the best itself.

    Two methods are compared on the seeds that both have: where a budget or a failure left one of them fewer, its seeds may be
    the lucky ones. The best is ahead of the most others, less those that are ahead of it.
    """
    ((key, sample),) = study.samples.items()
    scores = study.test if study.folds else study.validation  # every example of a fold is a test example once
    validation: dict[str, Seeds] = {}
    for method, test_seeds in sample.values.items():
        all_seeds = scores.get(key, {}).get(method, {})
        validation[method] = {seed: sample.metric.sign * all_seeds[seed] for seed in test_seeds if seed in all_seeds}
    validation = {method: seeds for method, seeds in validation.items() if seeds}
    if not validation:
        raise UserError(
            "no finished run has a validation metric, so nothing can be recommended; repeat `unipelt compare`"
        )
    runs: dict[str, list[Run]] = defaultdict(list)
    for run in study.chosen:
        if run.record.test is not None:
            runs[run.method].append(run)
    sizes = {method: _size(method_runs[-1].record) for method, method_runs in runs.items()}
    ahead = {method: sum(_lead(seeds, other) for other in validation.values()) for method, seeds in validation.items()}
    order = sorted(validation, key=lambda method: (-ahead[method], sizes[method], method))
    best = order[0]
    # a constant answer is of no use to anyone, so it has to be the best itself
    near_best = [m for m in order if m == best or (m != CONSTANT and _within(validation[best], validation[m]))]
    recommended = min(near_best, key=lambda method: (sizes[method], order.index(method)))
    comparison = compare([sample], order, recommended)
    lines = {line.method: line for line in comparison.lines}
    comparison = replace(comparison, lines=[lines[method] for method in order])
    why = " ".join(
        [
            *_validation_sentences(validation, sizes, recommended, best, near_best, sample),
            *_test_sentences(comparison),
            *_best_constant_sentences(comparison, sample),
        ]
    )
    table = _table(comparison, {method: runs[method] for method in order}, study.folds > 0)
    return Recommendation(
        recommended, runs[recommended][0].lr, in_folds(why) if study.folds else why, comparison, table
    )


def _table(comparison: Comparison, runs: Mapping[str, Sequence[Run]], folds: bool) -> Table:
    """Every method compared with the recommended one, and what it costs. runs: of each method."""

    def means(value: Callable[[RunRecord], float | None], factor: float = 1.0, digits: int = 2) -> dict[str, Cell]:
        known = {
            method: [number for run in method_runs if (number := value(run.record)) is not None]
            for method, method_runs in runs.items()
        }
        return {method: Cell(factor * fmean(numbers), digits=digits) for method, numbers in known.items() if numbers}

    last_records = {method: method_runs[-1].record for method, method_runs in runs.items()}
    columns = (
        {}
        if folds
        else {f"validation {comparison.label}": means(lambda run: run.validation, comparison.metric.display_factor)}
    )
    columns |= comparison_columns(
        comparison, f"{'out-of-fold' if folds else 'test'} {comparison.label}", comparison.reference, "recommended"
    )
    columns["trained parameters"] = {
        m: Cell(counts_text(_size(record), record.stored)) for m, record in last_records.items()
    }
    terminal_columns = len(columns) + 1
    columns["training time, s"] = means(lambda run: run.seconds, digits=0)
    columns["prediction time, ms an example"] = means(_seconds_per_example, 1000, digits=1)
    columns["learning rate"] = {method: Cell(method_runs[0].lr, digits=-1) for method, method_runs in runs.items()}
    names, rows = ["method", *columns], comparison_rows(comparison, columns)
    notes = [VALIDATION_NOTE, *comparison_notes(comparison.lines), COST_NOTE]
    if folds:
        names, notes = [*map(in_folds, names)], [FOLDS_NOTE, *map(in_folds, notes[1:])]
    title = "Every method compared with the recommended one"
    return Table("comparison", title, names, [Block("", rows)], notes, terminal_columns=terminal_columns)


def _size(record: RunRecord) -> int:
    return sum((record.parameters or {}).values())


def _seconds_per_example(record: RunRecord) -> float | None:
    """To predict a test example; None where it is not known."""
    if record.predicting is None or not record.examples:
        return None
    return record.predicting / record.examples["test"]["number"]


def _lead(first: Seeds, second: Seeds) -> int:
    """1 where the first is ahead over the seeds of both, −1 where it is behind, 0 where they are equal or share none."""
    shared = first.keys() & second.keys()
    if not shared:
        return 0
    difference = round(fmean(first[seed] - second[seed] for seed in sorted(shared)), 12)
    return (difference > 0) - (difference < 0)


def _within(best: Seeds, other: Seeds) -> bool:
    """Whether the mean difference over the seeds that both have, at least two, is at most its standard error."""
    differences = [best[seed] - other[seed] for seed in best if seed in other]
    return len(differences) > 1 and round(fmean(differences) - stdev(differences) / len(differences) ** 0.5, 12) <= 0


def _validation_sentences(
    validation: Mapping[str, Seeds], sizes: Mapping[str, int], recommended: str, best: str, near_best: Sequence[str], sample: Sample
) -> list[str]:  # fmt: skip
    """Sentences on the validation results, with the seeds if they are not the same for all methods."""
    metric = sample.metric.name.replace("_", " ")
    shared: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for method in validation:
        if method != best:
            shared[tuple(sorted(validation[best].keys() & validation[method].keys()))].append(method)
    if not shared:
        return [f"There is no other method to compare {recommended} with."]
    if not any(shared):
        return [
            f"{recommended} is the smallest. No other method has finished a seed that {recommended} has, so they cannot be compared."
        ]
    comparable = [other for seeds, others in shared.items() if seeds for other in others]
    equal = [other for other in comparable if not _lead(validation[best], validation[other])]
    rivals = [method for method in near_best if method != best]
    if recommended != best:
        are, smaller = (
            ("is", "and smaller") if len(rivals) == 1 else ("are", f"and {recommended} is the smallest of these")
        )
        sentences = [
            f"{best} has the best validation {metric}; {listed(rivals)} {are} within one standard error of it {smaller}."
        ]
    elif equal:
        smallest = all(sizes[recommended] <= sizes[other] for other in equal)
        reason = f"; {recommended} is the smallest" if smallest else ""
        sentences = [f"{listed([recommended, *equal])} have the same validation {metric}{reason}."]
    else:
        sentences = [f"{recommended} has the best validation {metric}."]
    all_seeds = set().union(*validation.values())
    for seeds, others in shared.items():
        if not seeds:
            sentences.append(f"{listed([best, *others])} have no finished seed in common and cannot be compared.")
        elif {*seeds} < all_seeds:
            which = f"seed {seeds[0]}, the only seed" if len(seeds) == 1 else f"seeds {listed(seeds)}, the only seeds"
            both = "all" if others[1:] else "both"
            sentences.append(f"{listed([best, *others])} are compared on {which} that {both} have finished.")
    if any(len(seeds) == 1 for seeds in shared):
        sentences.append("One seed cannot show how much of this is chance; train more seeds, or allow more --minutes.")
    return sentences


def _test_sentences(comparison: Comparison) -> list[str]:
    """Sentences on the test results, which select nothing."""
    differences = {
        line.method: line.difference for line in comparison.others if line.difference and line.difference.covers == BOTH
    }
    if not differences:
        one_seed = any(line.difference and line.difference.covers == EXAMPLES for line in comparison.others)
        return ["On the test examples nothing is judged: one seed."] if one_seed else []
    seeds = seeds_text(*(difference.seeds for difference in differences.values()))
    real = [line.method for line in comparison.others if line.real]
    better, worse = ([m for m in real if (differences[m].value > 0) == above] for above in (True, False))
    sentences = []
    if better:
        are = "is" if len(better) == 1 else "are"
        sentences.append(
            f"On the test examples {listed(better)} {are} better, beyond chance ({seeds}); repeat with more seeds."
        )
    if worse:
        sentences.append(f"On the test examples it is better than {listed(worse)}, beyond chance ({seeds}).")
    return sentences or [f"On the test examples no difference to it is beyond chance ({seeds})."]


def _best_constant_sentences(comparison: Comparison, sample: Sample) -> list[str]:
    """Where the method's answers may be worth no more than one answer for all examples."""
    if not sample.best_constant or sample.best_constant_score is None:
        return []
    lead = estimate([difference(sample, comparison.reference, BEST_CONSTANT)])
    if lead.value > 0 and lead.p is not None and lead.p < LEVEL:
        return []
    score = sample.metric.display_factor * sample.best_constant_score
    return [f"It is not shown to be better than the best constant answer ({score:.2f})."]
