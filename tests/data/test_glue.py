"""GLUE from a folder: made-up rows for the laws, the real files where they are at hand."""

import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from unipelt.data import GLUE, load_glue, read_table, split
from unipelt.errors import DataError
from unipelt.tasks.registry import TASKS, load

FOLDER = Path(os.environ.get("GLUE_DIR", Path(__file__).parents[2].parent / "shared" / "glue"))
ALL = pytest.mark.parametrize("name", GLUE)
REAL = pytest.mark.skipif(not FOLDER.is_dir(), reason="no GLUE folder; set GLUE_DIR to one")


def write(folder, name, **changed):
    """Thirty rows of that task under both splits, in the hub's columns."""
    row = GLUE[name]
    columns = {column: [f"{column} number {index}" for index in range(30)] for column in row.columns}
    columns["label"] = [index % len(row.labels) if row.labels else index / 8 for index in range(30)]
    columns["idx"] = list(range(30))
    (folder / name).mkdir()
    for part in ("train", row.test):
        pyarrow.parquet.write_table(pyarrow.table({**columns, **changed}), folder / name / f"{part}.parquet")
    return columns


@ALL
def test_columns_and_labels_are_those_of_the_hub(tmp_path, name):
    columns = write(tmp_path, name)
    row = GLUE[name]
    table = pyarrow.table({**columns, row.columns[0]: [f"other {index}" for index in range(30)]})
    pyarrow.parquet.write_table(table, tmp_path / name / f"{row.test}.parquet")
    task, dataset = load(name, data_dir=tmp_path)
    assert list(dataset.train.inputs.values()) == [columns[column] for column in row.columns]
    assert dataset.train.targets == dataset.test.targets == columns["label"]
    assert task.labels == row.labels and task.metric == row.metric in TASKS[task.kind].metrics(task.labels)
    assert not dataset.complete  # thirty examples are a subset of every task


def test_metrics_are_those_of_the_paper():
    """Mao et al. 2022, §4.1."""
    special = {"cola": "matthews", "mrpc": "f1", "qqp": "f1", "stsb": "spearman"}
    assert {name: row.metric for name, row in GLUE.items()} == {name: special.get(name, "accuracy") for name in GLUE}


def test_classes_and_test_sets_are_those_of_the_paper():
    """Of MRPC and QQP, F1 is that of the pairs that say the same; of MNLI the matched set is tested."""
    assert [GLUE[name].labels[1] for name in ("mrpc", "qqp", "cola")] == ["equivalent", "duplicate", "acceptable"]
    assert {GLUE[name].labels for name in ("rte", "qnli")} == {("entailment", "not_entailment")}
    assert GLUE["mnli"].labels == ("entailment", "neutral", "contradiction")
    assert {name: row.test for name, row in GLUE.items() if row.test != "validation"} == {"mnli": "validation_matched"}


def test_a_train_set_of_the_published_size_is_complete(tmp_path, monkeypatch):
    write(tmp_path, "rte")
    for size in (30, 31):
        monkeypatch.setitem(GLUE, "rte", GLUE["rte"]._replace(size=size))
        assert load_glue("rte", tmp_path).complete == (size == 30)


def test_mistakes_in_a_folder(tmp_path):
    with pytest.raises(DataError, match=r"train.parquet does not exist; --data-dir must hold rte/train.parquet"):
        load_glue("rte", tmp_path)
    write(tmp_path, "sst2", label=[-1] * 30)
    with pytest.raises(DataError, match="example 1: no value in column 'label'"):
        load("sst2", data_dir=tmp_path)
    write(tmp_path, "stsb", label=[0.5] * 29 + [None])
    with pytest.raises(DataError, match="example 30: no value in column 'label'"):
        load("stsb", data_dir=tmp_path)
    (tmp_path / "qnli").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"question": ["a b"]}), tmp_path / "qnli" / "train.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"question": ["a b"]}), tmp_path / "qnli" / "validation.parquet")
    with pytest.raises(DataError, match="no column 'sentence'; found: question"):
        load_glue("qnli", tmp_path)


@REAL
@ALL
def test_real_files(name):
    if not (FOLDER / name).is_dir():
        pytest.skip(f"no folder {name} in GLUE_DIR")
    task, dataset = load(name, data_dir=FOLDER)
    assert dataset.complete == (len(dataset.train) >= GLUE[name].size)
    assert not task.labels or {*dataset.test.targets} == {*range(len(task.labels))}
    declared = read_table(FOLDER / name / f"{GLUE[name].test}.parquet").classes.get("label", ())
    assert task.labels == declared, "an index has the name that the files declare for it"
    parts = split(dataset, 100, seed=0)
    assert (len(parts.train), len(parts.validation)) == (100, 1000)
    assert all("repeat" in note for note in parts.notes), "GLUE has some texts twice, and all else of the protocol"
    assert parts.test == dataset.test
    everything = split(dataset, "all", seed=0)
    assert len(everything.train) + len(everything.validation) == len(dataset.train)
    assert dataset.complete == (not any("subset" in note for note in everything.notes))
