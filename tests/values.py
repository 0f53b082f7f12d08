"""What the tests of checkpoints share: tuned values away from their start, and outputs."""

import tiny
import torch
from torch import Tensor, nn

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
