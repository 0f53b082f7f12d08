"""The runs of a study for other tools: what is in the store is in the file."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from study.test_store import KEYS, RESULT
from unipelt.study import export
from unipelt.study.schema import COLUMNS
from unipelt.study.store import Store
from unipelt.train.records import RunRecord


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Of a classification, a regression, a failure, and what is not done yet."""
    made = Store.create(tmp_path / "study", {})
    made.plan(KEYS)
    made.finish(
        {KEYS[1]: RESULT, KEYS[4]: RunRecord(status="finished", metric="pearson", predictions=[0.5], labels=[])}
    )
    made.finish({KEYS[2]: RunRecord(status='failed: "quoted", and\nbroken', metric="=1+2")})
    return made


def from_csv(path: Path) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(path.read_text(), newline="")))


@pytest.mark.parametrize("several", [[[0, 1], [1, 1]], ["a text", "another"]])
def test_predictions_that_are_no_numbers_are_json_in_parquet(store: Store, several: list, tmp_path: Path):
    store.finish({KEYS[3]: RunRecord(status="finished", metric="micro_f1", predictions=several, targets=several)})
    export.write_runs(store, tmp_path / "a.parquet")
    found = [row["predictions"] for row in parquet.read_table(tmp_path / "a.parquet").to_pylist()]
    assert [None if one is None else json.loads(one) for one in found] == [row["predictions"] for row in store.runs()]


@pytest.mark.parametrize(("name", "read"), [("a.csv", from_csv), ("a.parquet", lambda path: parquet.read_table(path).to_pylist())])  # fmt: skip
def test_what_is_in_the_store_is_in_the_file(store: Store, name: str, read, run, tmp_path: Path):
    words = ("study", "export", tmp_path / "study", "--out", tmp_path / name)
    assert run(*words).out == f"{tmp_path / name}: 6 runs\n"
    found = read(tmp_path / name)
    (tmp_path / name).write_text("mine")
    assert (
        run(*words).line
        == f"unipelt: --out {tmp_path / name}: exists already; expected a new file, or --overwrite to replace it"
    )
    assert (tmp_path / name).read_text() == "mine" and run(*words, "--overwrite").code == 0
    assert read(tmp_path / name) == found
    assert [list(row) for row in found] == [list(COLUMNS)] * 6
    for row, expected in zip(found, store.runs()):
        for column, value in expected.items():
            if value is None or isinstance(value, str):
                assert row[column] in (value, "" if value is None else value)
            elif isinstance(row[column], str) and isinstance(value, dict | list | int | float):
                assert json.loads(row[column]) == value
            else:
                assert row[column] in (value, str(value))


def test_no_torch_is_needed(store: Store, tmp_path: Path):
    words = ["study", "export", str(tmp_path / "study"), "--out", str(tmp_path / "a.parquet")]
    code = f"import sys, unipelt.cli\ntry: unipelt.cli.main({words})\nexcept SystemExit as e: sys.exit(e.code or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
