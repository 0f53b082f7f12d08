"""Where weights are, and in which precision: what computes is right, what cannot is refused before anything is attached."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from torch import nn
from transformers.trainer_utils import validate_quantization_for_training

import unipelt
from laws.lawbook import attached, presets_of, randomise, result, scalar, small
from unipelt import UserError
from unipelt.inject.state import attached_state


@pytest.mark.parametrize("part", ["bert.encoder.layer.1", "classifier"])
@pytest.mark.parametrize("preset", ["lora", "unipelt-apl", "head"])
def test_weights_that_are_not_in_memory_are_refused(preset: str, part: str):
    model = tiny.build("bert")
    model.get_submodule(part).to("meta")
    with pytest.raises(UserError, match=rf"are not in memory, such as '{part}[.a-z]*': device_map has offloaded them"):
        unipelt.attach(model, small(preset))
    assert not hasattr(model, "unipelt")


def test_a_model_that_is_all_on_meta_can_be_counted():
    counts = unipelt.trainable_parameters(unipelt.attach(tiny.build("bert").to("meta"), small("unipelt-apl")))
    assert counts == unipelt.trainable_parameters(attached("bert", "unipelt-apl"))


def narrowed(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """T5 in half precision, as transformers loads it: its FFN's output projection stays in float32."""
    model = model.to(dtype)
    for path, module in model.named_modules():
        if path.endswith(".wo"):
            module.float()
    return model


@pytest.mark.parametrize("preset", presets_of("t5") + [p for p in ("houlsby", "mam") if p not in presets_of("t5")])
def test_a_base_in_half_precision_with_parts_in_float32(preset: str):
    wide = randomise(unipelt.attach(tiny.build("t5", dtype=torch.float32), small(preset)), 1)
    narrow = randomise(unipelt.attach(narrowed(tiny.build("t5", dtype=torch.float32), torch.float16), small(preset)), 1)
    with torch.no_grad():
        for p in (*attached_state(wide).parameters(), *attached_state(narrow).parameters()):
            p.mul_(0.3)  # T5 does not scale its scores: a saturated softmax enlarges rounding errors
    given = tiny.inputs("t5", wide)
    expected, actual = result(wide(**given)), result(narrow(**given))
    assert (actual - expected).abs().max() < 1e-2 * expected.abs().max()
    scalar(actual.float()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attached_state(narrow).parameters())


@pytest.mark.parametrize(
    ("arch", "preset"),
    [(a, p) for a in ("bert", "llama", "t5") for p in ("unipelt-apl", "houlsby", "unipelt-central", "mam")],
)
@torch.no_grad()
def test_evaluation_in_bfloat16_is_that_in_float32_up_to_its_rounding(arch: str, preset: str):
    """Trainer's bf16_full_eval casts the whole model, what is attached included."""
    model = attached(arch, preset, dtype=torch.float32)
    given = tiny.inputs(arch, model)
    expected = result(model(**given))
    narrow = result(model.to(torch.bfloat16)(**given))
    assert narrow.dtype == torch.bfloat16
    assert (narrow.float() - expected).norm() < 0.1 * expected.norm()


def test_trainer_takes_a_quantised_base_while_something_is_attached():
    model = tiny.build("bert")
    model.is_quantized, model.hf_quantizer = True, SimpleNamespace(is_trainable=True)
    with pytest.raises(ValueError, match="purely quantized"):
        validate_quantization_for_training(model)
    validate_quantization_for_training(unipelt.attach(model, small("lora")))
    with pytest.raises(ValueError, match="purely quantized"):
        validate_quantization_for_training(unipelt.detach(model))
