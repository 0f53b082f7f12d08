"""An attached model takes another mixture in place: gates fixed to constants, prefixes without their MLPs, a checkpoint's parameters."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.errors import SpecError, did_you_mean
from unipelt.forms.prefix import PrefixMLP, table_of
from unipelt.inject.attach import attach_checked, remove
from unipelt.inject.state import MixtureState, mixture_state


def replace_mixture(
    model: PreTrainedModel, mixture: spec.Mixture, value_of: Callable[[str], Tensor], runs: int | None = None
) -> PreTrainedModel:
    """Detach, attach `mixture` with the same options, and set each parameter to `value_of(path)`.

    What a checkpoint has replaced besides parameters stays: class names, generation settings, rows of added tokens.
    """
    attached = mixture_state(model)
    runs, training = runs or attached.runs, model.training
    trains = {name: p.requires_grad for name, p in attached.named_parameters()}
    remove(model)
    heads, seeds = list(attached.head_modules), list(range(runs))
    attach_checked(model, [mixture], [runs], seeds, attached.options, False, heads, refuse_untrained=False)
    new = mixture_state(model)
    new.names, new.before_load = attached.names, attached.before_load
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            parameter.copy_(value_of(name))
            parameter.requires_grad_(trains.get(name, True))
    return model.train(training)


def fix_gates(model: PreTrainedModel, values: dict[str, float | Sequence[float] | Tensor]) -> PreTrainedModel:
    """Replace gates by constants, by change name: one value for all layers, or one per layer that the change is in.

    The change's weight becomes a learned scalar that starts at the value, so that what could not merge now can.
    Raises SpecError for a change that is not there or has no gate, and for a value that is not a finite number; SiteError if
    not one mixture is attached. Nothing is changed then.
    """
    attached = mixture_state(model)
    gated = {name: c.weight for name, c in attached.mixture.named() if isinstance(c.weight, spec.Gate)}
    if not isinstance(values, dict):
        raise SpecError(f"values={values!r}: expected a dict of changes' names and values; gated: {', '.join(gated)}")
    for name in values:
        if name not in gated:
            known = (
                did_you_mean(str(name), gated) if gated else f"{attached.mixture.name!r} has no gates, or none any more"
            )
            raise SpecError(f"no gated change {name!r} is attached: {known}")
    for group in {gate.group for gate in gated.values()} - {""}:
        members = [name for name, gate in gated.items() if gate.group == group]
        if any(n in values for n in members) and not all(n in values for n in members):
            raise SpecError(f"the gates of group {group!r} share one softmax: fix all of {', '.join(members)}, or none")
    before = {name: p.detach().clone() for name, p in attached.named_parameters()}
    constants = {name: _by_layer(attached, name, constant) for name, constant in values.items()}

    def value_of(path: str) -> Tensor:
        """The parameters as they are, and each new scale at its value."""
        if path in before:
            return before[path]
        location = spec.Location.parse(path)
        return constants[location.change][location.layer]

    return replace_mixture(model, attached.mixture.with_weights(dict.fromkeys(values, spec.Learned())), value_of)


def _by_layer(attached: MixtureState, name: str, constant: Any) -> dict[int | None, Tensor]:
    """A change's constant in each of its layers."""
    layers = sorted({change.location.layer or 0 for change in attached.changes if change.name == name})
    try:
        value = torch.as_tensor(constant, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError):
        value = torch.tensor(torch.nan)
    if value.dim() > 1 or not value.isfinite().all():
        raise SpecError(f"{name}: {constant!r}, expected a finite number, or {len(layers)} of them, one per layer")
    if value.dim() and len(value) != len(layers):
        raise SpecError(f"{name}: {len(value)} values for {len(layers)} layers")
    return dict(zip(layers, value.expand(len(layers))))


def stored_parameters(model: PreTrainedModel | MixtureState) -> int:
    """How many numbers a checkpoint of one run holds: its head, and in place of each prefix MLP the prefixes that it gives."""
    attached = model if isinstance(model, MixtureState) else mixture_state(model)
    mlps = {path: module for path, module in attached.named_modules() if isinstance(module, PrefixMLP)}
    rest = [p[0] for name, p in attached.named_parameters() if not name.startswith(tuple(f"{path}." for path in mlps))]
    tables = [len(m.outputs) * m.embedding.shape[1] * m.heads * (m.shape.key + m.shape.value) for m in mlps.values()]
    return sum(p.numel() for p in rest) + sum(tables)


def with_prefix_tables(attached: MixtureState) -> tuple[spec.Mixture, dict[str, Tensor]]:
    """The mixture and parameters `[run, …]` with the prefixes that each prefix MLP gives in place of the MLP."""
    state = {name: p.detach() for name, p in attached.named_parameters()}
    changes = []
    for name, change in attached.mixture.named():
        for path, module in attached.named_modules():
            if isinstance(module, PrefixMLP) and spec.Location.parse(path).change == name:
                table = table_of(module)
                state = {key: value for key, value in state.items() if not key.startswith(path + ".")}
                state |= {f"{path}.key": table.key.detach(), f"{path}.value": table.value.detach()}
        if isinstance(change.form, spec.Prefix):
            change = replace(change, form=replace(change.form, mlp=0))
        changes.append(change)
    return spec.Mixture(tuple(changes), attached.mixture.name), state
