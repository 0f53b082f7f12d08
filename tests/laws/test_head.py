"""The head is what stands between the base model and the logits: found by structure, whatever was loaded, copied or replaced."""

import copy
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

import unipelt
from laws.lawbook import small
from unipelt import UserError
from unipelt.inject.heads import find_head


def outside(model: nn.Module) -> int:
    inside = {id(p) for p in model.base_model.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in inside)


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_the_head_is_what_stands_outside_the_base_model(arch: str, tmp_path: Path):
    made = tiny.build(arch, dtype=torch.float32)
    made.save_pretrained(tmp_path)
    loaded = type(made).from_pretrained(tmp_path)
    replaced = type(made).from_pretrained(tmp_path)
    for parameter in replaced.base_model.parameters():
        parameter._is_hf_initialized = False
    for model in (made, loaded, copy.deepcopy(loaded), replaced):
        assert list(find_head(model)) == list(find_head(made))
        assert unipelt.trainable_parameters(unipelt.attach(model, "head")) == {"head": outside(unipelt.detach(model))}


@pytest.mark.parametrize("mixture", ["head", ["lora", "head"]])
@pytest.mark.parametrize(
    ("arch", "top"), [("bert", "base"), ("llama", "base"), ("llama", "generator"), ("bart", "generator")]
)
def test_a_method_with_nothing_to_train_is_refused(arch: str, top: str, mixture):
    model = tiny.build(arch, top)
    with pytest.raises(UserError, match=r"'head': nothing would train, .* has no head of its own; use another method"):
        unipelt.attach(model, mixture)
    assert not hasattr(model, "unipelt")


def test_a_frozen_head_alone_is_refused():
    with pytest.raises(
        UserError, match=r"nothing would train, .* head='frozen' keeps the head as it is; use head='train'"
    ):
        unipelt.attach(tiny.build("bert"), "head", head="frozen")
    assert unipelt.trainable_parameters(unipelt.attach(tiny.build("bert"), small("lora"), head="frozen"))
