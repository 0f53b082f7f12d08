"""How figures are drawn: one style, SVG for the page and for itself, and PDF. Text stays text, and takes the page's colour."""

import io
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, TypeVar

from unipelt.report.names import PAPER_METHOD, preset_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

Key = TypeVar("Key")

INK = "#010203"  # on the page it becomes the page's own colour
STYLE: Any = {
    "svg.fonttype": "none", "pdf.fonttype": 42, "text.parse_math": False, "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold",
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7, "legend.frameon": False, "lines.linewidth": 1.5,
    "grid.color": "#8884", "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.titlelocation": "left",
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK),
}  # fmt: skip
COLOURS = (
    "#2a9d8f", "#c77d1e", "#7b6cd0", "#d6455d", "#4a90d9", "#7a9a3d", "#b59f6a", "#8a8f98", "#3f7d5c", "#b05fb0", "#a8763e",
    "#5fb3b3", "#a55a5a", "#4f6fa5",
)  # fmt: skip
BLUE = "#3b78c3"  # 3:1 at least on white and on the dark page
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Figure:
    name: str
    title: str
    caption: str
    svg: str
    """for a page: no header, its own identifiers"""
    files: dict[str, bytes]


def line_styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour for each preset, a dash for each of its variants."""
    presets: dict[str, list[str]] = {}
    for method in methods:
        presets.setdefault(preset_of(method), []).append(method)
    return {
        method: {"color": colour, "linestyle": dash, "zorder": 3 if preset == PAPER_METHOD else 2}
        for (preset, variants), colour in zip(presets.items(), cycle(COLOURS))
        for method, dash in zip(variants, cycle(DASHES))
    }


ENLARGED = 1.6  # at most, on a page
LETTERS = 28  # of a line of a name
LETTER_WIDTH = 0.085  # inches, at most, of a letter of a legend


def wrapped(name: str, letters: int = LETTERS) -> str:
    """A name in as many lines as it needs."""
    return textwrap.fill(name, letters, break_on_hyphens=False)


@contextmanager
def canvas(name: str, rows: int, columns: int, width: float, height: float) -> Iterator[tuple["Drawing", list["Axes"]]]:
    """A figure of panels, and its axes as one list; the size is in inches."""
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
    pixels = drawing.get_figwidth() * 96  # a small figure neither grows with a wide page nor leaves a narrow one
    style = f"max-width: {pixels * ENLARGED:.0f}px; min-width: min(40rem, {pixels:.0f}px)"
    body = body.replace("<svg ", f'<svg style="{style}" ', 1)
    return Figure(name, title, caption, body, {"svg": text.replace(INK, "#1b1f24").encode(), "pdf": pdf.getvalue()})


def multiples(
    name: str, title: str, caption: str, keys: Sequence[Key], draw: Callable[["Axes", Key], None],
    height: float = 2.1, panels_per_row: int = 4,
) -> Figure:  # fmt: skip
    """Small multiples: `draw(panel, key)` for each key, and above them a legend of what it labels.

    height: inches of a panel; panels_per_row: at most.
    """
    columns = min(len(keys), panels_per_row)
    rows = -(-len(keys) // columns)
    width = 0.6 + 10.0 / panels_per_row * max(columns, 2)
    with canvas(name, rows, columns, width, 0.35 + height * rows) as (drawing, axes):
        for panel, key in zip(axes, keys):
            draw(panel, key)
        entries = {wrapped(text): handle for panel in axes for handle, text in zip(*panel.get_legend_handles_labels())}
        if entries:
            longest = max(len(line) for text in entries for line in text.splitlines())
            legend_columns = min(len(entries), max(1, int(width / (0.5 + LETTER_WIDTH * longest))))
            legend = drawing.legend(
                entries.values(), entries.keys(), loc="outside upper left", ncols=legend_columns, fontsize=8.5
            )
            drawing.set_figheight(drawing.get_figheight() + legend.get_window_extent().height / drawing.dpi)
        return finish(name, title, caption, drawing)
