"""transformers' Trainer on an attached model: it trains, reports, saves the tuned part alone, resumes, picks the best."""

import copy
import json
from itertools import count
from pathlib import Path

import pytest
import tiny
import torch
from laws.lawbook import small, without_dropout
from torch import nn
from toy import arguments, classifier, keys, rows, train, tuned_keys, tuned_state
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

import unipelt
from unipelt.inject.state import mixture_state

DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def test_training_lowers_eval_loss_and_reports_it(tmp_path: Path):
    trainer = Trainer(
        model=classifier(),
        args=arguments(tmp_path, num_train_epochs=5),
        train_dataset=rows(48),
        eval_dataset=rows(24, seed=1),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before / 2
    assert {p.dtype for p in mixture_state(trainer.model).parameters()} == {torch.float32}


def test_the_base_stays_as_it_was(tmp_path: Path):
    model = train(classifier(), tmp_path).model
    plain = tiny.build("bert", num_labels=2)
    unipelt.detach(model)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())


def config_of(folder: Path) -> str:
    """A folder's config, without the sentence that stands where transformers looks for weights."""
    config = json.loads((folder / "config.json").read_text())
    assert "unipelt.load" in config.pop("transformers_weights")
    return json.dumps(config)


def test_a_checkpoint_holds_the_tuned_part_alone(tmp_path: Path):
    trainer = train(classifier(), tmp_path, save_strategy="steps", save_steps=6)
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == ["checkpoint-12", "checkpoint-6"]
    for folder in folders:
        assert keys(tmp_path / folder) == tuned_keys(trainer.model)
        assert "unipelt" not in config_of(tmp_path / folder)


def test_resumed_training_ends_as_uninterrupted(tmp_path: Path, complaints: list[str]):
    how = {"save_strategy": "steps", "save_steps": 6}
    whole = train(classifier(**DROPOUT), tmp_path / "whole", **how)
    again = train(classifier(**DROPOUT), tmp_path / "again", tmp_path / "whole/checkpoint-6", **how)
    assert again.state.global_step == whole.state.global_step == 12
    ends = tuned_state(again.model)
    assert all(torch.equal(value, ends[name]) for name, value in tuned_state(whole.model).items())
    assert not complaints


def test_the_best_model_is_loaded_at_the_end(tmp_path: Path, complaints: list[str]):
    evaluations = count()
    trainer = train(
        classifier(),
        tmp_path,
        num_train_epochs=3,
        compute_metrics=lambda _: {"worse_each_time": next(evaluations)},
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="worse_each_time",
        greater_is_better=False,
    )
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-6"
    assert not complaints
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(set(losses)) == 3
    assert trainer.evaluate()["eval_loss"] == losses[0]


class Gradients(TrainerCallback):
    """Keeps the gradients of the first step."""

    def __init__(self):
        self.first: dict[str, torch.Tensor | None] = {}

    def on_pre_optimizer_step(self, args, state, control, model: nn.Module, **_):
        if not self.first:
            self.first = {
                name: None if p.grad is None else p.grad.clone()
                for name, p in model.named_parameters()
                if p.requires_grad
            }


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing(_kwargs)?` is deprecated:FutureWarning")
@pytest.mark.parametrize(("arch", "reentrant"), [("bert", True), ("llama", False), ("bart", False)])
def test_gradient_checkpointing_gives_the_same_gradients(arch: str, reentrant: bool, tmp_path: Path):
    found = []
    for checkpointing in (False, True):
        gradients = Gradients()
        how = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
        model = without_dropout(classifier(arch=arch))
        given = arguments(tmp_path, max_steps=1, **(how if checkpointing else {}))
        Trainer(model=model, args=given, train_dataset=rows(8), callbacks=[gradients]).train()
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.first.values())
        found.append(gradients.first)
    plain, recomputed = found
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_a_deep_copy_trains_alone(tmp_path: Path):
    model = classifier()
    twin, before = copy.deepcopy(model), tuned_state(model)
    assert keys_of_callbacks(train(twin, tmp_path)) == keys_of_callbacks(plain_trainer(tmp_path))
    assert all(torch.equal(value, before[name]) for name, value in tuned_state(model).items())
    assert any(not torch.equal(value, before[name]) for name, value in tuned_state(twin).items())
    one = {name: value[None] for name, value in rows(1)[0].items() if name != "labels"}
    assert not torch.allclose(model.eval()(**one).logits, twin.eval()(**one).logits)


def plain_trainer(folder: Path) -> Trainer:
    return Trainer(model=tiny.build("bert"), args=arguments(folder), train_dataset=rows(8))


def keys_of_callbacks(trainer: Trainer) -> list[str]:
    return [type(callback).__name__ for callback in trainer.callback_handler.callbacks]


EVERY_LINEAR = unipelt.Mixture(
    (unipelt.Change(form=unipelt.LowRank(r=2), site="linear:all-linear", reads="input"),), "every-linear"
)


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_save_pretrained_writes_the_tuned_part_alone_and_after_detach_the_base(arch: str, tmp_path: Path):
    saved = tmp_path / "base"
    tiny.build(arch).save_pretrained(saved)
    model = tiny.ARCHITECTURES[arch].classifier.from_pretrained(saved)
    for mixture in (small("unipelt-apl"), small("bitfit"), EVERY_LINEAR):
        try:
            unipelt.attach(model, mixture)
        except unipelt.UserError:
            continue
        folder = tmp_path / mixture.name
        model.save_pretrained(folder)
        assert keys(folder) == tuned_keys(model)
        assert "unipelt" not in config_of(folder)
        assert model.num_parameters(only_trainable=True) == sum(unipelt.trainable_parameters(model).values())
        unipelt.detach(model)
    model.save_pretrained(tmp_path / "again")
    assert keys(tmp_path / "again") == keys(saved)
    again = tiny.ARCHITECTURES[arch].classifier.from_pretrained(tmp_path / "again")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("preset", unipelt.PRESETS)
def test_counts_agree_with_transformers(preset: str):
    model = classifier(preset)
    counts = unipelt.trainable_parameters(model)
    assert model.num_parameters(only_trainable=True) == sum(counts.values())
    assert counts["head"] > 0
