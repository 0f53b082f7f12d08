"""The figures of a study: differences to the best method, learning curves, gates."""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import numpy as np

from unipelt.report.comparison import Comparison
from unipelt.report.drawing import INK, Figure, line_styles, multiples, wrapped
from unipelt.report.names import gate_labels, method_order, size_label, task_label
from unipelt.report.samples import metric_of
from unipelt.report.study import Run, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

Gates = dict[tuple[str, str], float]
"""(layer, change) → mean gate"""
DIFFERENCES = "Difference of the average test metric to the best method's (diamond), with its 95 % interval: over test examples and training seeds; with one seed over test examples only. Filled: real after Holm's correction; hollow: may be chance, or one seed."  # fmt: skip
CURVES = "The best validation metric chooses the epoch. Line: mean over seeds, band: one standard deviation; drawn while at least half of the seeds still train."  # fmt: skip
GATES = "How far each layer opens each part: the gate's mean over test examples and seeds, from 0 (closed) to 1 (open)."


def difference_figures(study: Study) -> list[Figure]:
    """Each method's average difference to the best, with its interval, a panel a size; none where nothing is compared."""
    compared = [(k, comparison) for k, comparison in study.compared.items() if comparison.others]
    if not compared:
        return []
    names = [wrapped(line.method) for _, comparison in compared for line in comparison.lines]
    most = max(len(comparison.lines) for _, comparison in compared)
    lines = max(name.count("\n") + 1 for name in names)
    title, height = "Average test metric, less the best method's", 0.9 + most * (0.12 + 0.15 * lines)
    return [multiples("answer", title, DIFFERENCES, compared, partial(_differences, most), height, panels_per_row=2)]


def _differences(max_lines: int, panel: "Axes", compared: tuple[int | str, Comparison]) -> None:
    """max_lines: of the panel with the most methods."""
    k, comparison = compared
    style = line_styles(sorted((line.method for line in comparison.lines), key=method_order))
    scale = comparison.metric.display_factor
    panel.axvline(0, color=INK, linewidth=0.8)
    panel.plot([0], [0], "D", color=style[comparison.reference]["color"], markersize=6)
    for row, line in enumerate(comparison.others, start=1):
        if line.difference is None:
            continue
        difference, colour = line.difference.times(scale), style[line.method]["color"]
        if difference.low is not None and difference.high is not None:
            panel.plot(
                [difference.low, difference.high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt"
            )
        face = colour if line.real else "none"
        point = {"markersize": 6, "markerfacecolor": face, "markeredgecolor": colour, "markeredgewidth": 1.5}
        panel.plot([difference.value], [row], "o", **point)
    panel.set_yticks(range(len(comparison.lines)), [wrapped(line.method) for line in comparison.lines])
    panel.set_ylim(max_lines - 0.5, -0.5)
    panel.set_title(f"{size_label(k)}, {comparison.seeds_text}")
    panel.set_xlabel("points behind the best average")
    panel.locator_params(axis="x", nbins=5)
    panel.grid(axis="x")
    panel.tick_params(axis="y", length=0)


def curves(study: Study) -> list[Figure]:
    """The validation metric over epochs, a figure a size whose runs were evaluated more than once."""
    figures = []
    for k in study.sizes:
        runs = [run for run in study.chosen if run.k == k and run.record.curve]
        if any(len(run.record.curve or []) > 1 for run in runs):
            tasks = list(dict.fromkeys(run.task for run in runs))
            title = f"Validation metric over epochs, {size_label(k)}"
            figures.append(multiples(f"curves-k{k}", title, CURVES, tasks, partial(_curves, runs)))
    return figures


def _curves(runs: Sequence[Run], panel: "Axes", task: str) -> None:
    for method, style in line_styles(sorted({run.method for run in runs}, key=method_order)).items():
        at_epoch: dict[float, list[float]] = defaultdict(list)
        records = [run.record for run in runs if (run.task, run.method) == (task, method)]
        for record in records:
            for point in record.curve or []:
                if record.metric in point:
                    at_epoch[point["epoch"]].append(metric_of(record.metric).display_factor * point[record.metric])
        drawn = {epoch: values for epoch, values in sorted(at_epoch.items()) if 2 * len(values) >= len(records)}
        if not drawn:
            continue
        means = np.array([fmean(values) for values in drawn.values()])
        deviations = np.array([stdev(values) if len(values) > 1 else 0.0 for values in drawn.values()])
        dot = "" if len(drawn) > 1 else "o"  # no line goes through one point
        panel.plot([*drawn], means, label=method, marker=dot, markersize=4, **style)
        panel.fill_between(
            [*drawn], means - deviations, means + deviations, color=style["color"], alpha=0.12, linewidth=0
        )
    panel.set_title(wrapped(task_label(task)))
    panel.set_xlabel("epoch")
    panel.grid(axis="y")
    panel.locator_params(axis="x", integer=True, nbins=5)


def gates(study: Study) -> list[Figure]:
    """Mean gate by layer and change, a panel a task, a figure a size and method."""
    values, figures = gate_means(study), []
    for k, method in dict.fromkeys((k, method) for k, method, _ in values):
        means = [(task, gates) for (size, other, task), gates in values.items() if (size, other) == (k, method)]
        name = f"gates-k{k}-{re.sub(r'[^a-z0-9]+', '-', method.lower()).strip('-')}"
        layers = max(len({layer for layer, _ in gates}) for _, gates in means)
        title = f"Gates of {method}, {size_label(k)}"
        figures.append(multiples(name, title, GATES, means, _gates, height=0.95 + 0.24 * layers))
    return figures


def _gates(panel: "Axes", means: tuple[str, Gates]) -> None:
    heat(panel, means[1])
    panel.set_title(wrapped(task_label(means[0]), 20))


def heat(panel: "Axes", means: Gates, low: float = 0.0, high: float = 1.0, digits: int = 2) -> "QuadMesh":
    """Gates as colours and numbers, layers by changes; the colours go from low to high."""
    rows = sorted({layer for layer, _ in means}, key=_depth)
    columns = list(dict.fromkeys(change for _, change in means))
    cells = [[means.get((row, column), float("nan")) for column in columns] for row in rows]
    mesh = panel.pcolormesh(cells, vmin=low, vmax=high, cmap="viridis", edgecolors="none")
    for y, line in enumerate(cells):
        for x, value in enumerate(line):
            if value == value:  # a layer may lack a gate
                ink = "#ffffff" if value < low + 0.6 * (high - low) else "#111111"  # viridis is dark up to there
                panel.text(x + 0.5, y + 0.5, f"{value:.{digits}f}", ha="center", va="center", in_layout=False, color=ink, fontsize=7)  # fmt: skip
    names = [column.replace("_", " ") for column in columns]
    panel.set_xticks([x + 0.5 for x in range(len(columns))], names, rotation=25, ha="right", fontsize=8)
    panel.set_yticks([y + 0.5 for y in range(len(rows))], rows, fontsize=8)
    panel.set_ylim(len(rows), 0)
    panel.tick_params(length=0)
    panel.spines[["left", "bottom"]].set_visible(False)
    return mesh


def gate_means(study: Study) -> dict[tuple[int | str, str, str], Gates]:
    """By (k, method, task): the means over seeds."""
    values_by_gate: dict[tuple[int | str, str, str], dict[tuple[str, str], list[float]]] = {}
    for run in study.chosen:
        for path, value in (run.record.gates or {}).items():
            means = values_by_gate.setdefault((run.k, run.method, run.task), defaultdict(list))
            means[gate_labels(path)].append(value["mean"])
    return {key: {gate: fmean(values) for gate, values in gates.items()} for key, gates in values_by_gate.items()}


def _depth(layer: str) -> list[tuple[int, int, str]]:
    return [(0, int(word), "") if word.isdecimal() else (1, 0, word) for word in layer.split()]
