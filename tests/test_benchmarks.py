"""benchmarks/peers.py: one table in which nothing is passed over in silence. benchmarks/operations.py: what a layer launches.
benchmarks/recipes.py: a design that tells factors apart."""

import ast
import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from unipelt import PRESETS

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import files_crossed
import operations
import peers
import recipes
from train.fleets import fleet as tiny_fleet
from train.fleets import plan

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_what_a_script_imports_of_this_package_exists(path: Path):
    """A script imports where it is used, so that its help is fast; a renamed function would be found in the middle of a run."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "unipelt":
            module = importlib.import_module(node.module or "")
            missing = [one.name for one in node.names if not hasattr(module, one.name)]
            assert all(importlib.util.find_spec(f"{node.module}.{name}") for name in missing), missing


def compare(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), "--shapes", "tiny-bert", "--modes", "eager", "--device", "cpu"]  # fmt: skip
    where = ["--offline", "--work", str(folder), "--out", str(folder)]
    return subprocess.run([*command, *where, *arguments], capture_output=True, text=True)


def test_libraries_stand_in_one_table_and_a_missing_one_is_named(tmp_path: Path):
    given = ["--methods", "lora", "--rounds", "2", "--jobs", "2", "--fleet", "3", "--python", "adapters=/nowhere/python"]  # fmt: skip
    said = compare(tmp_path, *given)
    assert said.returncode == 0, said.stderr
    found = json.loads((tmp_path / "peers.json").read_text())
    rows = {(row["library"], row["method"], row["runs"]): row for row in found["rows"]}
    ours = [("unipelt", "lora", 1), ("unipelt", "lora", 3)]
    assert list(rows) == [("transformers", "full", 1), ("peft", "lora", 1), *ours]
    for row in rows.values():
        assert row["failed"] == {} and row["memory"] > 0
        for kind in ("train", "infer"):
            low, high = row[f"{kind}_range"]
            assert 0 < low <= row[f"{kind}_ratio"] <= high and row[f"{kind}_seconds"] > 0
    full = rows["transformers", "full", 1]
    assert full["train_range"] == full["infer_range"] == [1, 1] and full["memory_ratio"] == 1
    assert rows["peft", "lora", 1]["parameters"] == rows["unipelt", "lora", 1]["parameters"], "the same method"

    page = (tmp_path / "peers.md").read_text()
    assert page.strip() == said.stdout.strip()
    assert "Missing: `adapters`: /nowhere/python does not have it" in page and "adapters is missing" in said.stderr
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows) and {line.count("|") for line in lines} == {lines[0].count("|")}


def test_a_row_that_fails_says_what_failed(tmp_path: Path):
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "__init__.py").write_text("raise ImportError('not with | this torch')")
    said = compare(tmp_path, "--methods", "lora", "--libraries", "peft", "--path", f"peft={tmp_path}", "--rounds", "1")
    assert said.returncode == 0, said.stderr
    (row,) = [line for line in said.stdout.splitlines() if line.startswith("| peft lora")]
    assert "train and infer failed: ImportError: not with / this torch" in row


def test_a_process_that_ends_or_says_nothing_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given = {"library": "peft", "method": "lora", "runs": 1}
    for code, patience, why in (("raise SystemExit('out of memory')", 60, "ended with 1: out of memory"), ("import time; time.sleep(60)", 0.5, "no answer in 0.5 s")):  # fmt: skip
        (tmp_path / "steps.py").write_text(code)
        monkeypatch.setattr(peers, "__file__", str(tmp_path / "peers.py"))
        model = peers.Model(given, sys.executable, {}, tmp_path / "log", patience).ready()
        model.turn("train")
        assert peers.said_of(model.row(None)["failed"]) == f"train and infer failed: {why}"
        model.end()


@pytest.mark.parametrize(
    "given, expected",
    [
        (["--libraries", "adapters", "--python", "adapters=/nowhere"], "nothing to measure: none of adapters is here"),
        (["--methods", "lroa"], "--methods lroa: expected one of "),
        (["--path", "peft"], "--path peft: expected LIBRARY="),
        (["--modes", "compiled", "--fleet", "4", "--libraries", "unipelt"], "--fleet 4: is measured in mode eager alone"),
        (["--modes", "graph", "--libraries", "unipelt"], "--modes graph: a CUDA graph needs a GPU; expected eager or compiled"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(given: list[str], expected: str, tmp_path: Path):
    said = compare(tmp_path, *given)
    assert said.returncode != 0 and expected in said.stderr.splitlines()[-1]


def test_every_preset_has_a_row():
    assert {*PRESETS} <= {*peers.METHODS["unipelt"]}
    assert {*peers.MAIN} <= {*peers.METHODS["unipelt"]} | {"full"}


@pytest.mark.parametrize("method, most", [("lora", (20, 8)), ("prefix", (23, 8)), ("unipelt-apl", (109, 35))])
def test_a_layer_launches_few_operations_beyond_the_frozen_base_s(method: str, most: tuple[int, int]):
    """In training and inference. What a whole forward needs once, such as a mask with a prefix's columns, no layer does again."""

    def a_layer(library: str, name: str) -> list[int]:
        two, three = (operations.counted(library, name, autocast=False, layers=layers) for layers in (2, 3))
        return [more - less for less, more in zip(two, three)]

    beyond = [ours - its for ours, its in zip(a_layer("unipelt", method), a_layer("transformers", "frozen"))]
    assert beyond[0] <= most[0] and beyond[1] <= most[1], beyond


def test_a_block_of_recipes_has_each_factor_and_each_pair_of_factors_in_balance():
    """And the reversed block has the opposite of each recipe, so that no effect of a factor is that of a pair."""
    levels = []
    for reversed_ in (False, True):
        named = [recipe.split(" + ") for recipe in recipes.design(reversed_)]
        levels.append([[1 if factor in recipe else -1 for factor in recipes.FACTORS] for recipe in named])
    for block in levels:
        for one in range(len(recipes.FACTORS)):
            for other in range(one + 1):
                assert sum(row[one] * row[other] for row in block) == (8 if one == other else 0)
    assert levels[1] == [[-level for level in row] for row in levels[0]]


def test_the_effect_of_a_factor_is_found_beside_those_of_blocks():
    said = []
    for number, block in enumerate((("stsb", "0"), ("sst2", "1"))):
        for recipe in recipes.design(number == 1):
            score = 0.5 + 0.1 * number + (0.03 if "head x10" in recipe else 0)
            said.append(
                {"task": block[0], "seed": block[1], "variant": recipe, **dict.fromkeys(recipes.KINDS, f"{score}")}
            )
    (line,) = [line for line in recipes.summary(said) if line.startswith("  best")]
    effects = [part.rpartition(" ±")[0].rpartition(" ") for part in line.removeprefix("  best: ").split(" · ")]
    assert {name: round(float(value), 4) for name, _, value in effects} == {
        name: 3.0 if name == "head x10" else 0.0 for name in recipes.FACTORS
    }


def test_a_training_step_crosses_no_more_files_than_it_did():
    """Whoever adds a file to the way of a step moves one idea or merges two."""
    fleet = tiny_fleet([plan(seed=0), plan(seed=1)])
    fleet.step()  # what is computed once
    files = files_crossed.crossed(fleet.step)
    assert "train/fleet.py" in files and len(files) <= 18, files
