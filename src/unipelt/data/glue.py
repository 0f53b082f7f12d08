"""GLUE's eight tasks, WNLI left out as the papers do.          Wang et al. 2019, arXiv:1804.07461"""

from dataclasses import dataclass
from pathlib import Path

from unipelt.data.columns import Table, texts
from unipelt.data.files import read_table
from unipelt.data.task import Columns, Dataset, Examples, Kind, Task
from unipelt.errors import DataError, did_you_mean

HUB = "nyu-mll/glue"


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """One row of the table: the hub's columns and encodings, and the paper's metric."""

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metric: str
    rows: int
    """of the published train set; fewer are a subset"""
    test: str = "validation"
    """split that stands for the withheld test set"""

    @property
    def named(self) -> Columns:
        return Columns(text=self.columns[0], pair=self.columns[1] if len(self.columns) == 2 else None, label="label")


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


def load_glue(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Train set, and the validation set as test set: `data_dir/<task>/<split>.parquet`, else the hub's."""
    if name not in GLUE:
        raise DataError(f"{name!r} is no GLUE task; {did_you_mean(name, GLUE)}")
    row = GLUE[name]
    kind: Kind = "classification" if row.labels else "regression"
    pair = len(row.columns) == 2
    task = Task(name=name, kind=kind, labels=row.labels, metric=row.metric, pair=pair, columns=row.named)
    if data_dir is None:
        from unipelt.data.hub import hub_tables

        advice = "give a folder of its Parquet files with --data-dir, or use the built-in task docstrings"
        tables = hub_tables(HUB, name, advice=advice, only=("train", row.test))
        source = f"{HUB} on the hub"
    else:
        tables = {split: _local(Path(data_dir) / name, split) for split in ("train", row.test)}
        source = str(Path(data_dir) / name)
    train, test = (_rows(tables[split], row) for split in ("train", row.test))
    return Dataset(task=task, train=train, test=test, validation=None, complete=len(train) >= row.rows, source=source)


def _local(folder: Path, split: str) -> Table:
    path = folder / f"{split}.parquet"
    if not path.is_file():
        raise DataError(f"{path} does not exist; --data-dir must hold {folder.name}/{split}.parquet")
    return read_table(path)


def _rows(table: Table, row: GlueTask) -> Examples:
    """GLUE's integers are indices already, whatever names the file declares."""
    missing = [column for column in (*row.columns, "label") if column not in table.columns]
    if missing:
        raise DataError(f"{table.place} has no column {missing[0]!r}; found: {', '.join(table.columns)}")
    labels = table.columns["label"]
    for index, label in enumerate(labels):
        lawful = isinstance(label, int) and 0 <= label < len(row.labels) if row.labels else _finite(label)
        if not lawful:
            expected = f"0 to {len(row.labels) - 1}" if row.labels else "a finite number"
            raise DataError(f"{table.row(index)}: label {label!r}, expected {expected}; is this a labelled split?")
    return Examples(
        first=texts(table, row.named.text),
        second=None if row.named.pair is None else texts(table, row.named.pair),
        labels=list(labels),
    )


def _finite(label: object) -> bool:
    return isinstance(label, int | float) and abs(label) < float("inf")
