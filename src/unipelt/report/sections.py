"""The evidence of a comparison on one's own file, computed once; the terminal, the page and Markdown show the same sections."""

from collections import defaultdict

import numpy as np

from unipelt.report import breakdown, mistakes
from unipelt.report.cautions import cautions
from unipelt.report.confidence import confidence_section
from unipelt.report.evidence import PredictedExamples, predicted_examples
from unipelt.report.generated_texts import generated_texts
from unipelt.report.learning import learning_curve
from unipelt.report.recommendation import Recommendation
from unipelt.report.samples import metric_of
from unipelt.report.study import Run, Study
from unipelt.report.tables import Section
from unipelt.study.store import Store
from unipelt.tasks.metrics import Metric
from unipelt.train.records import BASELINES, SETFIT

LOOK = "Examples to look at"


def comparison_sections(study: Study, advice: Recommendation, store: Store) -> tuple[list[str], list[Section]]:
    """What to be careful about, and the sections about the recommended method, from the store of the comparison."""
    runs, smaller_runs = (
        [run for run in runs if run.method == advice.method] for runs in (study.chosen, study.smaller)
    )
    warnings = cautions(store.noted("examples"), runs, study.folds)
    examples = predicted_examples(store, runs, study.folds)
    sections = prediction_sections(examples, metric_of(runs[0].record.metric)) if examples else []
    sections += generated_texts(store, study.chosen, advice.method)
    sizes: dict[int, list[Run]] = defaultdict(list)
    for run in smaller_runs:
        sizes[int(run.k)].append(run)
    # baselines train on what validates others too
    all_but_test = study.folds and advice.method in BASELINES and advice.method != SETFIT
    splits = ["train", "validation"] if all_but_test else ["train"]
    train_sizes = [sum(run.record.examples[split]["number"] for split in splits) for run in runs if run.record.examples]
    if train_sizes:
        sizes[min(train_sizes)] = runs  # folds differ by one
    curve = learning_curve(store, sizes, bool(study.folds))
    return warnings, [*sections, *([curve] if curve else [])]


def prediction_sections(examples: PredictedExamples, metric: Metric) -> list[Section]:
    """The sections for the kind of predictions that a metric judges."""
    if metric.of == "numbers":
        targets, predictions = np.array(examples.targets, float), np.array(examples.predictions, float)
        if not np.isfinite(predictions).all():
            return []
        mean_error = breakdown.short(float(np.abs(predictions - targets).mean()))
        sentence = (
            f"On {examples.subject}, {examples.method} is off by {mean_error} on average, in the unit of the labels."
        )
        advice = "The largest errors; where a label is wrong, correct the file."
        errors = Section(
            "Errors",
            [breakdown.error_table(targets, predictions), breakdown.residual_figure(targets, predictions)],
            sentence,
        )
        return [errors, Section(LOOK, [mistakes.number_mistakes(examples)], advice)]
    if metric.of == "tags":
        spans, table = metric.name == "span_f1", mistakes.tag_mistakes(examples)
        counted = (breakdown.span_table if spans else breakdown.tag_table)(examples.targets, examples.predictions)
        advice = f"{len(table.rows):,} of {examples.subject} have a wrong tag."
        heading = "Each type of span" if spans else "Each tag"
        return [
            Section(heading, [counted], f"{examples.method} on {examples.subject}."),
            Section(LOOK, [table], advice),
        ]
    if metric.of == "classes":
        return _of_classes(examples) if examples.labels else []
    table = mistakes.text_mistakes(examples, metric) if metric.of == "texts" else mistakes.loss_mistakes(examples)
    sentence = f"{examples.method} on {examples.subject}, the worst first. Where a label is wrong, correct the file."
    return [Section(LOOK, [table], sentence)]


def _of_classes(examples: PredictedExamples) -> list[Section]:
    arrays = np.array(examples.targets), np.array(examples.predictions), examples.labels
    table = breakdown.class_table(*arrays)
    if examples.multi_label:
        evidence, wrong = [table], mistakes.label_mistakes(examples)
        sentence = f"{len(wrong.rows):,} labels are missing or wrongly added."
    else:
        evidence, (wrong, doubtful) = [table, breakdown.confusion_table(*arrays)], mistakes.class_mistakes(examples)
        worth = f"; {doubtful:,} of their labels are worth checking" if doubtful else ""
        sentence = f"{len(wrong.rows):,} of {examples.subject} are answered wrongly{worth}."
    sections = [
        Section(
            "Each class", evidence, f"{examples.method} on {examples.subject}. {breakdown.worst_class(table)}".strip()
        )
    ]
    if examples.probabilities is not None:
        sections.append(confidence_section(examples, examples.probabilities))
    return [*sections, Section(LOOK, [wrong], sentence)]
