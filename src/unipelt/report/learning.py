"""Would more labels help? The recommended method's test metric by the number of training examples."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from unipelt.report.comparison import estimate_cell
from unipelt.report.names import in_folds, seeds_text
from unipelt.report.samples import difference, make_sample, metric_label, own_metric
from unipelt.report.statistics import BOTH, estimate, own_estimate
from unipelt.report.study import Run, prediction_rows
from unipelt.report.tables import Block, Cell, Section, Table
from unipelt.study.store import Store
from unipelt.tasks.metrics import METRICS


def learning_curve(store: Store, runs: Mapping[int, Sequence[Run]], folds: bool) -> Section | None:
    """runs: finished runs of one method by number of training examples. folds: whether their seeds are folds of a
    cross-validation.

    Sizes are compared on the same seeds and test examples, as methods are. None for fewer than two sizes.
    """
    values = {n: {run.seed: run.record.test for run in runs[n] if run.record.test is not None} for n in sorted(runs)}
    known = [n for n, seeds in values.items() if seeds]
    if len(known) < 2 or runs[known[0]][0].record.metric not in METRICS:
        return None
    first = runs[known[-1]][0]
    rows = [
        (str(n), seed, predictions, targets)
        for n in known
        for _, seed, predictions, targets in prediction_rows(store, runs[n])
    ]
    sizes = make_sample(first.task, first.record.metric, {str(n): values[n] for n in known}, rows)
    metric, scale = sizes.metric, sizes.metric.display_factor
    split, reword = ("out-of-fold", in_folds) if folds else ("test", str)
    scores = [own_estimate(own_metric(sizes, str(n)), metric) for n in known]
    # in the metric's own direction: a smaller error is a negative change
    gains = [estimate([difference(sizes, str(n), str(smaller))]) for smaller, n in pairwise(known)]
    changes = [Cell(""), *(estimate_cell(gain, metric.sign * scale, signed=True) for gain in gains)]
    cells = [[Cell.count(n), estimate_cell(score, scale), change] for n, score, change in zip(known, scores, changes)]
    column = f"{split} {metric_label(metric)}"
    seeds = seeds_text(len(values[known[-1]]))
    note = f"{seeds} each, on the same test examples; 95 % intervals. Smaller sets are the beginnings of the whole one."
    title, columns = f"{first.method} by the number of training examples", ["training examples", column, "change"]
    table = Table("learning-curve", title, columns, [Block("", cells)], [reword(note)])
    change = (
        f"from {known[-2]:,} to {known[-1]:,} training examples, the {metric.name.replace('_', ' ')} of {first.method}"
    )
    change += f" changes by {changes[-1].text}{' points' if scale != 1 else ''}"
    if gains[-1].covers != BOTH:
        sentence = f"Not judged: {change}, with one seed."
    elif gains[-1].value <= 0:
        sentence = f"No sign of it: {change} ({seeds})."
    elif gains[-1].real(gains[-1].p):
        sentence = f"Probably yes: {change}, beyond chance ({seeds})."
    else:
        sentence = f"Perhaps: {change}, which may be chance ({seeds})."
    return Section("Would more labels help?", [table], reword(sentence))
