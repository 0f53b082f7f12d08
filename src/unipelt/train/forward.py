"""One forward of a model, with or without gradients, and the precision in which it computes.

The tuned parameters, the optimizer and the loss stay float32 in each precision.
"""

import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from unipelt.inject.attention import kernel_of
from unipelt.inject.frozen import FrozenLayers
from unipelt.inject.state import NAME, prompt
from unipelt.tasks.batches import POSITIONS, PROMPT
from unipelt.tasks.language_model import at_positions

STATES = "frozen_states"  # of a batch's inputs: what its frozen layers give, `[batch, seq, hidden]`
CPU_ROWS = 32  # a forward, without gradients: more do not fit into a CPU's caches
GPU_TOKENS, GPU_ROWS = 65_536, 512  # a forward on a GPU: so many tokens, and so many rows at least
LEAST_ROWS = 8  # of each run
SHORT = 192  # tokens: up to it a CPU's fused bf16 attention, which is made for long ones, is slower than plain products


def rows_each(device: torch.device, runs: int, longest: int) -> int:
    """How many rows of each run a forward without gradients takes. longest: tokens of the longest."""
    whole = CPU_ROWS if device.type == "cpu" else max(GPU_ROWS, GPU_TOKENS // longest)
    return max(LEAST_ROWS, whole // runs)


def logits_of(
    model: PreTrainedModel, inputs: dict[str, Tensor], precision: str = "auto", frozen: FrozenLayers | None = None
) -> Float[Tensor, "row ..."]:
    """Logits in float32 at least; nothing is kept for a next token, which a decoder would copy all keys and values for.

    Inputs under POSITIONS, PROMPT and STATES are no arguments of the model: where logits are read, what was asked, and what the
    frozen layers give.
    """
    uncached = {"use_cache": False} if _can_cache(type(model)) else {}  # type: ignore[arg-type]  # a class is hashable
    positions, mask, states = (inputs.get(name) for name in (POSITIONS, PROMPT, STATES))
    inputs = {name: value for name, value in inputs.items() if name not in (POSITIONS, PROMPT, STATES)}
    asked = nullcontext() if mask is None or not hasattr(model, NAME) else prompt(model, mask)
    read = nullcontext() if positions is None else at_positions(model, positions)
    begun = nullcontext() if states is None or frozen is None else frozen.giving(states)
    with autocast(model.device, precision), asked, read, begun:
        logits = model(**inputs, **uncached).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@cache
def _can_cache(kind: type[PreTrainedModel]) -> bool:
    return "use_cache" in signature(kind.forward).parameters


def wants_bf16(device: torch.device, precision: str) -> bool:
    """Whether bf16 matrix products are asked for. precision: auto, fp32 or bf16, as in a Recipe."""
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager:
    """bf16 matrix products where they are asked for and the device has them."""
    wanted = wants_bf16(device, precision) and has_bf16(device.type)
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else nullcontext()


def choose_attention(model: Any, precision: str, longest: int) -> None:
    """Train short texts in bf16 on a CPU with eager attention, which is up to four times as fast there as sdpa: the same function.

    longest: tokens of the longest training example.
    """
    short = longest <= SHORT and model.device.type == "cpu"
    tuned = getattr(model, NAME, None)
    if tuned is not None and tuned.kernels is not None:
        return  # prefixes take sdpa apart themselves
    if short and wants_bf16(model.device, precision) and has_bf16("cpu") and kernel_of(model.config) == "sdpa":
        model.set_attn_implementation("eager")


def cast_frozen_weights(model: nn.Module, precision: str) -> None:
    """Where a CPU computes in bf16, cast the weights of frozen linear maps once: autocast would cast them in each forward.

    The numbers are the same. The copies take half as much memory as the float32 weights, which stay; on a GPU, where memory is
    scarcer, nothing is copied.
    """
    devices = {parameter.device.type for parameter in model.parameters()}
    if devices != {"cpu"} or not wants_bf16(torch.device("cpu"), precision) or not has_bf16("cpu"):
        return
    for module in model.modules():
        frozen = not any(parameter.requires_grad for parameter in module.parameters())
        if type(module) is nn.Linear and frozen and module.weight.dtype == torch.float32:
            module.forward = _CastLinear(module)  # type: ignore[method-assign]


class _CastLinear:
    """The forward of a frozen linear map: with bf16 weights inside autocast, with its own weights outside."""

    def __init__(self, module: nn.Linear):
        self.own, bias = module.forward, module.bias
        self.weight = module.weight.detach().bfloat16()
        self.bias = None if bias is None else bias.detach().bfloat16()

    def __call__(self, input: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
            return F.linear(input, self.weight, self.bias)
        return self.own(input)


@cache
def has_bf16(kind: str) -> bool:
    """Whether a kind of device multiplies in bf16; said once where it does not."""
    found = torch.cuda.is_bf16_supported() if kind == "cuda" else kind == "cpu" and cpu_has_bf16()
    if not found:
        warnings.warn(
            f"this {'GPU' if kind == 'cuda' else kind.upper()} has no bfloat16: it computes in float32", stacklevel=3
        )
    return found


def cpu_has_bf16() -> bool:
    """Whether the CPU has AVX-512 BF16 or AMX, without which bf16 is slower than fp32."""
    asked = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(ask is not None and ask() for ask in asked)
