"""Reads a labelled file: CSV, TSV, JSON, JSONL, Parquet, Excel or CoNLL, with one clear line for each way it can be wrong."""

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from unipelt.data.tables import Dialect, Table, is_missing
from unipelt.errors import DataError

BINARY = {b"PK\x03\x04": "a zip or Excel file", b"\x1f\x8b": "a gzip file", b"PAR1": "a Parquet file", b"%PDF": "a PDF"}
MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def read_table(path: str | Path, encoding: str | None = None) -> Table:
    """Every column of a file, unchecked, and at least one example.

    encoding: of a text file; None: UTF-8, or what a byte order mark says. Raises DataError.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder; expected a file: {', '.join(READERS)}")
    if not path.exists():
        raise DataError(f"{path} does not exist; give the path of a file: {', '.join(READERS)}")
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise DataError(
            f"{path} ends in {suffix or 'no suffix'!r}; expected {', '.join(READERS)}: convert or rename it"
        )
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    if not contents.strip():
        raise DataError(f"{path} is empty; expected a header and examples")
    table = READERS[suffix](str(path), contents, encoding)
    table = replace(table, dialect=replace(table.dialect, suffix=suffix)).with_languages_apart()
    if not len(table):
        raise DataError(f"{path} has a header and no examples; expected at least one")
    return table


def read_csv(name: str, contents: bytes, encoding: str | None) -> Table:
    """Of comma, semicolon and tab, the delimiter that splits the header into most columns."""
    text, dialect = _decoded(name, contents, encoding)
    header = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t", key=lambda mark: len(next(csv.reader([header], delimiter=mark))))
    return _delimited(name, text, replace(dialect, delimiter=delimiter), csv.QUOTE_MINIMAL)


def read_tsv(name: str, contents: bytes, encoding: str | None) -> Table:
    """Quoted as pandas writes it, or unquoted as GLUE's own files are: where quotes do not balance, and where every line has
    the header's number of fields though a quote would join some of them."""
    text, dialect = _decoded(name, contents, encoding)
    read = partial(_delimited, name, text, replace(dialect, delimiter="\t"))
    if '"' not in text:
        return read(csv.QUOTE_MINIMAL)
    try:
        unquoted = read(csv.QUOTE_NONE)
    except DataError:  # a quoted field holds a tab or the end of a line
        return read(csv.QUOTE_MINIMAL)
    try:
        quoted = read(csv.QUOTE_MINIMAL)
    except DataError:
        return unquoted
    return unquoted if len(unquoted) > len(quoted) and len(unquoted.columns) > 1 else quoted


def read_jsonl(name: str, contents: bytes, encoding: str | None) -> Table:
    """One JSON object per line."""
    text, dialect = _decoded(name, contents, encoding)
    records: list[dict[str, Any]] = []
    lines = []
    for line, line_text in enumerate(text.split("\n"), start=1):
        if line_text.strip():
            record = _json(f"{name}, line {line}", line_text)
            if not isinstance(record, dict):
                raise DataError(
                    f"{name}, line {line} is a JSON {type(record).__name__}, expected an object such as "
                    '{"text": "…", "label": "…"} on each line'
                )
            records.append(record)
            lines.append(line)
    return Table(name=name, columns=_columns(name, records), lines=lines, dialect=dialect)


def read_json(name: str, contents: bytes, encoding: str | None) -> Table:
    """A list of objects, alone or as the only list in an object, or an object of columns of equal length."""
    text, dialect = _decoded(name, contents, encoding)
    data = _json(name, text)
    if isinstance(data, dict):
        lists = [value for value in data.values() if isinstance(value, list)]
        if lists and all(isinstance(item, dict) for item in lists[0]) and len(lists) == 1:
            data = lists[0]
        elif lists and len(lists) == len(data) and len({len(value) for value in lists}) == 1:
            return Table(name=name, columns=data, dialect=dialect)
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data) or not data:
        raise DataError(
            f'{name}: expected a list of objects such as [{{"text": "…", "label": "…"}}, …]; write it so, or as CSV or JSONL'
        )
    return Table(name=name, columns=_columns(name, data), dialect=dialect)


def read_parquet(name: str, contents: bytes, encoding: str | None) -> Table:
    """Parquet through pyarrow, which keeps integers beside gaps; times become text."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(contents))
        names = [str(column_name) for column_name in table.column_names]
        values = [
            column.cast(pyarrow.string()) if pyarrow.types.is_temporal(column.type) else column
            for column in table.columns
        ]
        columns = {column_name: value.to_pylist() for column_name, value in zip(names, values)}
        classes = _declared_classes(table.schema.metadata or {}, columns)
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{name} is no readable Parquet file: {_first_line(error)}; write it again or as CSV"
        ) from error
    _refuse_repeated(name, names)
    return Table(name=name, columns=columns, classes=classes)


def read_excel(name: str, contents: bytes, encoding: str | None) -> Table:
    """The first sheet of a workbook, whose first row is the header; dates become text."""
    import pandas

    try:
        sheets = pandas.read_excel(io.BytesIO(contents), sheet_name=None, header=None, dtype=object, na_filter=False)
    except Exception as error:  # openpyxl raises whatever the damage leads to
        raise DataError(f"{name} is no readable Excel file: {_first_line(error)}; save it again or as CSV") from error
    sheet, frame = next(iter(sheets.items()))
    plain = str | int | float | None
    rows = [[value if isinstance(value, plain) else str(value) for value in row] for row in frame.values.tolist()]
    while rows and all(map(is_missing, rows[-1])):
        rows.pop()
    if not rows:
        raise DataError(f"{name}: sheet {sheet!r}, the first, is empty; expected a header and examples")
    header = ["" if is_missing(cell) else str(cell).strip() for cell in rows[0]]
    used = [i for i, column in enumerate(header) if column or not all(is_missing(row[i]) for row in rows[1:])]
    _refuse_repeated(name, [header[i] for i in used])
    note = f"{name}: read from sheet {sheet!r}, the first of {len(sheets)}; move your table there if it is another."
    return Table(
        name=name, columns={header[i]: [row[i] for row in rows[1:]] for i in used}, lines=range(2, len(rows) + 1),
        notes=(note,) * (len(sheets) > 1),
    )  # fmt: skip


def read_conll(name: str, contents: bytes, encoding: str | None) -> Table:
    """A word and, in the last column, its tag per line; an empty line between sentences. `-DOCSTART-` lines are passed over."""
    text, dialect = _decoded(name, contents, encoding)
    sentences: list[list[list[str]]] = [[]]
    lines: list[int] = []
    for line, line_text in enumerate(text.splitlines(), start=1):
        fields = line_text.split("\t") if "\t" in line_text else line_text.split()
        if not line_text.strip() or fields[0] == "-DOCSTART-":
            if sentences[-1]:
                sentences.append([])
            continue
        if sentences[0] and len(fields) != len(sentences[0][0]):
            expected = f"{len(sentences[0][0])} as in the first line"
            raise DataError(f"{name}, line {line} has {len(fields)} fields, expected {expected}: a word … and its tag")
        lines += [line] * (not sentences[-1])
        sentences[-1].append(fields)
    nonempty = [sentence for sentence in sentences if sentence]
    columns: dict[str, list] = {"tokens": [[fields[0] for fields in sentence] for sentence in nonempty]}
    if nonempty and len(nonempty[0][0]) > 1:
        columns["tags"] = [[fields[-1] for fields in sentence] for sentence in nonempty]
    return Table(name=name, columns=columns, lines=lines, dialect=dialect)


READERS: dict[str, Callable[[str, bytes, str | None], Table]] = {
    ".csv": read_csv, ".tsv": read_tsv, ".json": read_json, ".jsonl": read_jsonl, ".parquet": read_parquet,
    ".xlsx": read_excel, ".conll": read_conll, ".bio": read_conll,
}  # fmt: skip


def _delimited(name: str, text: str, dialect: Dialect, quoting: Any) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=dialect.delimiter, quoting=quoting, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    blank: list[int] = []  # lines since the last example: with one column each is empty, unless the file ends there
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
                    long = "put a field that holds the delimiter into double quotes"
                    raise DataError(
                        f"{name}, line {start} has {len(row)} of the header's {len(rows[0])} fields; "
                        f"{'fill in what is missing' if len(row) < len(rows[0]) else long}"
                    )
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name}, line {start}: {error}; close every double quote, and double those inside a field"
        ) from error
    header = [cell.strip() for cell in rows[0]]
    _refuse_repeated(name, header)
    columns = {column: [row[number] for row in rows[1:]] for number, column in enumerate(header)}
    return Table(name=name, columns=columns, lines=lines[1:], dialect=dialect)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:200]


def _columns(name: str, records: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(column for record in records for column in record)
    if not names:
        raise DataError(f"{name} has objects without any field; expected at least a text")
    return {column: [record.get(column) for record in records] for column in names}


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error).split(";")[0]
        line = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) and error.lineno > 1 else ""
        raise DataError(f'{name}{line} is not JSON: {reason}; expected an object such as {{"text": "…"}}') from error


def _refuse_repeated(name: str, header: Sequence[str]) -> None:
    if repeated := [column for column, count in Counter(header).items() if count > 1]:
        raise DataError(f"{name}: column {repeated[0][:40]!r} occurs twice in the header; give each its own name")


def _decoded(name: str, contents: bytes, encoding: str | None) -> tuple[str, Dialect]:
    """The text of a file, and how it was encoded. Raises DataError that says how to read it instead."""
    for start, kind in BINARY.items():
        if contents.startswith(start):
            raise DataError(f"{name} begins like {kind}, not like text; give the file the suffix of its format")
    mark = next((mark for mark in MARKS if contents.startswith(mark)), b"")
    named = MARKS.get(mark) or encoding or "utf-8"
    body = contents[len(mark) :]
    try:
        text = body.decode(named)
    except LookupError:
        raise DataError(
            f"--encoding {named}: no such text encoding; expected one that Python knows, such as utf-8, cp1252 or latin-1"
        ) from None
    except UnicodeDecodeError as error:
        position = error.start + len(mark)
        line = contents.count(b"\n", 0, position) + 1
        hint = "save it as UTF-8, or name its encoding; Excel on Windows often writes --encoding cp1252"
        raise DataError(
            f"{name} is not {named.upper()}: byte {contents[position]:#04x} at position {position} "
            f"(line {line}); {hint}"
        ) from error
    except UnicodeError as error:
        raise DataError(f"{name} is not {named}: {error}; name its encoding with --encoding") from error
    if "\0" in text:
        raise DataError(f"{name} is a binary file (a zero at character {text.index(chr(0))}), expected text")
    if not text.strip():
        raise DataError(f"{name} is empty; expected a header and examples")
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # long documents; the limit is the process's
    return text, Dialect(suffix="", encoding=named, bom=bool(mark))


def _declared_classes(metadata: Mapping[bytes, bytes], columns: Collection[str]) -> dict[str, tuple[str, ...]]:
    """ClassLabel names, which the hub's Parquet files keep in their schema; metadata of another form is passed over."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    classes: dict[str, tuple[str, ...]] = {}
    for name, feature in features:
        inner = feature.get("feature", feature) if isinstance(feature, dict) else None  # a list of class labels
        names = inner.get("names") if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" else None
        if name in columns and isinstance(names, list) and all(isinstance(item, str) for item in names):
            classes |= {name: tuple(names)} if len(set(names)) == len(names) else {}
    return classes
