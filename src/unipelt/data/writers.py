"""Writes predictions in the form of the file that they belong to: its delimiter, encoding and byte order mark."""

import csv
import io
import json
from types import SimpleNamespace
from typing import Any

from unipelt.data.readers import MARKS
from unipelt.data.tables import Dialect, as_cell, is_missing
from unipelt.errors import DataError

JSON = (".json", ".jsonl")
TEXT = (".csv", ".tsv", *JSON)
SUFFIXES = (*TEXT, ".parquet", ".xlsx")
LONGEST = 32_767  # characters of a text in an Excel cell
LARGEST = 2**53  # Excel keeps numbers as float64, which rounds larger integers


def table_bytes(columns: dict[str, list[Any]], suffix: str, dialect: Dialect) -> bytes:
    """A table in the format of a suffix; text formats are encoded as `dialect` says, characters it lacks as UTF-8 with a mark.

    Cells are written as they are: a text such as `=1+2` stays what it was, because a prediction's input must come back
    unchanged. In an Excel workbook it is stored as text, which Excel does not run; a CSV file that strangers wrote should be
    imported into a spreadsheet as text. A lone surrogate is written as its JSON escape, such as `\\ud83d`; a number that a
    format cannot hold as text.

    Raises DataError for another suffix, and for a text that Excel cannot store.
    """
    if suffix == ".parquet":
        return _parquet(columns)
    if suffix == ".xlsx":
        return _excel(columns)
    if suffix in JSON:
        records = [dict(zip(columns, row)) for row in zip(*columns.values())]
        lines = [json.dumps(record, ensure_ascii=False, default=str) for record in records]
        text = "\n".join(lines) + "\n" if suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]\n"
    elif suffix in (".csv", ".tsv"):
        lines = []
        delimiter = "\t" if suffix == ".tsv" else dialect.delimiter
        to_lines = SimpleNamespace(write=lines.append)
        writer = csv.writer(to_lines, delimiter=delimiter, lineterminator="\r\n")  # so that a lone \r is quoted too
        writer.writerow(columns)
        writer.writerows([as_cell(value) for value in row] for row in zip(*columns.values()))
        text = "".join(line.removesuffix("\r\n") + "\n" for line in lines)
    else:
        raise DataError(f"predictions cannot be written as {suffix or 'no suffix'!r}; expected {', '.join(SUFFIXES)}")
    if suffix in JSON and dialect.suffix not in JSON:
        dialect = Dialect(suffix=suffix)
    text = _encodable(text)
    mark = next((mark for mark, name in MARKS.items() if dialect.bom and name == dialect.encoding), b"")
    try:
        return mark + text.encode(dialect.encoding)
    except UnicodeEncodeError:
        return text.encode("utf-8-sig")


def _encodable(text: str) -> str:
    """The text with an escape such as `\\ud83d` for each lone surrogate, which no encoding has."""
    return text.encode("utf-8", "backslashreplace").decode()


def _parquet(columns: dict[str, list[Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    arrays = {}
    for name, values in columns.items():
        name = _encodable(name)
        try:
            arrays[name] = pyarrow.array(values)
            pyarrow.parquet.write_table(pyarrow.table({name: arrays[name][:0]}), io.BytesIO())  # refuses empty objects
        except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError):
            # numbers and texts in one column, lone surrogates, integers of more than 64 bits
            cells = [None if value is None else _encodable(str(as_cell(value))) for value in values]
            arrays[name] = pyarrow.array(cells)
    pyarrow.parquet.write_table(pyarrow.table(arrays), buffer)
    return buffer.getvalue()


def _excel(columns: dict[str, list[Any]]) -> bytes:
    import openpyxl
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.utils.exceptions import IllegalCharacterError

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("predictions")
    rows = []  # all before the first is appended: openpyxl cannot stop within a sheet
    for number, row in enumerate([tuple(columns), *zip(*columns.values())]):
        cells = []
        for value in row:
            value = None if is_missing(value) else as_cell(value)
            if isinstance(value, int) and abs(value) > LARGEST:
                value = str(value)
            if isinstance(value, str) and len(value := _encodable(value)) > LONGEST:
                raise DataError(
                    f"row {number + 1} holds a text of {len(value):,} characters, and Excel stores at most {LONGEST:,}; "
                    "write CSV instead"
                )
            try:
                cell = WriteOnlyCell(sheet, value)
            except IllegalCharacterError:
                raise DataError(
                    f"row {number + 1} holds a control character, which Excel cannot store; write CSV instead"
                ) from None
            if isinstance(value, str):
                cell.data_type = "s"  # a text such as =1+2 is not a formula
            cells.append(cell)
        rows.append(cells)
    for cells in rows:
        sheet.append(cells)
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()
