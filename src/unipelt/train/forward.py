"""The forwards of a model, with or without gradients: which examples they read, what they give, and in which precision.

The tuned parameters, the optimizer and the loss stay float32 in each precision.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unipelt.forms.gate import GroupGate
from unipelt.inject.attention import attention_implementation, prefixes_computed_once
from unipelt.inject.frozen import FrozenLayers
from unipelt.inject.record import gate_location, read_tokens, record_gates
from unipelt.inject.state import NAME, MixtureState, attached_state, prompt
from unipelt.tasks.base import Task
from unipelt.tasks.batches import POSITIONS, PROMPT, Batch, Encoded, Part, share
from unipelt.tasks.language_model import at_positions

if TYPE_CHECKING:
    from unipelt.train.frozen import FrozenStates

STATES = "frozen_states"  # key in a batch's inputs: output of the frozen layers, `[batch, seq, hidden]`
CPU_ROWS = 32  # rows per forward without gradients: more do not fit into a CPU's caches
GPU_TOKENS, GPU_ROWS = 65_536, 512  # the same on a GPU: this many tokens, but at least so many rows
LEAST_ROWS = 8  # per run and forward
SHORT = 192  # tokens: up to it a CPU's fused bf16 attention, which is made for long ones, is slower than plain products


class StepInputs(NamedTuple):
    """What one step of every run of a fleet reads."""

    batches: list[Batch]
    """of one forward, or of several whose gradients add up"""
    shares: list[Float[Tensor, " run"]]
    """weight of each forward's mean loss in a run's mean over the step; empty for a single forward"""
    steps: Float[Tensor, " run"]
    """number of this step in each run's training, from 1"""
    rates: Float[Tensor, " run"] | Float[Tensor, "run kind"]
    clip: Float[Tensor, " run"]
    decay: Float[Tensor, " run"] | None


def rows_per_run(device: torch.device, runs: int, longest: int) -> int:
    """How many examples of each run a forward without gradients takes. longest: tokens of the longest."""
    rows = CPU_ROWS if device.type == "cpu" else max(GPU_ROWS, GPU_TOKENS // longest)
    return max(LEAST_ROWS, rows // runs)


def longest_first(lengths: Sequence[Sequence[int]], device: torch.device) -> Iterator[list[list[int]]]:
    """The examples of each run for each forward without gradients, longest first: the first forward needs the most memory. A run
    with fewer examples repeats its shortest. lengths: tokens of each run's examples."""
    orders = [sorted(range(len(run_lengths)), key=lambda index: -run_lengths[index]) for run_lengths in lengths]
    start = 0
    while start < max(map(len, orders)):
        longest = max(run_lengths[order[min(start, len(order) - 1)]] for run_lengths, order in zip(lengths, orders))
        count = rows_per_run(device, len(lengths), longest)
        yield [order[start : start + count] or order[-1:] for order in orders]
        start += count


def step_batches(
    task_type: type[Task], parts: Sequence[Sequence[Part]], tokenizer: PreTrainedTokenizerBase, device: torch.device,
    frozen: "FrozenStates | None" = None, on_batch: Callable[[], None] = lambda: None,
) -> tuple[list[Batch], list[Float[Tensor, " run"]]]:  # fmt: skip
    """The batches and shares of a training step; a share is the part of a run's examples, or answer tokens, that a forward has.

    parts: each run's, one for each of its forwards; a run that has fewer than others takes part in the rest with weight 0.
    frozen, on_batch: as in predict_with_gates.
    """
    batches = []
    for forward in range(max(map(len, parts))):
        forward_parts = [(run_parts[forward:] or run_parts)[0] for run_parts in parts]
        batch = task_type.collate(forward_parts, tokenizer, device)
        if frozen is not None:
            batch.inputs[STATES] = frozen.states(forward_parts, batch.inputs, on_batch)
        if forward:  # every run has a first forward
            idle = torch.tensor([forward >= len(run_parts) for run_parts in parts], device=device)
            batch = batch._replace(weights=batch.weights.masked_fill(idle[:, None], 0.0))
        batches.append(batch)
    if len(batches) == 1:
        return batches, []
    counts = torch.stack([task_type.count(batch) for batch in batches]).to(batches[0].weights.dtype)
    return batches, list(share(counts, counts.sum(dim=0)))


@torch.no_grad()
def predict_with_gates(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Sequence[Encoded], *,
    task_type: type[Task] = Task, precision: str = "auto", frozen: "FrozenStates | None" = None,
    on_batch: Callable[[], None] = lambda: None, gates: bool = True,
) -> list[tuple[Float[Tensor, "example ..."], dict[str, Float[Tensor, " example"]]]]:  # fmt: skip
    """Logits of every run for its own examples, in their order, and each gate's values by the location of the change that it weighs.

    A gate with a value for each token is averaged over the example's tokens. frozen: what the layers below the lowest change
    give, which are then not computed. on_batch: called after each forward. gates: whether they are recorded.
    """
    model.eval()
    layers, device = None if frozen is None else frozen.layers, next(model.parameters()).device
    results: list[dict[str, Tensor]] = [{} for _ in data]
    with prefixes_computed_once(model):
        for batch in longest_first([encoded.lengths() for encoded in data], device):
            parts = [Part(None, encoded, indices) for encoded, indices in zip(data, batch)]
            inputs, select_logits = task_type.evaluation_inputs(parts, tokenizer, device)
            if frozen is not None:
                inputs[STATES] = frozen.states(parts, inputs, on_batch)
            recording: AbstractContextManager[dict[str, list[Tensor]]] = nullcontext({})
            with record_gates(model) if gates else recording as recorded:
                logits = {"": select_logits(logits_of(model, inputs, precision, layers)).cpu()}
            for name, values in (logits | _by_example(model, recorded, inputs)).items():
                for run, (part, run_values) in enumerate(zip(parts, values.unflatten(0, (len(data), -1)))):
                    if name not in results[run]:
                        results[run][name] = run_values.new_zeros(len(part.encoded), *run_values.shape[1:])
                    run_results = results[run][name]
                    sizes = [slice(size) for size in run_values.shape[1:]]  # the first batch has the longest sequences
                    run_results[(torch.tensor(part.indices), *sizes)] = run_values[: len(part.indices)]  # type: ignore[index]
            on_batch()
    return [(result.pop(""), result) for result in results]


def predict(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Sequence[Encoded], **how: Any
) -> list[Float[Tensor, "example ..."]]:
    """Logits of every run for its own examples, in their order. how: as in predict_with_gates."""
    return [logits for logits, _ in predict_with_gates(model, tokenizer, data, gates=False, **how)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context manager: the model is in evaluation mode, afterwards in its former mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _by_example(
    model: PreTrainedModel, recorded: dict[str, list[Tensor]], inputs: dict[str, Tensor]
) -> dict[str, Float[Tensor, " batch"]]:
    """One value per gated change and example, by the change's location."""
    if not recorded:
        return {}
    attached, values_of = attached_state(model).active(), {}
    assert isinstance(attached, MixtureState), "the runs of one mixture are evaluated at once"
    for path, (value, *_) in recorded.items():
        is_group = isinstance(attached.get_submodule(path), GroupGate)
        value = value.float() if is_group else value.float()[..., None]
        if value.dim() == 3:
            real = read_tokens(attached, path, value, inputs)[..., None]
            value = (value * real).sum(dim=1) / real.sum(dim=1)
        for column in range(value.shape[-1]):
            values_of[str(gate_location(attached, path, column))] = value[:, column].cpu()
    return values_of


def logits_of(
    model: PreTrainedModel, inputs: dict[str, Tensor], precision: str = "auto", frozen: FrozenLayers | None = None
) -> Float[Tensor, "row ..."]:
    """Logits in float32 at least; a decoder's cache is off, because filling it would copy all keys and values.

    Inputs under POSITIONS, PROMPT and STATES are no arguments of the model: where logits are read, what was asked, and what the
    frozen layers give.
    """
    uncached = {"use_cache": False} if _can_cache(type(model)) else {}  # type: ignore[arg-type]  # a class is hashable
    positions, mask, states = (inputs.get(name) for name in (POSITIONS, PROMPT, STATES))
    inputs = {name: value for name, value in inputs.items() if name not in (POSITIONS, PROMPT, STATES)}
    with_prompt = nullcontext() if mask is None or not hasattr(model, NAME) else prompt(model, mask)
    at_answers = nullcontext() if positions is None else at_positions(model, positions)
    from_states = nullcontext() if states is None or frozen is None else frozen.giving(states)
    with autocast(model.device, precision), with_prompt, at_answers, from_states:
        logits = model(**inputs, **uncached).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@cache
def _can_cache(model_class: type[PreTrainedModel]) -> bool:
    return "use_cache" in signature(model_class.forward).parameters


def chosen_precision(device: torch.device, precision: str) -> str:
    """The precision that a training computes in, fp32 or bf16; auto: bf16 on a GPU, and on a CPU that multiplies in it.

    bf16 that the device lacks becomes fp32, with a warning.
    """
    if precision == "auto" and device.type != "cuda":
        return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"
    return "bf16" if precision != "fp32" and has_bf16(device.type) else "fp32"


def uses_bf16(device: torch.device, precision: str) -> bool:
    """Whether matrix products are computed in bf16: it is asked for, and the device has it.

    precision: fp32, bf16, or auto: bf16 on a GPU only (unlike chosen_precision, which also takes it on a CPU that has it).
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
    attached = getattr(model, NAME, None)
    if attached is not None and attached.kernels is not None:
        return  # inject/attention.py chooses for prefixes
    if short and uses_bf16(model.device, precision) and attention_implementation(model.config) == "sdpa":
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
        self.original = module.weight, module.bias
        self.weight, self.bias = (None if tensor is None else tensor.detach().bfloat16() for tensor in self.original)

    def __call__(self, input: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
            return F.linear(input, self.weight, self.bias)
        return F.linear(input, *self.original)


@cache
def has_bf16(device_type: str) -> bool:
    """Whether a type of device multiplies in bf16; one warning where it does not."""
    supported = torch.cuda.is_bf16_supported() if device_type == "cuda" else device_type == "cpu" and cpu_has_bf16()
    if not supported:
        warnings.warn(
            f"this {'GPU' if device_type == 'cuda' else device_type.upper()} has no bfloat16: it computes in float32",
            stacklevel=3,
        )
    return supported


def cpu_has_bf16() -> bool:
    """Whether the CPU has AVX-512 BF16 or AMX, without which bf16 is slower than fp32."""
    checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(check is not None and check() for check in checks)
