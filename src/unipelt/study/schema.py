"""The tables of a study's store: their columns, what a column holds in Python, and whether a file is a store."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from unipelt.checkpoint.json_types import check_fields, without_none
from unipelt.errors import StoreError
from unipelt.train.records import RunKey, RunRecord

FORMAT = 4
KEYS = tuple(f.name for f in fields(RunKey))
NOT_STORED = ("config", "description", "losses", "format")  # fields that other columns and the study's options hold
VALUES = tuple(f.name for f in fields(RunRecord) if f.name not in NOT_STORED)
COLUMNS = (*KEYS, *VALUES, "fleet")
SQL: dict[Any, str] = {int: "INTEGER", bool: "INTEGER", float: "REAL", str: "TEXT"}
KINDS = {name: without_none(kind) for name, kind in (get_type_hints(RunRecord) | get_type_hints(RunKey)).items()}
JSON = {name for name in VALUES if KINDS[name] not in SQL}
TABLES = f"""
CREATE TABLE study (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE runs (id TEXT PRIMARY KEY, position INTEGER NOT NULL,
 {", ".join(f"{name} {SQL.get(KINDS.get(name), 'TEXT')}" for name in COLUMNS)}) STRICT;
"""


def to_key(values: dict[str, Any]) -> RunKey:
    """The key that the columns KEYS name. Raises ValueError for a value of another type."""
    return RunKey(**{**values, "k": to_python("k", values["k"])})


def to_values(record: RunRecord) -> list[Any]:
    """The values of the columns VALUES that hold a result."""
    values = {name: getattr(record, name) for name in VALUES}
    return [json.dumps(value) if name in JSON and value is not None else value for name, value in values.items()]


def to_python(name: str, value: Any) -> Any:
    """The Python value of a column. Raises ValueError for another type."""
    if value is None or name not in KINDS:
        return value
    if name == "k":
        value = int(value) if value.isdecimal() else value
    elif KINDS[name] is bool:
        value = bool(value)
    elif name in JSON:
        value = json.loads(value)
    check_fields({name: value}, KINDS)
    return value


def check_file(path: Path, begun: bool = False) -> None:
    """Raise StoreError if the file is not a store of this version. begun: accept a file without tables, which another process
    may be creating."""
    if not path.is_file():
        raise StoreError(f"{path}: no such study; expected the folder that `unipelt study … --out` wrote")
    with sqlite_errors(path):
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=60.0)
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if begun and not tables:
                return
            if not {"study", "runs"} <= tables:
                raise StoreError(f"{path}: a database, but not of a study; it is left untouched")
            format_row = connection.execute("SELECT value FROM study WHERE name = 'format'").fetchone()
        finally:
            connection.close()
    if format_row is None or format_row[0] != str(FORMAT):
        raise StoreError(
            f"{path}: of format {format_row[0] if format_row else 'unknown'}, this version reads format {FORMAT}; it is left untouched, take another folder"
        )


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Context manager: turn errors of SQLite into StoreError."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StoreError(f"{path}: {error}; stored runs are kept; run the same command again to continue") from None
    except (sqlite3.DatabaseError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise StoreError(f"{path}: not a study, or a damaged one ({error}); it is left untouched") from None
