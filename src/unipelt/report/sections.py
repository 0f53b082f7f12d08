"""The evidence of a comparison on one's own file, computed once; the terminal, the page and Markdown show the same sections."""

from collections import defaultdict

import numpy as np

from unipelt.report import breakdown, mistakes
from unipelt.report.cautions import cautions
from unipelt.report.confidence import confidence_section
from unipelt.report.evidence import Answered, answered
from unipelt.report.learning import learning_curve
from unipelt.report.recommendation import Recommendation
from unipelt.report.samples import metric_of
from unipelt.report.study import Run, Study
from unipelt.report.tables import Section
from unipelt.report.written import written
from unipelt.study.plan import BASELINES, SETFIT
from unipelt.study.store import Store
from unipelt.tasks.metrics import Metric

LOOK = "Examples to look at"


def comparison_sections(study: Study, advice: Recommendation, store: Store) -> tuple[list[str], list[Section]]:
    """What to be careful about, and the sections about the recommended method, from the store of the comparison."""
    mine, fewer = ([run for run in runs if run.method == advice.take] for runs in (study.chosen, study.fewer))
    first = mine[0].record
    said = cautions(store.noted("examples"), first.labels or [], mine, first.truncated, study.folds)
    one = answered(store, mine, study.folds)
    found = prediction_sections(one, metric_of(first.metric)) if one else []
    found += written(store, study.chosen, advice.take)
    sizes: dict[int, list[Run]] = defaultdict(list)
    for run in fewer:
        sizes[int(run.k)].append(run)
    # baselines train on what validates others too
    all_but_test = study.folds and advice.take in BASELINES and advice.take != SETFIT
    splits = ["train", "validation"] if all_but_test else ["train"]
    whole = [sum(run.record.examples[split]["number"] for split in splits) for run in mine if run.record.examples]
    if whole:
        sizes[min(whole)] = mine  # folds differ by one
    curve = learning_curve(store, sizes, bool(study.folds))
    return said, [*found, *([curve] if curve else [])]


def prediction_sections(one: Answered, metric: Metric) -> list[Section]:
    """The sections for the kind of answers that a metric judges."""
    if metric.of == "numbers":
        targets, said = np.array(one.targets, float), np.array(one.predictions, float)
        if not np.isfinite(said).all():
            return []
        off = breakdown.short(float(np.abs(said - targets).mean()))
        say = f"On {one.which}, {one.method} is off by {off} on average, in the unit of the labels."
        bad = "The largest errors; where a label is wrong, correct the file."
        errors = Section(
            "Errors", [breakdown.error_table(targets, said), breakdown.residual_figure(targets, said)], say
        )
        return [errors, Section(LOOK, [mistakes.number_mistakes(one)], bad)]
    if metric.of == "tags":
        spans, table = breakdown.span_table(one.targets, one.predictions), mistakes.tag_mistakes(one)
        bad = f"{len(table.rows):,} of {one.which} have a wrong tag."
        return [Section("Each type of span", [spans], f"{one.method} on {one.which}."), Section(LOOK, [table], bad)]
    if metric.of == "classes":
        return _of_classes(one) if one.labels else []
    table = mistakes.text_mistakes(one, metric) if metric.of == "texts" else mistakes.loss_mistakes(one)
    say = f"{one.method} on {one.which}, the worst first. Where a label is wrong, correct the file."
    return [Section(LOOK, [table], say)]


def _of_classes(one: Answered) -> list[Section]:
    answers = np.array(one.targets), np.array(one.predictions), one.labels
    table = breakdown.class_table(*answers)
    if one.several:
        parts, bad = [table], mistakes.label_mistakes(one)
        say = f"{len(bad.rows):,} labels are missing or wrongly added."
    else:
        parts, (bad, doubtful) = [table, breakdown.confusion_table(*answers)], mistakes.class_mistakes(one)
        worth = f"; {doubtful:,} of their labels are worth checking" if doubtful else ""
        say = f"{len(bad.rows):,} of {one.which} are answered wrongly{worth}."
    found = [Section("Each class", parts, f"{one.method} on {one.which}. {breakdown.worst_class(table)}".strip())]
    if one.probabilities is not None:
        found.append(confidence_section(one, one.probabilities))
    return [*found, Section(LOOK, [bad], say)]
