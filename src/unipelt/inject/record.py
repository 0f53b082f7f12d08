"""Record the gate values of an attached model, and count its trainable parameters."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.errors import SiteError
from unipelt.forms.gate import Gate, ScoredGate
from unipelt.inject.context import checkpointable, uses_gradient_checkpointing
from unipelt.inject.state import MixtureState, attached_state, mixture_state


@contextmanager
def record_gates(model: PreTrainedModel) -> Iterator[dict[str, list[Tensor]]]:
    """Collect every gate's value, by path, for this thread's forwards inside the block: `[batch]`, `[batch, seq]` or `[…, changes]`.

    Values are part of the graph: a loss may use them. Where mixtures are side by side, a path begins with the mixture's
    number, and the values are those of its own rows.

    A training forward with reentrant gradient checkpointing raises SiteError: its values would have no gradient.
    """
    values: dict[str, list[Tensor]] = defaultdict(list)
    gates = {path: m for path, m in attached_state(model).active().named_modules() if isinstance(m, ScoredGate)}

    thread_id, forwards = get_ident(), attached_state(model).forwards

    def keep(path: str):
        def hook(gate: nn.Module, args: tuple, output: Tensor) -> None:
            if get_ident() != thread_id:
                return
            if (longer := forwards.thread.prompted_input) is not None and output.shape[1] == longer.full:
                output = longer.of_tokens(output)
            value = output.squeeze(-1) if isinstance(gate, Gate) else output
            values[path].append(value[:, 0] if output.shape[1] == 1 else value)

        return hook

    checkpointed = checkpointable(model) if gates else []

    def refuse_reentrant(model: nn.Module, args: tuple) -> None:
        if get_ident() == thread_id and uses_gradient_checkpointing(checkpointed, "reentrant"):
            raise SiteError(
                "record_gates with reentrant gradient checkpointing, in which recorded values have no gradient; expected "
                "gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})"
            )

    handles = [gate.register_forward_hook(keep(path)) for path, gate in gates.items()]
    if gates:
        handles.append(model.register_forward_pre_hook(refuse_reentrant))
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()


def gate_location(attached: MixtureState, path: str, member: int = 0) -> spec.Location:
    """The location of the change that a gate weighs; of a gate that a group shares, of its member of this number."""
    location = spec.Location.parse(path)
    part = location.part.removesuffix("gate").rstrip("._")
    members = attached.mixture.members(location.change)
    return location._replace(change=members[member], part=part) if members else location._replace(part=part)


def read_tokens(
    attached: MixtureState, path: str, values: Shaped[Tensor, "batch seq *gate"], inputs: Mapping[str, Tensor]
) -> Bool[Tensor, "batch seq"]:
    """True at the real tokens among those for which a gate has values, False at padding.

    Gates of cross-attention's keys and values read the source, as those of the encoder do; all others of a decoder read its own
    tokens.
    """
    gate, stack = attached.get_submodule(path), spec.Location.parse(path).stack
    reads_source = any(bound.weight is gate and bound.point.source for bound in attached.changes)
    names = ("decoder_attention_mask",) * (stack == "decoder" and not reads_source) + ("attention_mask",)
    mask = next((inputs[name] for name in names if name in inputs and inputs[name].shape == values.shape[:2]), None)
    return values.new_ones(values.shape[:2], dtype=torch.bool) if mask is None else mask.to(values.device).bool()


def trainable_parameters(model: PreTrainedModel | MixtureState) -> dict[str, int]:
    """Numbers of trainable parameters of one run, by change; gates of a group by its name, the head as `head`."""
    attached = model if isinstance(model, MixtureState) else mixture_state(model)
    counts: dict[str, int] = {name: 0 for name, _ in attached.mixture.named()}
    for location, parameter in attached.named_locations():
        if parameter.requires_grad:
            counts[location.change] = counts.get(location.change, 0) + parameter[0].numel()
    return counts
