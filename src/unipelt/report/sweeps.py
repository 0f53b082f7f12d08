"""Sweeps: methods of one preset that differ in exactly one option."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from unipelt.report.names import method_order, options_of, preset_of

LEAST = 3
"""values that make a sweep; two are a pair of methods"""


@dataclass(frozen=True)
class Sweep:
    """One line of a figure."""

    option: str
    label: str
    """the preset, with the other options that are not its defaults"""
    values: dict[str, float]
    """the option's value by method, ascending"""


def find_sweeps(methods: Iterable[str]) -> list[Sweep]:
    """Every sweep of a number; a method may be a point of several."""
    lines: dict[tuple[str, str, str], dict[float, str]] = defaultdict(dict)
    for method in sorted(set(methods), key=method_order):
        preset, options = preset_of(method), options_of(method)
        for option, value in options.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                others = ((name, value) for name, value in options.items() if value != options_of(preset)[name])
                fixed = ", ".join(f"{name}={value}" for name, value in others if name != option)
                label = f"{preset}({fixed})" if fixed else preset
                lines[option, preset, label].setdefault(float(value), method)  # the plain preset comes first
    found = [
        Sweep(option, label, {points[value]: value for value in sorted(points)})
        for (option, _, label), points in lines.items()
        if len(points) >= LEAST
    ]
    return sorted(found, key=lambda sweep: (sweep.option, method_order(preset_of(sweep.label)), sweep.label))


Place = tuple[int | str, str]


def sweep_places(sweeps: Iterable[Sweep], present: Collection[tuple[int | str, str, str]]) -> list[Place]:
    """The sizes and tasks where one of the sweeps has at least two points; present: size, task and method of what is there."""
    counts = {
        place: max((sum((*place, method) in present for method in sweep.values) for sweep in sweeps), default=0)
        for place in dict.fromkeys((k, task) for k, task, _ in present)
    }
    return [place for place, number in counts.items() if number > 1]
