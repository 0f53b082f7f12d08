"""Would more labels help? The recommended method's test metric by the number of training examples."""

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

from unipelt.report.comparison import scaled
from unipelt.report.confidence import BLUE
from unipelt.report.drawing import Figure, canvas, finish
from unipelt.report.names import in_folds, seeds_text
from unipelt.report.runs import Run
from unipelt.report.samples import Row, Sample, difference, own, sample
from unipelt.report.statistics import BOTH, estimate, own_estimate
from unipelt.report.tables import Block, Cell, Section, Table
from unipelt.tasks.metrics import METRICS


def learning_curve(
    runs: Mapping[int, list[Run]], answers: Iterable[tuple[int, Row]], folds: bool = False
) -> Section | None:
    """folds: whether the seeds are folds of a cross-validation. runs: finished runs of one method by number of training examples. answers: the size of each run, and its answers.

    Sizes are compared on the same seeds and test examples, as methods are. None for fewer than two sizes.
    """
    sizes = sorted(runs)
    if len(sizes) < 2:
        return None
    first = runs[sizes[-1]][0]
    values = {str(n): {run.seed: run.test for run in runs[n] if run.test is not None} for n in sizes}
    values = {n: of for n, of in values.items() if of}
    rows = [(str(n), seed, said, right) for n, (_, seed, said, right) in answers]
    of = sample(first.task, first.metric, values, rows)  # type: ignore[arg-type]
    known = [n for n in sizes if str(n) in values]
    if len(known) < 2 or first.metric not in METRICS:
        return None
    metric, scale = first.metric.replace("_", " "), of.metric.shown_as
    scored, words = ("out-of-fold", in_folds) if folds else ("test", str)
    scores = {n: own_estimate(own(of, str(n)), of.metric) for n in known}
    gains = {n: estimate([difference(of, str(n), str(less))]) for less, n in pairwise(known)}
    turn = not of.metric.higher_is_better
    cells = [
        [Cell(float(n), digits=0), scaled(scores[n], scale), scaled(gains[n], scale, turn, signed=True) if n in gains else Cell("")]
        for n in known
    ]  # fmt: skip
    unit = "" if scale == 1 else " ×100"
    seeds = seeds_text(len(values[str(known[-1])]))
    table = Table(
        "learning-curve", f"{first.method} by the number of training examples", ["training examples", f"{scored} {metric}{unit}", "gain over the row above"], [Block("", cells)],
        [words(f"{seeds} each, on the same test examples; 95 % intervals. Smaller sets are the beginnings of the whole one.")],
    )  # fmt: skip
    last, less = known[-1], known[-2]
    gap = gains[last]
    points = f"{scale * (-gap.value if turn else gap.value):+.2f}".replace("-", "−")
    change = f"from {less:,} to {last:,} training examples, the {metric} of {first.method} changes by {points}{' points' if scale != 1 else ''}"
    if gap.covers != BOTH:
        say = f"Not judged: {change}, with one seed."
    elif gap.real(gap.p) and gap.value > 0:
        say = f"Probably yes: {change}, beyond chance ({seeds})."
    elif gap.value > 0:
        say = f"Perhaps: {change}, which may be chance ({seeds})."
    else:
        say = f"No sign of it: {change} ({seeds})."
    return Section(
        "Would more labels help?",
        [_figure(of, known, scores, scale, f"{scored} {metric}{unit}", words), table],
        words(say),
    )


def _figure(
    of: Sample, sizes: list[int], scores: Mapping, scale: float, metric: str, words: Callable[[str], str]
) -> Figure:
    with canvas("learning", 1, 1, 4.6, 3.0) as (drawing, (panel,)):
        middle = [scale * scores[n].value for n in sizes]
        for n in sizes:
            if scores[n].low is not None:
                panel.plot([n, n], [scale * scores[n].low, scale * scores[n].high], color=BLUE, linewidth=2, alpha=0.6)
        panel.plot(sizes, middle, "o-", color=BLUE, markersize=5)
        panel.set_xscale("log")
        panel.minorticks_off()
        panel.set_xticks(sizes, [f"{n:,}" for n in sizes])
        panel.set(xlabel="training examples (doubling from dot to dot)", ylabel=metric)
        panel.grid()
        return finish("learning", "Learning curve", words("Dots: means over seeds; lines: 95 % intervals."), drawing)
