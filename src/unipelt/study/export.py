"""The runs of a study as one file for other tools: every column, CSV or Parquet. Imports no torch."""

import csv
import io
import json
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

from unipelt.checkpoint.disk import write_whole
from unipelt.errors import UserError
from unipelt.study.schema import COLUMNS, TYPES
from unipelt.study.store import Store

LISTS = {"labels": "string", "predictions": "float64", "targets": "float64"}
"""columns that are lists in Parquet if they hold only names or only numbers; other JSON columns are text"""
Pieces = Callable[[], Iterator[list[dict[str, Any]]]]
PIECE = 100  # runs in memory at once: each may hold the predictions of 40,000 examples


def write_runs(store: Store, path: Path) -> int:
    """Write every run to a file, whole or not at all; returns their number."""
    writers = {".csv": as_csv, ".parquet": as_parquet}
    if path.suffix not in writers:
        raise UserError(f"--out {path}: ends in {path.suffix or 'no suffix'!r}; expected {' or '.join(writers)}")
    write_whole(path.parent, {path.name: writers[path.suffix](lambda: _pieces(store))})
    return len(store.statuses())


def as_csv(pieces: Pieces) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for rows in pieces():
        writer.writerows([_text(row[name]) for name in COLUMNS] for row in rows)
    return file.getvalue().encode()


def as_parquet(pieces: Pieces) -> bytes:
    import pyarrow
    from pyarrow import parquet

    scalars = {"TEXT": pyarrow.string(), "INTEGER": pyarrow.int64(), "REAL": pyarrow.float64()}
    types = {name: scalars[TYPES.get(name, "TEXT")] for name in COLUMNS}
    nested = {name for rows in pieces() for row in rows for name in LISTS if _is_nested(name, row[name])}
    lists = {name: kind for name, kind in LISTS.items() if name not in nested}
    types |= {name: pyarrow.list_(pyarrow.type_for_alias(kind)) for name, kind in lists.items()}
    types["complete"] = pyarrow.bool_()
    file = io.BytesIO()
    with parquet.ParquetWriter(file, pyarrow.schema(types)) as writer:
        for rows in pieces():
            columns = {name: [_fit(name, row[name], lists) for row in rows] for name in COLUMNS}
            writer.write_table(pyarrow.table(columns, pyarrow.schema(types)))
    return file.getvalue()


def _pieces(store: Store) -> Iterator[list[dict[str, Any]]]:
    ids = [row["id"] for row in store.runs(["id"])]
    for start in range(0, len(ids), PIECE):
        yield store.runs(ids=ids[start : start + PIECE])


def _text(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value


def _is_nested(name: str, values: list[Any] | None) -> bool:
    """Whether a column of numbers holds tags, texts or several labels per example."""
    return LISTS[name] == "float64" and any(isinstance(value, list | str) for value in values or ())


def _fit(name: str, value: Any, lists: Container[str]) -> Any:
    """A value as its column in Parquet has it: k is a number or `all`, so text."""
    if name in lists:
        return value
    return str(value) if name == "k" else _text(value)
