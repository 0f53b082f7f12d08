"""In which precision a model computes: its tuned parameters, the optimizer and the loss stay float32 in each."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch

from unipelt.inject.attention import kernel_of
from unipelt.inject.state import NAME

SHORT = 192  # tokens: up to it a CPU's fused bf16 attention, which is made for long ones, is slower than plain products


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
