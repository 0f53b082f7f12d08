"""SetFit on a tiny base: it draws classes apart, comes back from its folder, and is left out with one line where it cannot run."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli.conftest import base_of, run, tiny_base, write_reviews  # noqa: F401
from tasks.kinds import KINDS

from unipelt.train import contrastive
from unipelt.train.baselines import fit_baseline, frozen_base, load_predictor, offered, refusal
from unipelt.train.records import BASELINES, SETFIT, RunConfig
from unipelt.train.run_folder import read_record
from unipelt.train.setup import DatasetCache

needs_setfit = pytest.mark.skipif(find_spec("setfit") is None, reason="the extra setfit is not installed")


def nearness(states: list[Any], labels: list[Any]) -> float:
    """Mean cosine of pairs that share a label, less that of the other pairs."""
    x = torch.nn.functional.normalize(torch.tensor(np.stack(states)), dim=1)
    sets = [{k for k, has in enumerate(one) if has} if isinstance(one, list) else {one} for one in labels]
    same = torch.tensor([[bool(one & other) for other in sets] for one in sets])
    return float((x @ x.T)[same].mean() - (x @ x.T)[~same].mean())


@needs_setfit
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
@pytest.mark.parametrize("kind", ["classification", "multi-label"])
def test_setfit_draws_classes_apart(kind: str, tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    monkeypatch.setattr(contrastive, "MOST_STEPS", 20)
    monkeypatch.setattr(contrastive, "RATE", 1e-3)  # a tiny random base needs more than a pretrained one
    path, cache = KINDS[kind].write(tmp_path / "data.jsonl"), DatasetCache()
    config = RunConfig(model=tiny_base, task=str(path), method=SETFIT, pooling="mean", **KINDS[kind].options)
    task, train = cache.task(config), cache.splits(config).train
    frozen = frozen_base(config, task, torch.device("cpu"), 32)
    before = nearness(frozen(train.inputs), train.targets or [])
    tuned = fit_baseline(SETFIT, task, train, frozen)
    assert nearness(tuned.features.frozen(train.inputs), train.targets or []) > before + 0.02  # type: ignore[attr-defined]
    assert tuned.task.temperature == 1, "examples that it trained on say nothing of how sure it is"  # type: ignore[attr-defined]


@needs_setfit
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_setfit_is_a_row_of_a_comparison_and_its_folder_predicts(
    tiny_base: str, tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch  # noqa: F811
):  # fmt: skip
    """Beside the usual baselines; its folder holds JSON and safetensors alone, and predicts as it was measured."""
    monkeypatch.setattr(contrastive, "MOST_STEPS", 3)
    path, out = write_reviews(tmp_path / "reviews.csv"), tmp_path / "out"
    more = ["--methods", SETFIT, "--seeds", 1, "--folds", 0, "--no-learning-curve"]
    said = run("compare", "--model", tiny_base, "--data", path, "--out", out, *more)
    assert said.code == 0, said.err
    assert "\nsetfit: validation accuracy" in said.err and "\nsetfit " in said.out
    folder = out / "runs" / SETFIT
    assert sorted(one.name for one in folder.iterdir()) == ["baseline.json", "baseline.safetensors", "run.json"]
    one, config = load_predictor(str(folder)), RunConfig(model=tiny_base, task=str(path))
    test = DatasetCache().splits(config).test
    assert test is not None
    logits, encoded = one.outputs(test)
    measured = read_record(folder)
    assert measured is not None and measured.temperature == one.task.describe()["temperature"] != 1
    assert one.task.score(one.task.decide(logits, encoded), test.targets or [])["accuracy"] == measured.test


def test_setfit_is_left_out_with_one_line_where_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(contrastive, "find_spec", lambda name: None)
    task = DatasetCache().task(RunConfig(task="docstrings"))
    names, (line,) = offered(BASELINES[:4], task)
    assert names == ["constant", "tfidf", "probe"]
    assert line == "setfit: left out, as it needs another package: pip install 'unipelt[setfit]'"
    monkeypatch.setattr(contrastive, "find_spec", lambda name: "installed")
    numbers = DatasetCache().task(RunConfig(task=str(KINDS["regression"].write(tmp_path / "numbers.jsonl"))))
    assert refusal(SETFIT, numbers) == "regression has no classes to tell apart"
    pairs = DatasetCache().task(
        RunConfig(
            task=str(write_reviews(tmp_path / "pairs.csv", pairs=True)), text_column="review", text_pair_column="other"
        )
    )
    assert refusal(SETFIT, pairs) == "it reads single texts, no pairs"
