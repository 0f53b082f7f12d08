"""The evidence of a comparison on one's own file, computed once; the terminal, the page and Markdown show the same sections."""

from collections.abc import Sequence

import numpy as np

from unipelt.report.cautions import cautions
from unipelt.report.classes import class_table, confusion_table, span_table, worst_class
from unipelt.report.confidence import (
    bins_of,
    calibration_sentence,
    confidence_figure,
    confidence_table,
    expected_calibration_error,
)
from unipelt.report.evidence import OUT_OF_FOLD, Answered, evidence
from unipelt.report.learning import learning_curve
from unipelt.report.mistakes import (
    class_mistakes,
    label_mistakes,
    loss_mistakes,
    number_mistakes,
    tag_mistakes,
    text_mistakes,
)
from unipelt.report.numbers import error_table, residual_figure, short
from unipelt.report.recommendation import Recommendation
from unipelt.report.runs import Run, answers
from unipelt.report.study import Study, higher_is_better
from unipelt.report.tables import Section, Table
from unipelt.report.written import written
from unipelt.study.plan import BASELINES, SETFIT
from unipelt.study.store import Store
from unipelt.tasks.metrics import METRICS

SURE = 0.8  # the threshold that the sentence names


def comparison_sections(study: Study, advice: Recommendation, store: Store) -> tuple[list[str], list[Section]]:
    """What to be careful about, and the sections about the recommended method, from the store of the comparison."""
    mine, fewer = ([run for run in runs if run.method == advice.take] for runs in (study.chosen, study.fewer))
    rows = store.runs(("id", "truncated", "labels", "rows"), [run.id for run in (*mine, *fewer)])
    said = cautions(store.noted("examples"), rows[0]["labels"] or [], mine, rows[0]["truncated"], study.folds)
    found: list[Section] = []
    answered = evidence(store, mine, folds=bool(study.folds)).get(advice.take)
    if answered is not None:
        found += prediction_sections(answered.once(saved_seed(mine)), mine[0].metric)
    found += written(store, study.chosen, advice.take)
    counts = {row["id"]: row["rows"]["train"]["number"] for row in rows if row["rows"]}
    if study.folds and advice.take in BASELINES and advice.take != SETFIT:  # they train on what validates others too
        own = {run.id for run in mine}
        counts |= {
            row["id"]: counts[row["id"]] + row["rows"]["validation"]["number"]
            for row in rows
            if row["rows"] and row["id"] in own
        }
    whole = [counts[run.id] for run in mine if run.id in counts]
    counts |= dict.fromkeys((run.id for run in mine if run.id in counts), min(whole, default=0))  # folds differ by one
    sizes: dict[int, list[Run]] = {}
    for run in (*fewer, *mine):
        if run.id in counts:
            sizes.setdefault(counts[run.id], []).append(run)
    with_size = ((n, row) for n, of in sizes.items() for row in answers(store, of))
    curve = learning_curve(sizes, with_size, bool(study.folds))
    return said, [*found, *([curve] if curve else [])]


def saved_seed(runs: Sequence[Run]) -> int:
    """The seed whose model was saved: the best validation metric, the last of equal ones."""
    sign = 1 if higher_is_better(runs[0].metric) else -1
    known = [(sign * run.validation, run.seed) for run in runs if run.validation is not None]
    return max(known)[1] if known else runs[0].seed  # a baseline in folds needs no validation examples


def prediction_sections(one: Answered, metric: str) -> list[Section]:
    """The sections for the kind of answers that a metric judges."""
    kind = METRICS[metric].of if metric in METRICS else ""
    which = f"{len(one.targets):,} {'out-of-fold answers' if one.origin == OUT_OF_FOLD else 'test examples'}"
    if kind == "numbers":
        targets, said = np.array(one.targets, float), np.array(one.predictions, float)
        if not np.isfinite(said).all():
            return []
        bad = number_mistakes(one)
        off = float(np.abs(said - targets).mean())
        say = f"On {which}, {one.method} is off by {short(off)} on average, in the unit of the labels."
        return [
            Section("Errors", [error_table(targets, said), residual_figure(targets, said)], say),
            Section("Examples to look at", [bad], "The largest errors; where a label is wrong, correct the file."),
        ]
    if kind == "tags":
        bad = tag_mistakes(one)
        return [
            Section("Each type of span", [span_table(one.targets, one.predictions)], f"{one.method} on {which}."),
            Section("Examples to look at", [bad], f"{len(bad.rows):,} of {which} have a wrong tag."),
        ]
    if kind in ("texts", "losses") and one.predictions:
        table = text_mistakes(one, METRICS[metric]) if kind == "texts" else loss_mistakes(one)
        say = f"{one.method} on {which}, the worst first. Where a label is wrong, correct the file."
        return [Section("Examples to look at", [table], say)]
    return _of_classes(one, which) if kind == "classes" and one.labels else []


def _of_classes(one: Answered, which: str) -> list[Section]:
    targets, said = np.array(one.targets), np.array(one.predictions)
    several = targets.ndim > 1
    table = class_table(targets, said, one.labels)
    parts: list[Table] = [table] if several else [table, confusion_table(targets, said, one.labels)]
    found = [Section("Each class", parts, f"{one.method} on {which}. {worst_class(table)}".strip())]
    chances = one.probabilities() if one.logits else None
    bad = (label_mistakes if several else class_mistakes)(one, chances)
    if chances is not None:
        raw = one.probabilities(calibrated=False)
        if several:
            sure, plain, right = chances.ravel(), raw.ravel(), targets.ravel() == 1
        else:
            sure, plain, right = chances.max(axis=1), raw.max(axis=1), targets == said
        before, after = bins_of(plain, right), bins_of(sure, right)
        was, now = (expected_calibration_error(bins) for bins in (before, after))
        temperatures = [*one.temperatures.values()]
        say = calibration_sentence(was, now, temperatures, "a label" if several else "the predicted class")
        shown = [
            confidence_figure(
                before if any(temperature != 1 for temperature in temperatures) else [], after, sure, right, not several
            )
        ]
        if not several:
            kept = sure >= SURE
            good = f", and {100 * right[kept].mean():.0f} % of these answers are right" if kept.any() else ""
            say += f" With --min-confidence {SURE:g}, {100 * kept.mean():.0f} % of the examples get an answer{good}."
        found.append(Section("Can the probabilities be trusted?", [*shown, *([] if several else [confidence_table(sure, right)])], say))  # fmt: skip
    wrong = (
        f"{len(bad.rows):,} labels are missing or wrongly added"
        if several
        else f"{len(bad.rows):,} of {which} are answered wrongly"
    )
    doubtful = (
        sum(cell.text == "yes" for _, row in bad.rows for cell in row[5:6])
        if chances is not None and not several
        else 0
    )
    say = f"{wrong}; {doubtful:,} of their labels are worth checking." if doubtful else f"{wrong}."
    return [*found, Section("Examples to look at", [bad], say)]
