"""Writes predictions in the form of the file that they belong to: its delimiter, encoding and byte order mark."""

import csv
import io
import json
from typing import Any

from unipelt.data.readers import MARKS
from unipelt.data.tables import Dialect, as_cell, is_missing
from unipelt.errors import DataError

JSON = (".json", ".jsonl")
TEXT = (".csv", ".tsv", *JSON)
SUFFIXES = (*TEXT, ".parquet", ".xlsx")


def table_bytes(columns: dict[str, list[Any]], suffix: str, dialect: Dialect) -> bytes:
    """A table in the format of a suffix; text formats are encoded as `dialect` says, characters it lacks as UTF-8 with a mark.

    Cells are written as they are: a text such as `=1+2` stays what it was, because a prediction's input must come back
    unchanged. In an Excel workbook it is stored as text, which Excel does not run; a CSV file that strangers wrote should be
    imported into a spreadsheet as text. Raises DataError for another suffix.
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
        buffer = io.StringIO()
        delimiter = "\t" if suffix == ".tsv" else dialect.delimiter
        writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([as_cell(value) for value in row] for row in zip(*columns.values()))
        text = buffer.getvalue()
    else:
        raise DataError(f"predictions cannot be written as {suffix or 'no suffix'!r}; expected {', '.join(SUFFIXES)}")
    if suffix in JSON and dialect.suffix not in JSON:
        dialect = Dialect(suffix=suffix)
    mark = next((mark for mark, name in MARKS.items() if dialect.bom and name == dialect.encoding), b"")
    try:
        return mark + text.encode(dialect.encoding)
    except UnicodeEncodeError:
        return text.encode("utf-8-sig")


def _parquet(columns: dict[str, list[Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pyarrow.array(values)
        except pyarrow.ArrowException:  # numbers and texts in one column
            arrays[name] = pyarrow.array([None if value is None else str(as_cell(value)) for value in values])
    pyarrow.parquet.write_table(pyarrow.table(arrays), buffer)
    return buffer.getvalue()


def _excel(columns: dict[str, list[Any]]) -> bytes:
    import openpyxl
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.utils.exceptions import IllegalCharacterError

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("predictions")
    for number, row in enumerate([tuple(columns), *zip(*columns.values())]):
        cells = []
        for value in row:
            try:
                cell = WriteOnlyCell(sheet, None if is_missing(value) else as_cell(value))
            except IllegalCharacterError:
                raise DataError(
                    f"row {number + 1} holds a control character, which Excel cannot store; write CSV instead"
                ) from None
            if isinstance(value, str):
                cell.data_type = "s"  # a text such as =1+2 is not a formula
            cells.append(cell)
        sheet.append(cells)
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()
