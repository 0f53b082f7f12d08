"""How figures are drawn: one style, SVG for the page and for itself, and PDF. Text stays text, and takes the page's colour."""

import io
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from unipelt.report.names import OURS, preset_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing
    from matplotlib.legend import Legend
    from matplotlib.text import Text

Place = TypeVar("Place")

INK = "#010203"  # on the page it becomes the page's own colour
STYLE: Any = {
    "svg.fonttype": "none", "pdf.fonttype": 42, "text.parse_math": False, "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold",
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7, "legend.frameon": False, "lines.linewidth": 1.5,
    "grid.color": "#8884", "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.titlelocation": "left",
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK),
}  # fmt: skip
COLOURS = {
    "full": "#8a8f98", "head": "#b59f6a", "bitfit": "#7a9a3d", "adapter": "#2a9d8f", "prefix": "#c77d1e", "lora": "#7b6cd0",
    "unipelt-ap": "#4a90d9", "unipelt-apl": "#d6455d", "mam": "#3f7d5c", "houlsby": "#5fb3b3", "prompt": "#a8763e", "unipelt-central": "#b05fb0",
}  # fmt: skip
MORE = ("#6f7f3f", "#a55a5a", "#4f6fa5", "#8f6f9f", "#5f8f7f", "#9f7f4f", "#6f6f9f")
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Figure:
    name: str
    title: str
    caption: str
    svg: str
    """for a page: no header, its own identifiers"""
    files: dict[str, bytes]


def looks(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour for each preset, a dash for each of its variants."""
    presets = list(dict.fromkeys(preset_of(method) for method in methods))
    spare = [preset for preset in presets if preset not in COLOURS]
    colours = COLOURS | {preset: MORE[place % len(MORE)] for place, preset in enumerate(spare)}
    found: dict[str, dict[str, Any]] = {}
    for preset in presets:
        for place, method in enumerate(one for one in methods if preset_of(one) == preset):
            dash, above = DASHES[place % len(DASHES)], 3 if preset == OURS else 2
            found[method] = {"color": colours[preset], "linestyle": dash, "zorder": above}
    return found


ENLARGED = 1.6  # at most, on a page
LETTERS = 28  # of a line of a name


def wrapped(name: str, letters: int = LETTERS) -> str:
    """A name in as many lines as it needs."""
    return textwrap.fill(name, letters, break_on_hyphens=False)


def across(*drawn: "Text | Legend") -> float:
    """The width of the widest of some texts or legends, in inches."""
    return max(one.get_window_extent().width / one.figure.dpi for one in drawn)


@contextmanager
def canvas(name: str, rows: int, columns: int, width: float, height: float) -> Iterator[tuple["Drawing", list["Axes"]]]:
    """A figure of panels, and its axes as one list."""
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        drawing = Drawing(figsize=(width, height), layout="constrained")
        axes = drawing.subplots(rows, columns, squeeze=False).flatten().tolist()
        yield drawing, axes


def finish(name: str, title: str, caption: str, drawing: "Drawing") -> Figure:
    """A drawing as files, without the panels that show nothing."""
    for panel in drawing.axes:
        panel.set_visible(panel.has_data())
    svg, pdf = io.BytesIO(), io.BytesIO()
    drawing.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    text = svg.getvalue().decode()
    body = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r' id="[A-Za-z0-9]+_\d+"', "", body).replace(INK, "currentColor")
    wide = drawing.get_figwidth() * 96  # a small figure neither grows with a wide page nor leaves a narrow one
    style = f"max-width: {wide * ENLARGED:.0f}px; min-width: min(40rem, {wide:.0f}px)"
    body = body.replace("<svg ", f'<svg style="{style}" ', 1)
    return Figure(name, title, caption, body, {"svg": text.replace(INK, "#1b1f24").encode(), "pdf": pdf.getvalue()})


def multiples(
    name: str, texts: tuple[str, str], places: Sequence[Place], draw: Callable[["Axes", Place], None]
) -> Figure:
    """Small multiples: `draw(panel, place)` for each place, at most four in a row, one legend above. texts: title, caption."""
    columns = min(len(places), 4)
    rows = -(-len(places) // columns)
    with canvas(name, rows, columns, 0.6 + 2.5 * max(columns, 2), 1.0) as (drawing, axes):
        for panel, place in zip(axes, places):
            draw(panel, place)
            panel.grid(axis="y")
        entries = {wrapped(text): handle for panel in axes for handle, text in zip(*panel.get_legend_handles_labels())}
        for ncols in range(len(entries), 0, -1):
            legend = drawing.legend(
                entries.values(), entries.keys(), loc="outside upper left", ncols=ncols, fontsize=8.5
            )
            if ncols == 1 or across(legend) < drawing.get_figwidth():
                break
            legend.remove()
        drawing.set_figheight(0.35 + 2.1 * rows + legend.get_window_extent().height / drawing.dpi)
        return finish(name, *texts, drawing)
