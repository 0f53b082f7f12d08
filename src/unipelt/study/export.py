"""The runs of a study as one file for other tools: every column, in the formats of `unipelt predict`. Imports no torch."""

import json
from pathlib import Path

from unipelt.checkpoint.disk import write_whole
from unipelt.data.tables import Dialect
from unipelt.data.writers import TEXT, table_bytes
from unipelt.errors import UserError
from unipelt.study.schema import COLUMNS
from unipelt.study.store import Store

SUFFIXES = (".parquet", *TEXT)


def write_runs(store: Store, path: Path) -> int:
    """Write every run to a file, whole or not at all; returns their number. Raises UserError for another suffix."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--out {path}: ends in {path.suffix or 'no suffix'!r}; expected {', '.join(SUFFIXES)}")
    rows = store.runs()
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    if path.suffix == ".parquet":
        columns = {
            name: [json.dumps(value) if _is_nested(value) else value for value in values]
            for name, values in columns.items()
        }
    write_whole(path.parent, {path.name: table_bytes(columns, path.suffix, Dialect(suffix=path.suffix))})
    return len(rows)


def _is_nested(value: object) -> bool:
    """Whether a value is no number, text or list of these; Parquet has it as JSON text."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict | list) for item in value))
