"""What the tests of checkpoints share: tuned values away from their start, outputs, and files that say other things."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unipelt.checkpoint.description import KEY
from unipelt.checkpoint.disk import TENSORS
from unipelt.checkpoint.header import tensors_header, values_hash
from unipelt.inject.state import mixture_state


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 1) -> nn.Module:
    """Give every tuned parameter of an attached model another value."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in mixture_state(model).parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@torch.no_grad()
def logits(model: nn.Module, name: str) -> Tensor:
    """What an architecture's model gives for the tiny inputs."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft's is wrapped around it
    return model(**tiny.inputs(name, plain)).logits


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_plain(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Nothing is attached, and every value is as it was."""
    assert not hasattr(model, "unipelt")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    now = model.state_dict()
    assert now.keys() == before.keys()
    assert all(torch.equal(now[name], value) for name, value in before.items())


def rewrite(
    folder: Path, tensors: dict[str, Tensor] | None = None, change: Callable[[dict], Any] = lambda said: said
) -> Path:
    """Give a checkpoint other tensors, with their hash, and what `change` makes of its description: an object, or any text."""
    path = folder / TENSORS
    said = json.loads(tensors_header(path)["__metadata__"][KEY])
    tensors = load_file(path) if tensors is None else tensors
    save_file(tensors, path)
    other = change(said | {"sha256": values_hash(path.read_bytes())})
    save_file(tensors, path, {KEY: other if isinstance(other, str) else json.dumps(other)})
    return folder
