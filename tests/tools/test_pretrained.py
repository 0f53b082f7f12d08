"""save_pretrained, Trainer and push_to_hub of an attached model write a folder that says what it is, and only that is read."""

import copy
import os
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from huggingface_hub.errors import EntryNotFoundError
from toy import arguments, classifier, rows
from transformers import PreTrainedModel, Trainer
from values import assert_plain, logits, randomise, state_of

import unipelt
from unipelt.checkpoint.disk import CARD, TENSORS
from unipelt.checkpoint.pretrained import INDEX
from unipelt.errors import CheckpointError

AUTO = transformers.AutoModelForSequenceClassification


def attached(name: str, mixture: str = "unipelt-apl(prefix=3, bottleneck=4, mlp=6, r=2)") -> PreTrainedModel:
    return randomise(unipelt.attach(tiny.build(name), mixture))


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_the_folder_is_read_by_load_and_refused_as_a_whole_model(name: str, tmp_path: Path):
    model = attached(name)
    model.save_pretrained(tmp_path)
    assert {CARD, TENSORS, INDEX, "config.json"} <= {path.name for path in tmp_path.iterdir()}
    assert "unipelt.load" in (tmp_path / CARD).read_text()
    assert torch.equal(logits(unipelt.load(tiny.build(name), tmp_path), name), logits(model, name))
    for loader in (AUTO, type(model)):
        for more in (
            {},
            {"ignore_mismatched_sizes": True},
            {"config": transformers.AutoConfig.from_pretrained(tmp_path)},
        ):
            with pytest.raises(ValueError, match=r"load the base model, then call unipelt\.load"):
                loader.from_pretrained(tmp_path, **more)
        for more in ({}, {"ignore_mismatched_sizes": True}, {"use_safetensors": True}):
            with pytest.raises(KeyError):  # with a config that someone brings from elsewhere
                loader.from_pretrained(tmp_path, config=tiny.build(name).config, **more)


def test_a_trainers_checkpoint_is_read_by_load(tmp_path: Path):
    model = classifier()
    Trainer(
        model=model, args=arguments(tmp_path, max_steps=1, save_strategy="steps", save_steps=1), train_dataset=rows(8)
    ).train()
    loaded = unipelt.load(tiny.build("bert", num_labels=2), tmp_path / "checkpoint-1")
    assert torch.equal(logits(loaded, "bert"), logits(model.eval(), "bert"))
    with pytest.raises(ValueError, match=r"unipelt\.load"):
        AUTO.from_pretrained(tmp_path / "checkpoint-1")


def test_what_is_pushed_to_the_hub_is_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pushed: dict[str, set[str]] = {}

    class Hub:
        def create_repo(self, name: str, **_):
            return type("Repository", (), {"repo_id": name})

    def upload(self, folder, repo_id: str, *_, **__):
        pushed[repo_id] = set(os.listdir(folder))

    def no_card(*_, **__):
        raise EntryNotFoundError("the repository is new")

    monkeypatch.setattr("transformers.utils.hub.hf_api", Hub)
    monkeypatch.setattr("transformers.utils.hub.ModelCard.load", no_card)
    monkeypatch.setattr(PreTrainedModel, "_upload_modified_files", upload)
    model = attached("bert", "lora")
    model.push_to_hub("somebody/run")
    model.save_pretrained(tmp_path / "other", push_to_hub=True)
    assert {CARD, TENSORS, "config.json"} <= pushed["somebody/run"] == pushed["other"]


def test_each_of_several_runs_is_a_checkpoint_of_its_own(tmp_path: Path):
    fleet = randomise(unipelt.attach(tiny.build("bert"), "lora", runs=3))
    fleet.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not say which mixture its tensors are of; .*run-0 is one"):
        unipelt.load(tiny.build("bert"), tmp_path)
    for run in range(3):
        alone = unipelt.load(tiny.build("bert"), tmp_path / f"run-{run}")
        with unipelt.route(fleet, [run] * len(logits(alone, "bert"))):
            torch.testing.assert_close(logits(fleet, "bert"), logits(alone, "bert"))


def test_a_deep_copy_writes_its_own_values_and_a_detached_base_is_whole_again(tmp_path: Path):
    model = attached("bert", "lora")
    twin = randomise(copy.deepcopy(model), seed=5)
    twin.save_pretrained(tmp_path / "twin")
    assert torch.equal(logits(unipelt.load(tiny.build("bert"), tmp_path / "twin"), "bert"), logits(twin, "bert"))
    unipelt.detach(model).save_pretrained(tmp_path / "base")
    base = AUTO.from_pretrained(tmp_path / "base", attn_implementation="eager")
    torch.testing.assert_close(logits(base, "bert"), logits(tiny.build("bert"), "bert"))


def test_what_the_config_says_of_the_task_comes_back_and_detach_gives_the_bases_own_back(tmp_path: Path):
    model = tiny.build("bert")
    model.config.id2label, model.config.label2id = {0: "a", 1: "b", 2: "c"}, {"a": 0, "b": 1, "c": 2}
    model.config.problem_type = "multi_label_classification"
    unipelt.attach(model, "lora")
    unipelt.save(model, tmp_path / "saved")
    model.save_pretrained(tmp_path / "pretrained")
    for folder in tmp_path.iterdir():
        base = tiny.build("bert")
        before = base.config.to_dict()
        config = unipelt.load(base, folder).config
        assert (config.id2label, config.label2id, config.problem_type) == (
            model.config.id2label,
            model.config.label2id,
            "multi_label_classification",
        )
        assert unipelt.merge(copy.deepcopy(base)).config.problem_type == "multi_label_classification"
        assert unipelt.detach(base).config.to_dict() == before


def test_generation_settings_come_back(tmp_path: Path):
    model = tiny.build("llama", "generator")
    model.generation_config.update(max_new_tokens=3, repetition_penalty=1.3)
    unipelt.save(unipelt.attach(model, "lora"), tmp_path)
    base = tiny.build("llama", "generator")
    loaded = unipelt.load(base, tmp_path).generation_config
    assert (loaded.max_new_tokens, loaded.repetition_penalty) == (3, 1.3)
    assert unipelt.detach(base).generation_config.max_new_tokens is None


@pytest.mark.parametrize(("name", "head"), [("bert", "classifier"), ("llama", "generator")])
def test_a_base_with_other_rows_for_added_tokens_is_refused(name: str, head: str, tmp_path: Path):
    """A base without a name, of which nobody can say which rows are its own: all are. Tied embeddings too."""

    def resized(seed: int, size: int = 2) -> PreTrainedModel:
        torch.manual_seed(seed)
        model = tiny.build(name, head, **({"tie_word_embeddings": True} if name == "llama" else {}))
        model.resize_token_embeddings(tiny.VOCABULARY + size, mean_resizing=False)
        return model

    saved = randomise(unipelt.attach(resized(1), "lora"))
    unipelt.save(saved, tmp_path)
    assert torch.equal(logits(unipelt.load(resized(1), tmp_path), name), logits(saved, name))
    for other, words in ((resized(2), "differs in rows"), (resized(1, 1), "resize its embeddings alike")):
        before = state_of(other)
        with pytest.raises(CheckpointError, match=words):
            unipelt.load(other, tmp_path)
        assert_plain(other, before)


def test_a_folder_with_a_whole_model_is_left_as_it_is(tmp_path: Path):
    tiny.build("bert").save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"holds a whole model \(model\.safetensors\)"):
        attached("bert", "lora").save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_is_no_base(tmp_path: Path):
    from unipelt.checkpoint.bases import load_base

    attached("bert", "lora").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="a saved run, which holds no base"):
        load_base(str(tmp_path), outputs=2)
