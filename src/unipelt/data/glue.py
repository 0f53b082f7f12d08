"""GLUE's eight tasks, WNLI left out as the papers do.          Wang et al. 2019, arXiv:1804.07461"""

from dataclasses import dataclass, replace
from pathlib import Path

from unipelt.data.examples import Columns
from unipelt.data.load import Source
from unipelt.data.readers import read_table
from unipelt.data.tables import Table
from unipelt.errors import DataError, did_you_mean

HUB = "nyu-mll/glue"


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """One row of the table: the hub's columns and class order, and the paper's metric."""

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metric: str
    rows: int
    """of the published train set; fewer are a subset"""
    test: str = "validation"
    """split that is used as test set, because the labels of the test set are withheld"""

    @property
    def named(self) -> Columns:
        return Columns(text=self.columns[0], text_pair=(*self.columns, None)[1], label="label")


GLUE: dict[str, GlueTask] = {
    "sst2": GlueTask(columns=("sentence",), labels=("negative", "positive"), metric="accuracy", rows=67349),
    "mrpc": GlueTask(
        columns=("sentence1", "sentence2"), labels=("not_equivalent", "equivalent"), metric="f1", rows=3668
    ),
    "cola": GlueTask(columns=("sentence",), labels=("unacceptable", "acceptable"), metric="matthews", rows=8551),
    "rte": GlueTask(
        columns=("sentence1", "sentence2"), labels=("entailment", "not_entailment"), metric="accuracy", rows=2490
    ),
    "qnli": GlueTask(
        columns=("question", "sentence"), labels=("entailment", "not_entailment"), metric="accuracy", rows=104743
    ),
    "stsb": GlueTask(columns=("sentence1", "sentence2"), labels=(), metric="spearman", rows=5749),
    "mnli": GlueTask(
        columns=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        metric="accuracy",
        rows=392702,
        test="validation_matched",
    ),
    "qqp": GlueTask(
        columns=("question1", "question2"), labels=("not_duplicate", "duplicate"), metric="f1", rows=363846
    ),
}


def load_glue(name: str, data_dir: str | Path | None = None) -> Source:
    """Train set, and the validation set as test set: `data_dir/<task>/<split>.parquet`, else the hub's."""
    if name not in GLUE:
        raise DataError(f"{name!r} is not a GLUE task; {did_you_mean(name, GLUE)}")
    row = GLUE[name]
    if data_dir is None:
        from unipelt.data.hub import hub_tables

        advice = "give a folder of its Parquet files with --data-dir, or use the built-in task docstrings"
        tables = hub_tables(HUB, name, advice=advice, only=("train", row.test))
        where = f"{HUB} on the hub"
    else:
        tables = {split: _local(Path(data_dir) / name, split) for split in ("train", row.test)}
        where = str(Path(data_dir) / name)
    train, test = (_checked(tables[split], row) for split in ("train", row.test))
    return Source(
        name=name, tables={"train": train, "test": test}, columns=row.named, where=where, labels=row.labels,
        kind="classification" if row.labels else "regression", metric=row.metric, complete=len(train) >= row.rows,
    )  # fmt: skip


def _local(folder: Path, split: str) -> Table:
    path = folder / f"{split}.parquet"
    if not path.is_file():
        raise DataError(f"{path} does not exist; --data-dir must hold {folder.name}/{split}.parquet")
    return read_table(path)


def _checked(table: Table, row: GlueTask) -> Table:
    """GLUE's integers are indices already, whatever names the file declares."""
    missing = [column for column in (*row.columns, "label") if column not in table.columns]
    if missing:
        raise DataError(f"{table.name} has no column {missing[0]!r}; found: {', '.join(table.columns)}")
    return replace(table, classes={"label": row.labels} if row.labels else {})
