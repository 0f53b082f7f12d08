"""What methods cost: ratios of one machine's steps, in the file that the report reads."""

import json
from pathlib import Path

import pytest
import torch
from cli.conftest import SMALL

from unipelt.report.details import read_cost_table
from unipelt.study import efficiency
from unipelt.study.efficiency import measure
from unipelt.study.store import EFFICIENCY, Store


def test_what_is_measured_is_what_the_report_reads(run, tiny_base: str, tmp_path: Path):
    given = [
        "--methods",
        SMALL["lora"],
        "full",
        SMALL["unipelt-apl"],
        "--batch-size",
        2,
        "--max-length",
        8,
        "--rounds",
        2,
    ]
    said = run("study", "efficiency", "--model", tiny_base, *given, "--device", "cpu", "--out", tmp_path / "study")
    assert said.code == 0, said.err
    path = tmp_path / "study" / EFFICIENCY
    found = json.loads(path.read_text())
    assert [row["method"] for row in found] == [row.text for row, *_ in read_cost_table(path).blocks[0].rows]
    assert [row["method"] for row in found] == ["full", SMALL["lora"], SMALL["unipelt-apl"]], "each once"
    for row in found:
        assert row["method"] in said.out and (row["batch"], row["length"], row["rounds"]) == (2, 8, 2)
        assert "train_memory" not in row, "a CPU's is not known"
        for kind in ("train", "inference"):
            low, high = row[f"{kind}_range"]
            assert 0 < low <= row[kind] <= high and row[f"{kind}_seconds"] > 0
    assert found[0]["train"] == found[0]["inference"] == 1.0
    Store.create(tmp_path / "study", {})  # the study may come later


def test_where_nothing_can_be_written_nothing_is_measured(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(efficiency, "measure", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "under"):
        line = run("study", "efficiency", "--out", out).line
        assert f"--out {out}: {tmp_path / 'file'} is a file; expected a folder" in line


def test_a_baseline_is_refused(run, tmp_path: Path):
    said = run("study", "efficiency", "--methods", "lora", "setfit", "--out", tmp_path / "costs")
    assert said.code == 2 and "--methods setfit: has no training step to measure" in said.line


def test_every_base_that_classifies_can_be_measured(base_of):
    for arch in ("roberta", "gpt2", "bart"):
        found = measure(
            base_of(arch), ["head"], batch=2, length=8, rounds=1, device=torch.device("cpu"), log=lambda text: None
        )
        assert all(row["train"] > 0 for row in found)
