"""Sweeps: methods of one preset that differ in exactly one option, and the figure of each option.

The paper's figures 2 and 3          Mao et al. 2022, arXiv:2110.07577
"""

from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from unipelt.report.drawing import Figure, line_styles, multiples, wrapped
from unipelt.report.names import method_order, options_of, preset_of, size_label, task_label
from unipelt.report.study import MetricGrid, SizeAndTask

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_VALUES = 3
"""values that make a sweep; two are a pair of methods"""
CAPTION = "Test metric, mean and standard deviation over seeds, each point at its own chosen learning rate."


Lines = dict[str, dict[str, float]]
"""label → method → value of the option, ascending; a label is a preset with the other options that are not its defaults"""


def find_sweeps(methods: Iterable[str]) -> dict[str, Lines]:
    """By option, the sweeps of a number; a method may be a point of several."""
    points_of: dict[str, dict[str, dict[float, str]]] = defaultdict(lambda: defaultdict(dict))
    for method in sorted(set(methods), key=method_order):
        preset, options = preset_of(method), options_of(method)
        defaults = options_of(preset)
        for option, value in options.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                differing = [name for name in options if options[name] != defaults[name] and name != option]
                fixed = [f"{name}={options[name]}" for name in differing]
                label = f"{preset}({', '.join(fixed)})" if fixed else preset
                points_of[option][label].setdefault(float(value), method)  # the plain preset comes first
    sweeps: dict[str, Lines] = {}
    for option, lines in sorted(points_of.items()):
        long_lines = {
            label: {points[value]: value for value in sorted(points)}
            for label, points in lines.items()
            if len(points) >= MIN_VALUES
        }
        sweeps |= {option: long_lines} if long_lines else {}
    return sweeps


def sweep_figures(grid: MetricGrid) -> list[Figure]:
    """The test metric against one option, a panel a size and task, a line a preset."""
    figures = []
    for option, lines in find_sweeps(method for methods in grid.values() for method in methods).items():
        panels = [
            key
            for key, by_method in grid.items()
            if any(sum(m in by_method for m in line) > 1 for line in lines.values())
        ]
        if panels:
            draw = partial(_draw, option, lines, grid)
            figures.append(multiples(f"sweep-{option}", f"Test metric against {option}", CAPTION, panels, draw))
    return figures


def _draw(option: str, lines: Lines, grid: MetricGrid, panel: "Axes", key: SizeAndTask) -> None:
    style = line_styles([*lines])
    for label, line in lines.items():
        points = {value: [*grid[key][method].values()] for method, value in line.items() if method in grid[key]}
        means = [fmean(seeds) for seeds in points.values()]
        deviations = [stdev(seeds) if len(seeds) > 1 else 0.0 for seeds in points.values()]
        marks = {"marker": "o", "markersize": 4, "capsize": 2.5, "elinewidth": 0.9, **style[label]}
        panel.errorbar([*points], means, yerr=deviations, label=label, **marks)
    values = sorted({value for line in lines.values() for value in line.values()})
    if values[0] > 0 and values[-1] / values[0] >= 8:  # doublings stand at equal distances
        panel.set_xscale("log")
        panel.minorticks_off()
    panel.set_xticks(values, [f"{value:g}" for value in values])
    panel.set_xlabel(option)
    panel.grid(axis="y")
    panel.set_title(wrapped(f"{task_label(key[1])}, {size_label(key[0])}"))
