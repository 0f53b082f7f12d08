"""Baselines of generated text: the base as it is, and the answer of the nearest training example."""

from pathlib import Path

import pytest
from cli.conftest import run  # noqa: F401
from generation.bases import ANSWERS, CHAT_TEMPLATE, save_base, save_chats, save_pairs

from unipelt.data import Examples
from unipelt.errors import DataError, UserError
from unipelt.tasks import registry
from unipelt.train.baselines import Nearest, ZeroShot, frozen_base, load_predictor, usual_baselines
from unipelt.train.records import RunConfig
from unipelt.train.runs import metrics_of

pytest.importorskip("rouge_score")


def test_the_nearest_example_gives_its_answer(tmp_path: Path):
    """Of a question that was trained on, its own; whatever stands around its words."""
    for path in (save_pairs(tmp_path / "pairs.jsonl"), save_chats(tmp_path / "chats.jsonl")):
        task, data = registry.load(path)
        one = Nearest.fit(task, data.train)
        assert one.generate(data.train) == data.train.targets
    other = Examples(inputs={"source": ["tell me: what does function 7 return?", "FUNCTION 3!"]}, targets=None)
    task, data = registry.load(tmp_path / "pairs.jsonl")
    assert Nearest.fit(task, data.train).generate(other) == [ANSWERS[2], ANSWERS[3]]


def test_the_base_as_it_is_has_the_loss_of_a_run_that_changes_nothing(tmp_path: Path):
    from generation.test_generation import CPU, config

    from unipelt.train.setup import build_fleet

    save_base(tmp_path / "base", template=CHAT_TEMPLATE)
    asked = config(tmp_path, task=save_chats(tmp_path / "chats.jsonl"), method="lora(r=2)")
    fleet = build_fleet([asked], runs_at_once=1, device=CPU)  # LoRA begins with nothing
    plan = fleet.plans[0]
    task, data = registry.load(tmp_path / "chats.jsonl", generation={"max_new_tokens": 6})
    base = frozen_base(RunConfig(model=str(tmp_path / "base"), task=task.name), task, CPU, 64)
    zero_shot = ZeroShot(base, "fp32")
    logits, asked, texts = zero_shot.answers(data.train, True)
    metrics = metrics_of(zero_shot.task, logits, asked, texts)
    encoded = plan.task.encode(fleet.tokenizer, data.train, 64)
    expected = plan.task.score(plan.task.decide(fleet.predict([encoded])[0], encoded), data.train.targets)
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5) and len(logits) == len(texts) == 60
    assert texts == plan.task.generate(fleet.model, fleet.tokenizer, [encoded])[0]
    alone = zero_shot.answers(data.train, False)
    assert metrics_of(zero_shot.task, *alone) == {name: metrics[name] for name in ("loss", "perplexity")}


def test_a_task_has_the_baselines_of_its_kind(tmp_path: Path):
    assert usual_baselines(registry.load(save_pairs(tmp_path / "pairs.jsonl"))[0]) == ["zero-shot", "nearest"]
    assert usual_baselines(registry.load("docstrings")[0]) == ["constant", "tfidf", "probe"]
    with pytest.raises((UserError, DataError)):
        Nearest.fit(registry.load("docstrings")[0], Examples(inputs={"text": ["a"]}, targets=[None]))


@pytest.mark.parametrize("metric", ["loss", "rougeL"])
def test_a_comparison_shows_them_and_predicts_with_them(run, metric: str, tmp_path: Path):  # noqa: F811
    base, data, out = save_base(tmp_path / "base"), save_pairs(tmp_path / "pairs.jsonl", 60), tmp_path / "out"
    said = run(
        "compare", "--model", base, "--data", data, "--methods", "lora(r=2)", "--seeds", 1, "--epochs", 1, "--num-rates", 1,
        "--folds", 0, "--metric", metric, "--max-new-tokens", 3, "--max-length", 64, "--out", out,
    )  # fmt: skip
    assert said.code == 0, said.err
    assert (
        f"zero-shot: validation {metric}" in said.out + said.err and "nearest: validation rougeL" in said.out + said.err
    )
    for name in ("zero-shot", "nearest"):
        (folder,) = (out / "runs").glob(f"{name}*")
        columns, _ = load_predictor(str(folder)).columns(str(data), text=None, pair=None)
        assert len(columns["prediction"]) == 60
    if metric == "rougeL":  # a random base says nothing; the nearest question has one of five answers
        assert "Take nearest" in said.out and (out / "winner" / "baseline.json").exists()
