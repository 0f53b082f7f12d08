"""The figures of a study: the answer, sweeps, learning curves, gates."""

import re
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unipelt.report.comparison import Comparison
from unipelt.report.drawing import INK, Figure, across, canvas, finish, looks, multiples, wrapped
from unipelt.report.names import gate_labels, method_order, size_label, size_order, task_label, task_order
from unipelt.report.samples import metric_of
from unipelt.report.study import Grid, Study, gather
from unipelt.report.sweeps import Sweep, sweep_places
from unipelt.report.tables import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

Curve = dict[float, float]
"""epoch → validation metric of one run"""
Gates = dict[tuple[str, str], float]
"""(layer, change) → mean gate"""
PLOT_WIDE, PAGE_WIDE = 2.3, 12.0
"""inches: of a panel without its methods' names, and of what a page shows without making it smaller"""


def figures(study: Study) -> list[Figure]:
    """Every figure that there is data for."""
    return [*answer(study), *sweeps(study), *curves(study), *gates(study)]


def answer(study: Study) -> list[Figure]:
    """Each method's average difference to the best, with its interval. One's own file has its answer by validation instead."""
    compared = {} if study.own_file else {k: one for k, one in study.compared.items() if one.others}
    if not compared:
        return []
    which = {k: [line.method for line in one.lines] for k, one in compared.items()}
    most, lines = max(map(len, which.values())), max(wrapped(m).count("\n") + 1 for of in which.values() for m in of)
    with canvas("answer", 1, 1, 1.0, 1.0) as (drawing, (trial,)):
        named = across(*(trial.text(0, 0, wrapped(method)) for of in which.values() for method in of))
        drawing.clear()
        columns = max(1, min(len(which), int(PAGE_WIDE / (named + PLOT_WIDE))))
        rows = -(-len(which) // columns)
        drawing.set_size_inches(0.2 + columns * (named + PLOT_WIDE), rows * (0.9 + most * (0.12 + 0.15 * lines)))
        axes = drawing.subplots(rows, columns, squeeze=False).flatten().tolist()
        for panel, (k, one) in zip(axes, compared.items()):
            _differences(panel, one)
            panel.set_yticks(range(len(which[k])), map(wrapped, which[k]))
            panel.set_ylim(most - 0.5, -0.5)
            panel.set_title(f"{size_label(k)}, {one.seeds}")
        caption = "Difference of the average test metric to the best method's (diamond), with its 95 % interval: over test examples and training seeds; with one seed over test examples only. Filled: real after Holm's correction; hollow: may be chance, or one seed."  # fmt: skip
        return [finish("answer", "Average test metric, less the best method's", caption, drawing)]


def _differences(panel: "Axes", one: Comparison) -> None:
    style = looks([line.method for line in one.lines])
    panel.axvline(0, color=INK, linewidth=0.8)
    panel.plot([0], [0], "D", color=style[one.reference]["color"], markersize=6)
    for place, line in enumerate(one.others, start=1):
        found, colour = line.gap, style[line.method]["color"]
        if found is None:
            continue
        if found.low is not None and found.high is not None:
            edges = [one.scale * found.low, one.scale * found.high]
            panel.plot(edges, [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
        face = colour if line.real else "none"
        point = {"markersize": 6, "markerfacecolor": face, "markeredgecolor": colour, "markeredgewidth": 1.5}
        panel.plot([one.scale * found.value], [place], "o", **point)
    panel.set_xlabel("points behind the best average")
    panel.locator_params(axis="x", nbins=5)
    panel.grid(axis="x")
    panel.tick_params(axis="y", length=0)


def sweeps(study: Study) -> list[Figure]:
    """The paper's figures 2 and 3: the test metric against one option, a panel a task and size, a line a preset."""
    grid, found = gather(study.chosen), []
    caption = "Test metric, mean and standard deviation over seeds, each point at its own chosen learning rate."
    for option in sorted({sweep.option for sweep in study.sweeps}):
        lines = [sweep for sweep in study.sweeps if sweep.option == option]
        if places := sweep_places(lines, grid):
            texts = (f"Test metric against {option}", caption)
            found.append(multiples(f"sweep-{option}", texts, places, partial(_sweep, lines, grid)))
    return found


def _sweep(lines: list[Sweep], grid: Grid, panel: "Axes", place: tuple[int | str, str]) -> None:
    style = looks([sweep.label for sweep in lines])
    for sweep in lines:
        found = {value: grid.get((*place, method)) for method, value in sweep.values.items()}
        points = {value: Cell.mean(seeds.values()) for value, seeds in found.items() if seeds}
        marked = {"marker": "o", "markersize": 4, "capsize": 2.5, "elinewidth": 0.9, **style[sweep.label]}
        means, wide = _means(points.values())
        panel.errorbar([*points], means, yerr=wide, label=sweep.label, **marked)
    values = sorted({value for sweep in lines for value in sweep.values.values()})
    if values[0] > 0 and values[-1] / values[0] >= 8:  # doublings stand at equal distances
        panel.set_xscale("log")
        panel.minorticks_off()
    panel.set_xticks(values, [f"{value:g}" for value in values])
    panel.set_xlabel(lines[0].option)
    panel.set_title(wrapped(f"{task_label(place[1])}, {size_label(place[0])}"))


def _means(cells: Iterable[Cell]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means and standard deviations, 0 of a single value."""
    means, wide = zip(*((cell.value, cell.sd or 0.0) for cell in cells))
    return np.array(means), np.array(wide)


def curves(study: Study) -> list[Figure]:
    """The validation metric over epochs, a figure a size whose runs were evaluated more than once."""
    runs: dict[int | str, dict[str, dict[str, list[Curve]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for run in study.listed:
        if run.record.curve:
            name, scale = run.record.metric, metric_of(run.record.metric).shown_as
            points = {at["epoch"]: scale * at[name] for at in run.record.curve if name in at}
            runs[run.k][run.task][run.method].append(points)
    caption = "The best validation metric chooses the epoch. Line: mean over seeds, band: one standard deviation; drawn while at least half of the seeds still train."  # fmt: skip
    return [
        multiples(f"curves-k{k}", (f"Validation metric over epochs, {size_label(k)}", caption), sorted(runs[k], key=task_order), partial(_learning, runs[k]))
        for k in sorted(runs, key=size_order)
        if any(len(points) > 1 for task in runs[k].values() for seeds in task.values() for points in seeds)
    ]  # fmt: skip


def _learning(runs: dict[str, dict[str, list[Curve]]], panel: "Axes", task: str) -> None:
    style = looks(sorted({method for of in runs.values() for method in of}, key=method_order))
    for method in sorted(runs[task], key=method_order):
        seeds = runs[task][method]
        epochs = sorted({e for points in seeds for e in points})
        at = {e: [points[e] for points in seeds if e in points] for e in epochs}
        held = {e: Cell.mean(values) for e, values in at.items() if 2 * len(values) >= len(seeds)}
        means, wide = _means(held.values())
        dot = "" if len(held) > 1 else "o"  # no line goes through one point
        panel.plot([*held], means, label=method, marker=dot, markersize=4, **style[method])
        panel.fill_between([*held], means - wide, means + wide, color=style[method]["color"], alpha=0.12, linewidth=0)
    panel.set_title(wrapped(task_label(task)))
    panel.set_xlabel("epoch")
    panel.locator_params(axis="x", integer=True, nbins=5)


def gates(study: Study) -> list[Figure]:
    """Mean gate by layer and change, a panel a task, a figure a size and method."""
    values = gate_means(study)
    found: list[Figure] = []
    for k, method in dict.fromkeys((k, method) for k, method, _ in values):
        means = {task: of for (size, one, task), of in values.items() if (size, one) == (k, method)}
        columns = min(len(means), 4)
        rows = -(-len(means) // columns)
        name = f"gates-k{k}-{re.sub(r'[^a-z0-9]+', '-', method.lower()).strip('-')}"
        layers = max(len({layer for layer, _ in of}) for of in means.values())
        with canvas(name, rows, columns, 1.0 + 2.3 * columns, 0.5 + rows * (0.95 + 0.24 * layers)) as (drawing, axes):
            for place, (panel, task) in enumerate(zip(axes, means)):
                mesh = heat(panel, means[task])
                panel.set_title(wrapped(task_label(task), 20))
                panel.tick_params(labelleft=place % columns == 0)
            drawing.colorbar(mesh, ax=axes, label="mean gate", aspect=30, pad=0.01).outline.set_visible(False)
            caption = "How much each layer opens each part: the gate's mean over test examples and seeds, from 0 (closed) to 1 (open)."
            found.append(finish(name, f"Gates of {method}, {size_label(k)}", caption, drawing))
    return found


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
    found: dict[tuple[int | str, str, str], dict[tuple[str, str], list[float]]] = {}
    for run in sorted(
        study.listed, key=lambda run: (size_order(run.k), method_order(run.method), task_order(run.task))
    ):
        for path, value in (run.record.gates or {}).items():
            means = found.setdefault((run.k, run.method, run.task), defaultdict(list))
            means[gate_labels(path)].append(value["mean"])
    return {key: {place: fmean(sorted(values)) for place, values in of.items()} for key, of in found.items()}


def _depth(layer: str) -> list[tuple[int, int, str]]:
    return [(0, int(word), "") if word.isdecimal() else (1, 0, word) for word in layer.split()]
