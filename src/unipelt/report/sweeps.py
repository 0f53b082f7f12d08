"""Sweeps: methods of one preset that differ in exactly one option."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from unipelt.report.names import method_order, options_of, preset_of

LEAST = 3
"""values that make a sweep; two are a pair of methods"""


@dataclass(frozen=True)
class Sweep:
    """One line of a figure."""

    option: str
    preset: str
    fixed: str
    """the other options that are not the preset's defaults, as text"""
    values: dict[str, float]
    """the option's value by method, ascending"""

    @property
    def methods(self) -> list[str]:
        return list(self.values)

    @property
    def label(self) -> str:
        return f"{self.preset}({self.fixed})" if self.fixed else self.preset


def find_sweeps(methods: Iterable[str]) -> list[Sweep]:
    """Every sweep of a number; a method may be a point of several."""
    lines: dict[tuple[str, str, str], dict[float, str]] = defaultdict(dict)
    for method in sorted(set(methods), key=method_order):
        options = options_of(method)
        for option, value in options.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                rest = repr(sorted((name, repr(other)) for name, other in options.items() if name != option))
                lines[option, preset_of(method), rest].setdefault(float(value), method)  # the plain preset comes first
    found = []
    for (option, preset, _), points in lines.items():
        if len(points) >= LEAST:
            values = {points[value]: value for value in sorted(points)}
            found.append(Sweep(option, preset, _fixed(next(iter(values)), preset, option), values))
    return sorted(found, key=lambda sweep: (sweep.option, method_order(sweep.preset), sweep.fixed))


def sweep_places(sweeps: Iterable[Sweep], present: Iterable[tuple[int | str, str, str]]) -> list[tuple[int | str, str]]:
    """The sizes and tasks where one of the sweeps has at least two points; present: size, task and method of what is there."""
    found, sweeps = list(present), list(sweeps)
    places = dict.fromkeys((k, task) for k, task, _ in found)
    return [
        place
        for place in places
        if any(sum((*place, method) in found for method in sweep.methods) > 1 for sweep in sweeps)
    ]


def _fixed(method: str, preset: str, option: str) -> str:
    defaults = options_of(preset)
    shown = {name: value for name, value in options_of(method).items() if name != option and value != defaults[name]}
    return ", ".join(f"{name}={value}" for name, value in shown.items())
