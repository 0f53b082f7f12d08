"""A table as a value, as CSV and on a terminal."""

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from unipelt.report.drawing import Figure

EMPTY = "–"
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
    """CSS class: best, real (a difference beyond chance), yes or no (a claim), diagonal (of a confusion matrix)"""
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
        return EMPTY if self.value is None else self.number(self.value)

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
    max_rows: int | None = None
    """rows of a block that the page, Markdown and LaTeX show; its CSV has all"""
    terminal_columns: int | None = None
    """columns that a terminal shows; None: all"""

    def __bool__(self) -> bool:
        return any(block.rows for block in self.blocks)

    @property
    def rows(self) -> list[tuple[str, Sequence[Cell]]]:
        """Each with its block's heading."""
        return [(block.heading, row) for block in self.blocks for row in block.rows]

    def short(self, max_rows: int | None = None) -> "Table":
        """With at most this many rows of each block (default: its own limit), and a note of how many more there are."""
        max_rows = self.max_rows if max_rows is None else max_rows
        omitted = sum(len(block.rows[max_rows:]) for block in self.blocks) if max_rows is not None else 0
        if not omitted:
            return self
        blocks = [Block(block.heading, block.rows[:max_rows]) for block in self.blocks]
        return replace(self, blocks=blocks, notes=[f"{omitted:,} more are in {self.name}.csv.", *self.notes])

    def for_terminal(self) -> "Table":
        """With fewer rows and columns, and notes of what is left out."""
        table = self.short(5 if self.max_rows else 20)
        if self.terminal_columns is None:
            return table
        blocks = [Block(block.heading, [row[: self.terminal_columns] for row in block.rows]) for block in table.blocks]
        note = f"{self.name}.csv and the page also have: {'; '.join(self.columns[self.terminal_columns :])}."
        return replace(table, columns=self.columns[: self.terminal_columns], blocks=blocks, notes=[*table.notes, note])


def side_by_side(names: Iterable[str], columns: Iterable[Mapping[str, Cell]]) -> list[list[Cell]]:
    """A row a name, with its cell of each column; an empty one where the column has none."""
    columns = [*columns]
    return [[Cell(name), *(column.get(name, Cell()) for column in columns)] for name in names]


def with_best(column: Mapping[str, Cell], sign: float, names: Collection[str]) -> dict[str, Cell]:
    """A column whose best number is marked, among the rows of these names; none if all are equal. sign: −1 where lower is
    better."""
    values = {name: round(sign * cell.value, 9) for name, cell in column.items() if isinstance(cell.value, float)}
    known = {values[name] for name in names if name in values}
    best = [name for name in names if len(known) > 1 and values.get(name) == max(known)]
    return {name: replace(cell, mark="best") if name in best else cell for name, cell in column.items()}


@dataclass(frozen=True)
class Section:
    """A heading, a sentence that answers it, and the evidence: tables and figures, of which empty ones are not shown."""

    heading: str
    evidence: "Sequence[Table | Figure]"
    sentence: str = ""
    on_terminal: bool = True
    folded: bool = False
    """on the page each table and figure opens with a click"""
    if_empty: str = ""
    """what is said where there is no evidence"""

    @property
    def visible(self) -> "list[Table | Figure]":
        return [item for item in self.evidence if item]

    @property
    def tables(self) -> list[Table]:
        return [item for item in self.visible if isinstance(item, Table)]

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
    for index, column in enumerate(table.columns):
        numbers = any(isinstance(row[index].value, float | int) and row[index].low is None for row in block.rows)
        shown.add_column(Text(column), justify="right" if numbers else "left")
    for row in block.rows:
        shown.add_row(*(Text(f"{cell.text} {cell.aside}".rstrip(), style="bold" if cell.mark else "") for cell in row))
    return shown


def table_csv(table: Table) -> str:
    """CSV: a line per row of the table, its block first; a column of its own for each part of a cell that occurs."""
    columns: list[list[object]] = [["block", *(heading for heading, _ in table.rows)]]
    for index, name in enumerate(table.columns):
        cells = [row[index] for _, row in table.rows]
        columns.append([name, *(cell.value for cell in cells)])
        parts = {f"{name} {part}": [getattr(cell, part) for cell in cells] for part in PARTS}
        columns += [[part, *values] for part, values in parts.items() if not {*values} <= {None, ""}]
    return csv_text([*zip(*columns)])


def csv_text(rows: Sequence[Sequence[object]]) -> str:
    """CSV of these rows; a zero has no sign."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([value + 0.0 if isinstance(value, float) else value for value in row] for row in rows)
    return buffer.getvalue()
