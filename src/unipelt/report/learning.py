"""Would more labels help? The recommended method's test metric by the number of training examples."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from unipelt.report.comparison import scaled
from unipelt.report.confidence import BLUE
from unipelt.report.drawing import Figure, canvas, finish
from unipelt.report.names import in_folds, seeds_text
from unipelt.report.runs import Run, answers
from unipelt.report.samples import difference, own, sample
from unipelt.report.statistics import BOTH, Estimate, estimate, own_estimate
from unipelt.report.tables import Block, Cell, Section, Table
from unipelt.study.store import Store
from unipelt.tasks.metrics import METRICS


def learning_curve(store: Store, runs: Mapping[int, Sequence[Run]], folds: bool) -> Section | None:
    """runs: finished runs of one method by number of training examples. folds: whether their seeds are folds of a
    cross-validation.

    Sizes are compared on the same seeds and test examples, as methods are. None for fewer than two sizes.
    """
    values = {n: {run.seed: run.record.test for run in runs[n] if run.record.test is not None} for n in sorted(runs)}
    known = [n for n, of in values.items() if of]
    if len(known) < 2 or runs[known[0]][0].record.metric not in METRICS:
        return None
    first = runs[known[-1]][0]
    rows = [(str(n), seed, said, right) for n in known for _, seed, said, right in answers(store, runs[n])]
    of = sample(first.task, first.record.metric, {str(n): values[n] for n in known}, rows)
    metric, scale, sign = of.metric.name.replace("_", " "), of.metric.shown_as, of.metric.sign
    scored, words = ("out-of-fold", in_folds) if folds else ("test", str)
    scores = {n: own_estimate(own(of, str(n)), of.metric) for n in known}
    gains = {n: estimate([difference(of, str(n), str(less))]) for less, n in pairwise(known)}
    rises = [Cell(""), *(scaled(gain, scale, sign < 0, signed=True) for gain in gains.values())]
    cells = [[Cell.count(n), scaled(scores[n], scale), rise] for n, rise in zip(known, rises)]
    column = f"{scored} {metric}{'' if scale == 1 else ' ×100'}"
    seeds = seeds_text(len(values[known[-1]]))
    note = f"{seeds} each, on the same test examples; 95 % intervals. Smaller sets are the beginnings of the whole one."
    table = Table(
        "learning-curve", f"{first.method} by the number of training examples", ["training examples", column, "gain over the row above"],
        [Block("", cells)], [words(note)],
    )  # fmt: skip
    gap = gains[known[-1]]
    points = f"{scale * sign * gap.value:+.2f}{' points' if scale != 1 else ''}".replace("-", "−")
    change = (
        f"from {known[-2]:,} to {known[-1]:,} training examples, the {metric} of {first.method} changes by {points}"
    )
    if gap.covers != BOTH:
        say = f"Not judged: {change}, with one seed."
    elif gap.value <= 0:
        say = f"No sign of it: {change} ({seeds})."
    else:
        real = gap.real(gap.p)
        say = f"{'Probably yes' if real else 'Perhaps'}: {change}, {'beyond chance' if real else 'which may be chance'} ({seeds})."
    return Section("Would more labels help?", [_figure(scores, scale, column, words(CAPTION)), table], words(say))


CAPTION = "Dots: means over seeds; lines: 95 % intervals."


def _figure(scores: Mapping[int, Estimate], scale: float, metric: str, caption: str) -> Figure:
    with canvas("learning", 1, 1, 4.6, 3.0) as (drawing, (panel,)):
        for n, score in scores.items():
            if score.low is not None and score.high is not None:
                panel.plot([n, n], [scale * score.low, scale * score.high], color=BLUE, linewidth=2, alpha=0.6)
        panel.plot([*scores], [scale * score.value for score in scores.values()], "o-", color=BLUE, markersize=5)
        panel.set_xscale("log")
        panel.minorticks_off()
        panel.set_xticks([*scores], [f"{n:,}" for n in scores])
        panel.set(xlabel="training examples (doubling from dot to dot)", ylabel=metric)
        panel.grid()
        return finish("learning", "Learning curve", caption, drawing)
