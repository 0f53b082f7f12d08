"""An attached model takes another mixture in place: gates fixed to constants, prefixes folded, a checkpoint's parameters."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.errors import SpecError, nearest
from unipelt.forms.prefix import PrefixMLP, fold
from unipelt.inject.attach import attach, detach
from unipelt.inject.tuned import Tuned, tuned_of


def swap(model: PreTrainedModel, mixture: spec.Mixture, state: dict[str, Tensor]) -> PreTrainedModel:
    """Detach what is attached, attach `mixture` with the same options, and give it the parameters of `state`, `[run, …]`."""
    tuned = tuned_of(model)
    options, runs, training, head = tuned.options, tuned.runs, model.training, tuned.head_modules()
    trains = {name: p.requires_grad for name, p in tuned.named_parameters()}
    detach(model)
    attach(model, mixture, runs=runs, head_modules=head, **options)
    new = tuned_of(model)
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            parameter.copy_(state[name])
            parameter.requires_grad_(trains.get(name, True))
    return model.train(training)


def fix_gates(model: PreTrainedModel, values: dict[str, float | Sequence[float]]) -> PreTrainedModel:
    """Replace gates by constants, by change name: one value for all layers, or one a layer that the change is in.

    The change's weight becomes a learned scalar that starts at the value, so that what could not merge now can.
    Raises SpecError for a change that is not there or has no gate.
    """
    tuned = tuned_of(model)
    gated = {name: c for name, c in tuned.mixture.named() if isinstance(c.weight, spec.Gate)}
    for name in values:
        if name not in gated:
            raise SpecError(f"no gated change {name!r} is attached: {nearest(name, gated)}")
    groups = {c.weight.group: n for n, c in gated.items() if c.weight.group}  # type: ignore[union-attr]
    for group in groups:
        members = [n for n, c in gated.items() if c.weight.group == group]  # type: ignore[union-attr]
        if any(n in values for n in members) and not all(n in values for n in members):
            raise SpecError(f"the gates of group {group!r} share one softmax: fix all of {', '.join(members)}, or none")
    mixture = tuned.mixture.with_weights({name: spec.Learned() for name in values})
    return swap(model, mixture, _FixedState(tuned, values, model))


class _FixedState(dict):
    """The parameters as they are, and each new scale at its value."""

    def __init__(self, tuned: Tuned, values: dict[str, float | Sequence[float]], model: PreTrainedModel):
        super().__init__({name: p.detach().clone() for name, p in tuned.named_parameters()})
        self.values_of, self.order = values, {}
        for name, _ in tuned.mixture.named():
            layers = {path.split(".")[1] for path in tuned.junction_names() if path.split(".")[2] == name}
            self.order[name] = sorted(layers, key=lambda i: int(i) if i.isdigit() else -1)
            given = values.get(name)
            if isinstance(given, Sequence) and len(given) != len(self.order[name]):
                raise SpecError(f"{name}: {len(given)} values for {len(self.order[name])} layers")

    def __missing__(self, path: str) -> Tensor:
        _, layer, name, *_ = path.split(".")
        given = self.values_of[name]
        return torch.tensor(given[self.order[name].index(layer)] if isinstance(given, Sequence) else given)


def folded(tuned: Tuned) -> tuple[spec.Mixture, dict[str, Tensor]]:
    """The mixture and parameters `[run, …]` after each prefix MLP has been folded into the prefixes that it gives."""
    state = {name: p.detach() for name, p in tuned.named_parameters()}
    changes = []
    for name, change in tuned.mixture.named():
        for path, module in tuned.named_modules():
            if isinstance(module, PrefixMLP) and path.split(".")[1] == name:
                table = fold(module)
                state = {key: value for key, value in state.items() if not key.startswith(path + ".")}
                state |= {f"{path}.key": table.key.detach(), f"{path}.value": table.value.detach()}
        if isinstance(change.form, spec.Prefix):
            change = replace(change, form=replace(change.form, mlp=0))
        changes.append(change)
    return spec.Mixture(tuple(changes), tuned.mixture.name), state
