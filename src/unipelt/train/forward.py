"""The forwards of a model, with or without gradients: which examples they read, and the precision in which they compute.

The tuned parameters, the optimizer and the loss stay float32 in each precision.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from inspect import signature
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unipelt.inject.attention import kernel_of
from unipelt.inject.frozen import FrozenLayers
from unipelt.inject.state import NAME, prompt
from unipelt.tasks.base import Task
from unipelt.tasks.batches import POSITIONS, PROMPT, Batch, Part
from unipelt.tasks.language_model import at_positions

STATES = "frozen_states"  # of a batch's inputs: what its frozen layers give, `[batch, seq, hidden]`
CPU_ROWS = 32  # a forward, without gradients: more do not fit into a CPU's caches
GPU_TOKENS, GPU_ROWS = 65_536, 512  # a forward on a GPU: so many tokens, and so many rows at least
LEAST_ROWS = 8  # of each run
SHORT = 192  # tokens: up to it a CPU's fused bf16 attention, which is made for long ones, is slower than plain products


class StepInputs(NamedTuple):
    """What one step of every run of a fleet reads."""

    batches: list[Batch]
    """of one forward, or of several whose gradients add up"""
    shares: list[Float[Tensor, " run"]]
    """what a run's mean loss of each forward counts in its mean over the step; none for a single forward"""
    numbers: Float[Tensor, " run"]
    """of the step, from 1"""
    rates: Float[Tensor, " run"] | Float[Tensor, "run kind"]
    clip: Float[Tensor, " run"]
    decay: Float[Tensor, " run"] | None


def rows_each(device: torch.device, runs: int, longest: int) -> int:
    """How many rows of each run a forward without gradients takes. longest: tokens of the longest."""
    whole = CPU_ROWS if device.type == "cpu" else max(GPU_ROWS, GPU_TOKENS // longest)
    return max(LEAST_ROWS, whole // runs)


def longest_first(lengths: Sequence[Sequence[int]], device: torch.device) -> Iterator[list[list[int]]]:
    """The examples of each run for forwards without gradients, from its longest to its shortest, which comes again where none are
    left: the first forward needs the most memory. lengths: tokens of each run's examples."""
    orders = [sorted(range(len(mine)), key=lambda row: -mine[row]) for mine in lengths]
    start = 0
    while start < max(map(len, orders)):
        longest = max(mine[order[min(start, len(order) - 1)]] for mine, order in zip(lengths, orders))
        taken = rows_each(device, len(lengths), longest)
        yield [order[start : start + taken] or order[-1:] for order in orders]
        start += taken


def step_batches(
    task: type[Task], parts: Sequence[Sequence[Part]], tokenizer: PreTrainedTokenizerBase, device: torch.device,
    further: Callable[[Sequence[Part], dict[str, Tensor]], dict[str, Tensor]] = lambda parts, inputs: {},
) -> tuple[list[Batch], list[Float[Tensor, " run"]]]:  # fmt: skip
    """The batches and shares of a training step; a share is the run's examples, or answer tokens, divided by the step's.

    parts: each run's, one for each of its forwards; a run that has fewer than others takes part in the rest with weight 0.
    further: what a forward reads besides, from its parts and inputs.
    """
    batches = []
    for number in range(max(map(len, parts))):
        chosen = [(own[number:] or own)[0] for own in parts]
        batch = task.collate(chosen, tokenizer, device)
        batch.inputs.update(further(chosen, batch.inputs))
        if number:  # every run has a first forward
            idle = torch.tensor([number >= len(own) for own in parts], device=device)
            batch = batch._replace(weights=batch.weights.masked_fill(idle[:, None], 0.0))
        batches.append(batch)
    if len(batches) == 1:
        return batches, []
    counts = torch.stack([task.count(batch) for batch in batches]).to(batches[0].weights.dtype)
    return batches, list(counts / counts.sum(dim=0).clamp(min=1))


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


def chosen_precision(device: torch.device, precision: str) -> str:
    """The precision of a training, fp32 or bf16; auto: bf16 on a GPU, and on a CPU that multiplies in it."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" or (device.type == "cpu" and cpu_has_bf16()) else "fp32"


def uses_bf16(device: torch.device, precision: str) -> bool:
    """Whether matrix products are computed in bf16: it is asked for, and the device has it.

    precision: fp32, bf16, or auto: bf16 on a GPU, where saved runs predict so too.
    """
    return (precision == "bf16" or (precision == "auto" and device.type == "cuda")) and has_bf16(device.type)


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager:
    """bf16 matrix products where they are asked for and the device has them."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if uses_bf16(device, precision) else nullcontext()


def choose_attention(model: PreTrainedModel, precision: str, longest: int) -> None:
    """Train short texts in bf16 on a CPU with eager attention, which is up to four times as fast there as sdpa: the same function.

    longest: tokens of the longest training example.
    """
    short = longest <= SHORT and model.device.type == "cpu"
    tuned = getattr(model, NAME, None)
    if tuned is not None and tuned.kernels is not None:
        return  # prefixes take sdpa apart themselves
    if short and uses_bf16(model.device, precision) and kernel_of(model.config) == "sdpa":
        model.set_attn_implementation("eager")


def cast_frozen_weights(model: nn.Module, precision: str) -> None:
    """Where a CPU computes in bf16, cast the weights of frozen linear maps once: autocast would cast them in each forward.

    The numbers are the same. The copies take half as much memory as the float32 weights, which stay; on a GPU, where memory is
    scarcer, nothing is copied.
    """
    cpu = torch.device("cpu")
    if {parameter.device for parameter in model.parameters()} != {cpu} or not uses_bf16(cpu, precision):
        return
    for module in model.modules():
        frozen = not any(parameter.requires_grad for parameter in module.parameters())
        if type(module) is nn.Linear and frozen and module.weight.dtype == torch.float32:
            module.forward = _CastLinear(module)  # type: ignore[method-assign]


class _CastLinear:
    """The forward of a frozen linear map: with bf16 weights inside autocast, with its own weights outside."""

    def __init__(self, module: nn.Linear):
        self.own = module.weight, module.bias
        self.weight, self.bias = (None if one is None else one.detach().bfloat16() for one in self.own)

    def __call__(self, input: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
            return F.linear(input, self.weight, self.bias)
        return F.linear(input, *self.own)


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
