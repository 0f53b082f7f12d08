"""GLUE's eight tasks, WNLI left out as the papers do.          Wang et al. 2019, arXiv:1804.07461"""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from unipelt.data.examples import Columns
from unipelt.data.load import Source
from unipelt.data.readers import read_table
from unipelt.data.tables import Table
from unipelt.errors import DataError

HUB = "nyu-mll/glue"


class GlueTask(NamedTuple):
    """One row of the table: the hub's columns and class order, and the paper's metric."""

    columns: list[str]
    labels: tuple[str, ...]
    metric: str
    size: int
    """examples of the published train set; fewer are a subset"""
    test: str
    """split that is used as test set, because the labels of the test set are withheld"""


_TABLE: tuple[tuple[Any, ...], ...] = (
    ("sst2", "sentence", "negative positive", "accuracy", 67349, "validation"),
    ("mrpc", "sentence1 sentence2", "not_equivalent equivalent", "f1", 3668, "validation"),
    ("cola", "sentence", "unacceptable acceptable", "matthews", 8551, "validation"),
    ("rte", "sentence1 sentence2", "entailment not_entailment", "accuracy", 2490, "validation"),
    ("qnli", "question sentence", "entailment not_entailment", "accuracy", 104743, "validation"),
    ("stsb", "sentence1 sentence2", "", "spearman", 5749, "validation"),
    ("mnli", "premise hypothesis", "entailment neutral contradiction", "accuracy", 392702, "validation_matched"),
    ("qqp", "question1 question2", "not_duplicate duplicate", "f1", 363846, "validation"),
)
GLUE = {name: GlueTask(columns.split(), tuple(labels.split()), *more) for name, columns, labels, *more in _TABLE}


def load_glue(name: str, data_dir: str | Path | None = None) -> Source:
    """Train set, and the validation set as test set: `data_dir/<task>/<split>.parquet`, else the hub's."""
    row = GLUE[name]
    splits = "train", row.test
    if data_dir is None:
        from unipelt.data.hub import hub_tables

        advice = "give a folder of its Parquet files with --data-dir, or use the built-in task docstrings"
        tables, source = hub_tables(HUB, name, advice=advice, only=splits), f"{HUB} on the hub"
    else:
        paths = {split: Path(data_dir) / name / f"{split}.parquet" for split in splits}
        for path in paths.values():
            if not path.is_file():
                raise DataError(f"{path} does not exist; --data-dir must hold {name}/{path.name}")
        tables, source = {split: read_table(path) for split, path in paths.items()}, str(Path(data_dir) / name)
    train, test = (_checked(tables[split], row) for split in splits)
    columns = Columns(text=row.columns[0], text_pair=row.columns[1] if len(row.columns) > 1 else None, label="label")
    return Source(
        name=name, tables={"train": train, "test": test}, columns=columns, where=source, labels=row.labels,
        kind="classification" if row.labels else "regression", metric=row.metric, complete=len(train) >= row.size,
    )  # fmt: skip


def _checked(table: Table, row: GlueTask) -> Table:
    """GLUE's integers are indices already, whatever names the file declares. Raises DataError where a column is missing."""
    missing = [column for column in (*row.columns, "label") if column not in table.columns]
    if missing:
        raise DataError(f"{table.name} has no column {missing[0]!r}; found: {', '.join(table.columns)}")
    return replace(table, classes={"label": row.labels} if row.labels else {})
