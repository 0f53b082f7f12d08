"""A labelled file of the user's: CSV, TSV, JSONL or Parquet, with one clear line for each way it can be wrong."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unipelt.data.columns import Table, choose_columns, task_and_rows
from unipelt.data.task import Examples, Kind, Task
from unipelt.errors import DataError

BINARY = {b"PK\x03\x04": "a zip or Excel file", b"\x1f\x8b": "a gzip file", b"PAR1": "Parquet", b"%PDF": "a PDF"}


def load_file(
    path: str | Path,
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    labels: Sequence[str] | None = None,
    kind: Kind | None = None,
    for_prediction: bool = False,
) -> tuple[Task, Examples]:
    """The task that a file describes and its rows.

    text, pair, label: column names; found by name, or where only one column can be meant. labels: class names of
    training, beyond which a label is an error. for_prediction: labels are read only from a column named by `label`.
    """
    table = read_table(path)
    columns = choose_columns(table, text=text, pair=pair, label=label, for_prediction=for_prediction)
    return task_and_rows(table, columns, name=Path(path).stem, labels=labels, kind=kind)


def read_table(path: str | Path) -> Table:
    """Every column of the file, unjudged, and at least one row."""
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder; expected a file: {_suffixes()}")
    if not path.exists():
        raise DataError(f"{path} does not exist; give the path of a file: {_suffixes()}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} ends in {path.suffix or 'no suffix'!r}; expected {_suffixes()}: convert or rename it")
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    if not contents.strip():
        raise DataError(f"{path} is empty; expected a header and rows")
    table = reader(str(path), contents)
    if not next(iter(table.columns.values()), []):
        raise DataError(f"{path} has a header and no rows; expected at least one row")
    return table


def read_csv(place: str, contents: bytes) -> Table:
    """Of comma, semicolon and tab, the delimiter that cuts the header into most columns."""
    text = _decoded(place, contents)
    header = next(line for line in text.splitlines() if line.strip())
    delimiter = max(",;\t", key=lambda mark: len(next(csv.reader([header], delimiter=mark))))
    return _delimited(place, text, delimiter, csv.QUOTE_MINIMAL)


def read_tsv(place: str, contents: bytes) -> Table:
    """Quoted as pandas writes it; where quotes do not balance, unquoted as GLUE's own files are."""
    text = _decoded(place, contents)
    try:
        return _delimited(place, text, "\t", csv.QUOTE_MINIMAL)
    except DataError as quoted:
        try:
            return _delimited(place, text, "\t", csv.QUOTE_NONE)
        except DataError:
            raise quoted from None


def read_jsonl(place: str, contents: bytes) -> Table:
    records: list[dict[str, Any]] = []
    lines: list[int] = []
    for line, text in enumerate(_decoded(place, contents).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error).split(";")[0]
            raise DataError(f"{place}, line {line} is no JSON: {reason}; expected one object on each line") from error
        if not isinstance(record, dict):
            raise DataError(
                f"{place}, line {line} is a JSON {type(record).__name__}, expected an object such as "
                '{"text": "…", "label": "…"} on each line'
            )
        records.append(record)
        lines.append(line)
    names = dict.fromkeys(name for record in records for name in record)
    if not names:
        raise DataError(f"{place} has objects without any field; expected at least a text")
    return Table(place=place, columns={name: [record.get(name) for record in records] for name in names}, lines=lines)


def read_parquet(place: str, contents: bytes) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        read = pyarrow.parquet.read_table(pyarrow.BufferReader(contents))
        columns = {name: _cells(read.column(index)) for index, name in enumerate(read.column_names)}
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{place} is no readable Parquet file: {reason}; write it again, or as CSV") from error
    _refuse_repeated(place, read.column_names)
    return Table(place=place, columns=columns, classes=_declared_classes(read.schema.metadata or {}))


READERS = {".csv": read_csv, ".tsv": read_tsv, ".jsonl": read_jsonl, ".parquet": read_parquet}


def _delimited(place: str, text: str, delimiter: str, quoting: Any) -> Table:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # long documents; the limit is the process's
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    blank: list[int] = []  # lines since the last row: with one column each is an empty row, unless the file ends there
    start = 1
    try:
        for row in reader:
            if not row or (len(row) == 1 and row[0].isspace()):
                blank.append(start)
            else:
                if rows and len(rows[0]) == 1:
                    rows += [[""] for _ in blank]
                    lines += blank
                blank = []
                rows.append(row)
                lines.append(start)
                if len(row) != len(rows[0]):
                    short = "fill in what is missing"
                    long = "put a field that holds the delimiter into double quotes"
                    raise DataError(
                        f"{place}, line {start} has {len(row)} of the header's {len(rows[0])} fields; "
                        f"{short if len(row) < len(rows[0]) else long}"
                    )
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{place}, line {start}: {error}; close every double quote, and double those inside a field"
        ) from error
    header = [name.strip() for name in rows[0]]
    _refuse_repeated(place, header)
    columns: dict[str, list[Any]] = {name: [row[index] for row in rows[1:]] for index, name in enumerate(header)}
    return Table(place=place, columns=columns, lines=lines[1:])


def _cells(column: Any) -> list[Any]:
    """Python values; times as text, because nanoseconds would ask for pandas."""
    import pyarrow

    return (column.cast(pyarrow.string()) if pyarrow.types.is_temporal(column.type) else column).to_pylist()


def _refuse_repeated(place: str, header: list[str]) -> None:
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        raise DataError(f"{place}: column {repeated[0]!r} stands twice in the header; give each column its own name")


def _decoded(place: str, contents: bytes) -> str:
    for start, what in BINARY.items():
        if contents.startswith(start):
            raise DataError(f"{place} is {what} by its first bytes, not text; expected what its suffix says")
    if contents.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{place} is encoded as UTF-16, expected UTF-8; save it as UTF-8")
    if b"\0" in contents:
        raise DataError(f"{place} is a binary file (a zero at byte {contents.index(0)}), expected text in UTF-8")
    try:
        return contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        position = error.start + 3 * contents.startswith(b"\xef\xbb\xbf")  # the codec counts after the byte order mark
        line = contents.count(b"\n", 0, position) + 1
        raise DataError(
            f"{place} is not UTF-8: byte {contents[position]:#04x} at position {position} (line {line}); save it as UTF-8"
        ) from error


def _declared_classes(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """ClassLabel names, which the hub's Parquet files keep in their schema."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {name: tuple(row["names"]) for name, row in features.items() if row.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # metadata of someone else's making: the integers stand as they are


def _suffixes() -> str:
    return ", ".join(READERS)
