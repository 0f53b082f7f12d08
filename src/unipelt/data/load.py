"""One name for every kind of data: a GLUE task, a built-in task, a file, or a data set of the Hugging Face hub."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from unipelt.data.columns import choose_columns
from unipelt.data.examples import Columns
from unipelt.data.readers import READERS, read_table
from unipelt.data.tables import Table
from unipelt.errors import DataError, did_you_mean

BUILT_IN, SUMMARIES = "docstrings", "docstring-summaries"


@dataclass(frozen=True, kw_only=True)
class Source:
    """The tables of a data set, and which of their columns are read; a task interprets them."""

    name: str
    tables: dict[str, Table]
    """by set: train, and validation and test where they are given"""
    columns: Columns
    where: str
    """where the tables came from, in words"""
    kind: str | None = None
    """kind of task, where the data set is known"""
    labels: tuple[str, ...] = ()
    """class names in their order, where the data set is known"""
    metric: str | None = None
    """metric that the literature reports for it"""
    complete: bool = True
    """False where train is a subset of the published set"""


def find(
    name_or_path: str | Path, *, data_dir: str | Path | None = None, text_column: str | None = None,
    text_pair_column: str | None = None, label_column: str | None = None, validation: str | Path | None = None,
    test: str | Path | None = None, group_column: str | None = None, encoding: str | None = None,
) -> Source:  # fmt: skip
    """The data set of that name.

    data_dir: folder of GLUE's Parquet files. Columns and encoding: of files, and columns of hub data sets. validation, test:
    files with examples of their own, read with the columns of the training file. Raises DataError.
    """
    name, path = str(name_or_path), Path(name_or_path)
    columns = {"text": text_column, "text_pair": text_pair_column, "label": label_column}
    flags = {
        "--text-column": text_column, "--text-pair-column": text_pair_column, "--label-column": label_column,
        "--validation": validation, "--test": test, "--group-column": group_column, "--encoding": encoding,
        "--data-dir": data_dir,
    }  # fmt: skip

    def refuse_all_but(allowed: Collection[str], because: str) -> None:
        if refused_flags := [flag for flag, value in flags.items() if value is not None and flag not in allowed]:
            raise DataError(f"{name} {because}; leave out {', '.join(refused_flags)}")

    from unipelt.data.glue import GLUE, load_glue

    if name in (BUILT_IN, SUMMARIES):
        refuse_all_but((), "knows its own columns and test set")
        from unipelt.data.builtin import load_docstring_summaries, load_docstrings

        return load_docstrings() if name == BUILT_IN else load_docstring_summaries()
    if name in GLUE:
        refuse_all_but(["--data-dir"], "knows its own columns and test set")
        return load_glue(name, data_dir)
    in_a_folder = path.parent != Path() and path.parent.is_dir()
    if path.exists() or path.suffix.lower() in READERS or in_a_folder or isinstance(name_or_path, Path):
        refuse_all_but(flags.keys() - {"--data-dir"}, "is a file, and --data-dir is where GLUE's files are")
        return _files(path, columns, {"validation": validation, "test": test}, group_column, encoding)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(/[\w.-]+)?", name):
        refuse_all_but([*flags][:3], "is a data set of the hub and brings its own test set")  # but columns
        from unipelt.data.hub import load_hub

        return load_hub(name, columns)
    near = did_you_mean(name, [*GLUE, BUILT_IN, SUMMARIES])
    raise DataError(f"{name!r} is not a task, a file or a data set on the Hub (owner/name); {near}")


def _files(
    path: Path,
    columns: dict[str, str | None],
    others: dict[str, str | Path | None],
    group: str | None,
    encoding: str | None,
) -> Source:
    """The data set of one file, and of the others where they are given. Raises DataError."""
    tables, source = {"train": read_table(path, encoding)}, str(path)
    chosen = choose_columns(tables["train"], **columns)  # type: ignore[arg-type]
    for part, file in others.items():
        if file is not None:
            tables[part] = read_table(file, encoding)
            choose_columns(tables[part], text=chosen.text, text_pair=chosen.text_pair, label=chosen.label)
            source += f", {part} {file}"
    if group is not None and group not in tables["train"].columns:
        raise DataError(
            f"{path} has no column {group!r} (--group-column); {did_you_mean(group, tables['train'].columns)}"
        )
    return Source(name=path.stem, tables=tables, columns=chosen, where=source)
