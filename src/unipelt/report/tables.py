"""A table as a value, and as Markdown, CSV, LaTeX and on a terminal."""

import csv
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from statistics import fmean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from unipelt.report.drawing import Figure

NOTHING = "–"
PARTS = ("sd", "low", "high", "note")
"""of a cell, that get a column of their own in CSV"""


@dataclass(frozen=True)
class Cell:
    """A number or a text, with what belongs to it."""

    value: float | str | None = None
    sd: float | None = None
    low: float | None = None
    """of a 95 % interval"""
    high: float | None = None
    mark: str = ""
    """best, second, real (a difference that is), yes or no"""
    note: str = ""
    digits: int = 2
    """behind the point; −1: as short as it is exact"""
    signed: bool = False
    shade: float | None = None
    """0 to 1: how dark the page colours it"""

    @classmethod
    def count(cls, number: int, shade: float | None = None, mark: str = "") -> "Cell":
        """A whole number."""
        return cls(float(number), digits=0, shade=shade, mark=mark)

    @classmethod
    def mean(cls, values: Collection[float], note: str = "") -> "Cell":
        """Mean and standard deviation of a sample; a single value has none."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, note=note)

    @property
    def text(self) -> str:
        if isinstance(self.value, str):
            return self.value
        return NOTHING if self.value is None else self.number(self.value)

    @property
    def aside(self) -> str:
        """The text after the number, on one line."""
        spread = f"({self.spread})" if self.low is not None else self.spread
        return " ".join(part for part in (f"({self.note})" if self.note else "", spread) if part)

    @property
    def spread(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.number(self.low)} to {self.number(self.high)}"
        return "" if self.sd is None else f"±{self.sd:.{self.digits}f}"

    def number(self, value: float) -> str:
        if self.digits < 0:
            return f"{value:g}".replace("-", "−")
        shown = f"{value:+.{self.digits}f}" if self.signed else f"{value:.{self.digits}f}"
        if not float(shown):
            shown = shown.lstrip("+-")  # no −0.00
        return shown.replace("-", "−")


@dataclass(frozen=True)
class Block:
    heading: str
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Table:
    """Blocks of rows under the same columns; the first column names the row."""

    name: str
    """of its files"""
    title: str
    columns: Sequence[str]
    blocks: Sequence[Block]
    notes: Sequence[str] = field(default=())
    most: int | None = None
    """rows of a block that the page, the terminal and Markdown show; its CSV has all"""

    def __bool__(self) -> bool:
        return any(block.rows for block in self.blocks)

    @property
    def rows(self) -> list[tuple[str, Sequence[Cell]]]:
        """Each with its block's heading."""
        return [(block.heading, row) for block in self.blocks for row in block.rows]

    def short(self, most: int | None = None) -> "Table":
        """With the rows that are shown, and a note of how many more there are."""
        most = self.most if most is None else most
        cut = sum(max(0, len(block.rows) - most) for block in self.blocks) if most is not None else 0
        if not cut:
            return self
        blocks = [Block(block.heading, block.rows[:most]) for block in self.blocks]
        return replace(self, blocks=blocks, notes=[f"{cut:,} more are in {self.name}.csv.", *self.notes])


def side_by_side(names: Iterable[str], columns: Iterable[Mapping[str, Cell]]) -> list[list[Cell]]:
    """A row a name, with its cell of each column; an empty one where the column has none."""
    columns = [*columns]
    return [[Cell(name), *(column.get(name, Cell()) for column in columns)] for name in names]


def marked(column: Mapping[str, Cell], sign: float = 1.0) -> dict[str, Cell]:
    """A column whose best and second-best numbers are marked, equal ones alike; none if all are equal. sign: −1 where lower is
    better."""
    values = {name: round(sign * cell.value, 9) for name, cell in column.items() if isinstance(cell.value, float)}
    known = sorted(values.values(), reverse=True)
    if not known or known[0] == known[-1]:
        return dict(column)
    marks = {value: mark for mark, value in reversed([*zip(("best", "second"), known)])}
    return {name: replace(cell, mark=marks.get(values.get(name, inf), "")) for name, cell in column.items()}


@dataclass(frozen=True)
class Section:
    """A heading, a sentence that answers it, and the evidence."""

    heading: str
    parts: "Sequence[Table | Figure]"
    sentence: str = ""
    folded: bool = False
    """each part opens with a click"""

    @property
    def title(self) -> str:
        """Heading and sentence on one line."""
        return f"{self.heading}{'' if self.heading.endswith('?') or not self.sentence else ':'} {self.sentence}".strip()


def on_terminal(table: Table, block: Block) -> "RichTable":
    """One block for rich: texts as they are, no markup in them."""
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(
        box=None, pad_edge=False, title=Text(block.heading) if block.heading else None, title_justify="left"
    )
    for place, column in enumerate(table.columns):
        numbers = any(isinstance(row[place].value, float | int) and row[place].low is None for row in block.rows)
        shown.add_column(Text(column), justify="right" if numbers else "left")
    for row in block.rows:
        shown.add_row(*(Text(f"{cell.text} {cell.aside}".rstrip(), style="bold" if cell.mark else "") for cell in row))
    return shown


def markdown(table: Table) -> str:
    table = table.short()
    lines = [f"### {_plain(table.title)}", ""]
    for block in table.blocks:
        rows = [[*map(_plain, table.columns)], ["---", *["---:"] * (len(table.columns) - 1)]]
        rows += [[*map(_markdown_cell, row)] for row in block.rows]
        lines += [f"**{_plain(block.heading)}**", ""] if block.heading else []
        lines += [*(f"| {' | '.join(row)} |" for row in rows), ""]
    return "\n".join([*lines, *(f"{_plain(note)}  " for note in table.notes), ""])


def _markdown_cell(cell: Cell) -> str:
    around = "_" if cell.mark == "second" else "**" if cell.mark else ""
    return f"{around}{_plain(cell.text)}{around} {_plain(cell.aside)}".rstrip()


def _plain(text: str) -> str:
    return re.sub(r"([\\|<>*_`\[\]#])", r"\\\1", " ".join(text.split()))


def comma_separated(table: Table) -> str:
    """A line a row of the table, its block first; a column of its own for each spread and note that is there."""
    columns: list[list[object]] = [["block", *(heading for heading, _ in table.rows)]]
    for place, name in enumerate(table.columns):
        cells = [row[place] for _, row in table.rows]
        columns.append([name, *(cell.value for cell in cells)])
        parts = {f"{name} {part}": [getattr(cell, part) for cell in cells] for part in PARTS}
        columns += [[part, *values] for part, values in parts.items() if not {*values} <= {None, ""}]
    return as_csv([*zip(*columns)])


def as_csv(rows: Sequence[Sequence[object]]) -> str:
    """0 without a sign."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([value + 0.0 if isinstance(value, float) else value for value in row] for row in rows)
    return buffer.getvalue()


def latex(table: Table) -> str:
    """A table for booktabs; every special character is escaped."""
    table = table.short()
    width = len(table.columns)
    lines = ["% needs booktabs", r"\begin{table}", r"\centering", rf"\caption{{{escape(table.title)}}}", rf"\label{{tab:{table.name}}}",
             rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}", r"\toprule", " & ".join(map(escape, table.columns)) + r" \\"]  # fmt: skip
    for block in table.blocks:
        lines.append(r"\midrule")
        lines += [rf"\multicolumn{{{width}}}{{l}}{{\textit{{{escape(block.heading)}}}}} \\"] if block.heading else []
        lines += [" & ".join(map(_latex_cell, row)) + r" \\" for row in block.rows]
    notes = [f"% {' '.join(note.split())}" for note in table.notes]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *notes, r"\end{table}", ""])


def _latex_cell(cell: Cell) -> str:
    command = r"\underline" if cell.mark == "second" else r"\textbf"
    text = f"{command}{{{escape(cell.text)}}}" if cell.mark else escape(cell.text)
    return text + (rf" {{\scriptsize {escape(cell.aside)}}}" if cell.aside else "")


_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "–": "--", "…": r"\ldots{}", "α": r"$\alpha$",
    **{mark: "\\" + mark for mark in "&%$#_{}"},
}  # fmt: skip


def escape(text: str) -> str:
    return "".join(_SPECIAL.get(letter, letter) for letter in " ".join(text.split()))


WRITERS = {"md": markdown, "csv": comma_separated, "tex": latex}
"""by the suffix of a file"""
