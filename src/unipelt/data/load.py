"""One name for every kind of data: a GLUE task, the built-in task, a file, or a data set of the hub."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from unipelt.data.builtin import TASK, load_docstrings
from unipelt.data.columns import Table, choose_columns, label_name, missing, task_and_rows
from unipelt.data.files import READERS, read_table
from unipelt.data.glue import GLUE, load_glue
from unipelt.data.hub import load_hub
from unipelt.data.task import Dataset, Examples, Kind
from unipelt.errors import DataError, did_you_mean


def load(
    name_or_path: str | Path,
    *,
    data_dir: str | Path | None = None,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    kind: Kind | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    group: str | None = None,
) -> Dataset:
    """The data set of that name. data_dir: GLUE's Parquet files; text … group: only for files; validation, test and group not for the hub.

    group: column of what no split may part: rows of one author, say, are all in train, all in validation or all in test;
    where it is empty a row is alone with those of its text.
    """
    name = str(name_or_path)
    columns = {"--text": text, "--pair": pair, "--label": label, "--kind": kind}
    parts = {"--validation": validation, "--test": test, "--group": group}

    def leave_out(given: dict[str, Any], because: str) -> None:
        flags = [flag for flag, value in given.items() if value is not None]
        if flags:
            raise DataError(f"{name} {because}; leave out {', '.join(flags)}")

    if name in GLUE or name == TASK.name:
        own = {} if name in GLUE else {"--data-dir": data_dir}
        leave_out(columns | parts | own, "knows its own columns and test set")
        return load_docstrings() if name == TASK.name else load_glue(name, data_dir)
    path = Path(name_or_path)
    in_a_folder = path.parent != Path() and path.parent.is_dir()
    if path.exists() or path.suffix.lower() in READERS or in_a_folder or isinstance(name_or_path, Path):
        leave_out({"--data-dir": data_dir}, "is a file, and --data-dir is where GLUE's files are")
        return _load_files(
            path, text=text, pair=pair, label=label, kind=kind, validation=validation, test=test, group=group
        )
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        leave_out(parts | {"--data-dir": data_dir}, "is a data set of the hub and brings its own test set")
        return load_hub(name, text=text, pair=pair, label=label, kind=kind)
    raise DataError(f"{name!r} is no task, file or hub data set (owner/name); {did_you_mean(name, [*GLUE, TASK.name])}")


def _load_files(
    path: Path,
    *,
    text: str | None,
    pair: str | None,
    label: str | None,
    kind: Kind | None,
    validation: str | Path | None,
    test: str | Path | None,
    group: str | None,
) -> Dataset:
    """The columns found in the training file are those of the other files."""
    table = read_table(path)
    columns = choose_columns(table, text=text, pair=pair, label=label, for_prediction=False)
    task, train = task_and_rows(table, columns, name=path.stem, kind=kind)
    if group is not None and group not in table.columns:
        raise DataError(f"{path} has no column {group!r} (--group); {did_you_mean(group, table.columns)}")
    train = _grouped(train, table, group)
    seen, parts, source = {train.fingerprint(): f"{path} trains on"}, {}, str(path)
    for name, given in {"validation": validation, "test": test}.items():
        if given is None:
            continue
        other = read_table(given)
        own = choose_columns(other, text=columns.text, pair=columns.pair, label=columns.label, for_prediction=False)
        rows = task_and_rows(other, own, name=task.name, labels=task.labels, kind=task.kind)[1]
        parts[name] = _grouped(rows, other, group)
        if (before := seen.setdefault(rows.fingerprint(), f"--{name} {given} has")) != f"--{name} {given} has":
            raise DataError(f"--{name} {given}: has the very rows that {before}; leave it out, and rows are held out")
        source += f", {name} {given}"
    return Dataset(
        task=task, train=train, test=parts.get("test"), validation=parts.get("validation"), complete=True, source=source
    )


def _grouped(rows: Examples, table: Table, group: str | None) -> Examples:
    """The rows with what they have in common, where the table says it; one that it leaves empty with rows of its text alone."""
    if group is None or group not in table.columns:
        return rows
    named = zip(rows.first, table.columns[group])
    return replace(rows, groups=[text if missing(value) else label_name(value) for text, value in named])
