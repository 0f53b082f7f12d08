"""bf16 on a CPU: the matrix products alone, deterministic, near float32; said once where a CPU lacks it."""

from pathlib import Path

import pytest
import torch
from cli.conftest import base_of, tiny_base  # noqa: F401
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import unipelt
from train.fleets import fleet, plan, train
from train.test_resume import Stopped, assert_same, stop_at
from unipelt.errors import UserError
from unipelt.inject.attention import attention_implementation
from unipelt.train import forward, setup
from unipelt.train.recipes import Recipe
from unipelt.train.records import RunConfig

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 9}
BF16 = pytest.mark.skipif(not forward.cpu_has_bf16(), reason="this CPU has neither AVX-512 BF16 nor AMX")


def single(asked: str, folder: Path | None = None, **how):
    """A fleet in float32, as the command line has it: autocast leaves float64 alone."""
    trained = fleet([plan(seed=1, precision=asked)], folder=folder, dtype=torch.float32, **how)
    torch.manual_seed(0)
    return trained


@BF16
def test_bf16_is_near_float32_and_leaves_parameters_and_moments_there(tmp_path: Path):
    half, full = single("bf16"), single("fp32")
    ours, theirs = train(half)[0], train(full)[0]
    assert {value.dtype for value in [*ours.state.values(), *half._tensors().values()]} == {torch.float32}
    differs = False
    for mine, its in zip(ours.record.curve or (), theirs.record.curve or (), strict=True):
        assert mine["train_loss"] == pytest.approx(its["train_loss"], rel=0.02)
        differs |= mine["train_loss"] != its["train_loss"]
    assert differs, "nothing was computed in bf16"
    again = train(single("bf16"))
    assert_same({0: ours}, again)
    with pytest.raises(Stopped):
        train(single("bf16", tmp_path, on_step=stop_at(6)))
    assert_same(train(single("bf16", tmp_path)), again)


@pytest.mark.parametrize(
    ("device", "has", "expected"), [("cpu", True, "bf16"), ("cpu", False, "fp32"), ("cuda", True, "bf16")]
)
def test_auto_takes_bf16_where_it_is_fast(device: str, has: bool, expected: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forward, "cpu_has_bf16", lambda: has)
    monkeypatch.setattr(forward, "has_bf16", lambda device_type: has)
    assert forward.chosen_precision(torch.device(device), "auto") == expected
    assert forward.chosen_precision(torch.device(device), "fp32") == "fp32"


@pytest.mark.parametrize(("has", "recipe", "expected"), [(True, {}, "bf16"), (False, {"precision": "bf16"}, "fp32")])
def test_the_record_says_which_precision_was_taken(
    has: bool, recipe: dict, expected: str, tiny_base: str, monkeypatch: pytest.MonkeyPatch  # noqa: F811
):  # fmt: skip
    monkeypatch.setattr(setup, "chosen_precision", forward.chosen_precision)
    monkeypatch.setattr(forward, "cpu_has_bf16", lambda: has)
    monkeypatch.setattr(forward, "has_bf16", lambda device_type: has)
    config = RunConfig(
        model=tiny_base, task="docstrings", k=40, method="lora", validation_rows=10, stratify=True, recipe=recipe
    )
    (plan,) = setup.build_fleet([config], runs_at_once=1, device=torch.device("cpu")).plans
    assert plan.recipe.precision == plan.initial_record.recipe["precision"] == expected
    assert plan.initial_record.config.recipe == recipe, (
        "what was given stays as it was given, so that the same command continues"
    )


def test_a_cpu_without_bf16_computes_in_float32_and_says_so_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forward, "cpu_has_bf16", lambda: False)
    forward.has_bf16.cache_clear()
    with pytest.warns(UserWarning, match="^this CPU has no bfloat16: it computes in float32$") as said:
        half = train(single("bf16"))
    forward.has_bf16.cache_clear()
    assert len(said) == 1
    assert half[0].record.curve == train(single("fp32"))[0].record.curve


@BF16
def test_short_texts_in_bf16_on_a_cpu_take_eager_attention():
    kernels = {}
    for asked, longest, method in [
        ("bf16", forward.SHORT, "lora"), ("bf16", forward.SHORT + 1, "lora"), ("fp32", 8, "lora"), ("bf16", 8, "prefix"),
    ]:  # fmt: skip
        model = unipelt.attach(BertModel(BertConfig(**TINY)), method)
        forward.choose_attention(model, asked, longest)
        kernels[asked, longest, method] = attention_implementation(model.config)
    assert list(kernels.values()) == ["eager", "sdpa", "sdpa", "sdpa"], kernels


def tiny_llama(method: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return unipelt.attach(LlamaForCausalLM(LlamaConfig(**TINY, num_key_value_heads=1)), method)  # type: ignore[return-value]


IDS = torch.arange(8).view(2, 4)


@BF16
@torch.no_grad()
@pytest.mark.parametrize("method", ["unipelt-apl(pool='prompt')", "unipelt-apl(pool='token')"])
def test_a_prefix_in_bf16_is_near_float32(method: str):
    """In bf16 a CPU takes plain products in place of the fused kernel."""
    model = tiny_llama(method)
    with unipelt.prompt(model, IDS < 3):
        full = model(IDS).logits
        with forward.autocast(IDS.device, "bf16"):
            half = model(IDS).logits.float()
    assert 0 < (half - full).abs().max() < 0.05 * full.abs().max()


@BF16
@torch.no_grad()
@pytest.mark.parametrize("method", ["unipelt-apl", "dora"])
def test_weights_that_are_cast_once_give_the_numbers_of_weights_that_each_forward_casts(method: str):
    model = tiny_llama(method)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        with forward.autocast(IDS.device, "bf16"):
            half = model(IDS).logits
        return half, model(IDS).logits

    before = both()
    forward.cast_frozen_weights(model, "fp32")
    assert "forward" not in vars(model.lm_head), "float32 needs no copies"
    forward.cast_frozen_weights(model, "bf16")
    taken = [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert len(taken) == 8, "four projections of the attention, three of the FFN, and the output"
    assert all(map(torch.equal, both(), before))
    trained = LlamaForCausalLM(LlamaConfig(**TINY, num_key_value_heads=1))
    forward.cast_frozen_weights(trained, "bf16")
    assert not any("forward" in vars(module) for module in trained.modules()), "a tuned weight changes"


def test_a_precision_that_there_is_none_of_is_refused():
    with pytest.raises(UserError, match="--precision fp8: expected auto, fp32 or bf16"):
        Recipe(precision="fp8")
