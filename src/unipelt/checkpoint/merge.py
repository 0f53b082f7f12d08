"""Folding changes into the base's own weights, where the merged base computes the same function."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from unipelt import spec
from unipelt.errors import SpecError
from unipelt.forms.constants import Bias, Norm
from unipelt.forms.gate import Learned
from unipelt.forms.low_rank import LowRank
from unipelt.forms.routed import Route
from unipelt.inject.attach import detach
from unipelt.inject.junction import Delta
from unipelt.inject.places import features
from unipelt.inject.tuned import Tuned, tuned_of


class Joint(NamedTuple):
    """One change at one module of the base."""

    path: str
    hook: str
    name: str
    change: spec.Change
    delta: Delta


def merge(model: nn.Module, *, run: int = 0) -> nn.Module:
    """Fold one run of what is attached into the base's weights, its head too, and detach: the same outputs from a plain base.

    What folds: LoRA, BitFit, tuned norms and adapters without a non-linearity, each on a linear or norm of the base with a
    number or a learned scalar as its weight. Raises SpecError that names each change that does not, and why; nothing has
    changed then.
    """
    tuned = tuned_of(model)
    check_run(tuned, run)
    found = list(joints(tuned))
    refuse("merge", model, tuned, found, _reason, run)
    heads = {path: tuned.get_submodule(f"head.{path}") for path in tuned.head_modules()}
    detach(model)
    with torch.no_grad():
        for path in dict.fromkeys(joint.path for joint in found):
            _fold(model.get_submodule(path), [joint for joint in found if joint.path == path], tuned.runs, run)
        for path, head in heads.items():
            for name, parameter in head.named_parameters():
                target = getattr(model.get_submodule(path), name.rsplit(".", 1)[-1])
                target.copy_(parameter[run])
    return model


def joints(tuned: Tuned) -> Iterator[Joint]:
    """Every place where a change joins, in order."""
    changes = dict(tuned.mixture.named())
    for path, hook, method in tuned.hooks:
        for delta in getattr(method.__self__, "deltas", ()):
            name = next(part for part in delta.name.split(".")[:3] if part in changes)
            yield Joint(path, hook, name, changes[name], delta)


def refuse(verb: str, model: nn.Module, tuned: Tuned, found: list[Joint], reason: Any, run: int) -> None:
    """Raise SpecError that names each change for which there is a reason."""
    reasons: dict[str, str] = {}
    if tuned.options["pooling"] != "model":
        reasons["the head"] = f"it reads pooling={tuned.options['pooling']!r}, which the plain model does not"
    users: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(path)
    for path in tuned.head_modules():
        if other := _shared(model.get_submodule(path), path, users):
            reasons["the head"] = f"{path!r} shares its weight with {other!r}"
    for joint in found:
        why = weight_reason(joint) or reason(joint, model.get_submodule(joint.path), tuned.runs, run)
        if why is None and (other := _shared(model.get_submodule(joint.path), joint.path, users)):
            why = f"{joint.path!r} shares its weight with {other!r}"
        if why is not None:
            reasons.setdefault(joint.name, why)
    if reasons:
        listed = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        raise SpecError(f"{verb} refused, nothing was changed: {listed}")


def weight_reason(joint: Joint) -> str | None:
    if isinstance(joint.change.weight, spec.Gate):
        return (
            "its gate depends on the input; fix it first, such as "
            f"unipelt.fix_gates(model, {{{joint.name!r}: 0.5}}) with the mean that unipelt.record_gates gives"
        )
    return None


def weight_of(delta: Delta, run: int) -> float:
    return float(delta.weight.scale[run]) if isinstance(delta.weight, Learned) else float(delta.weight)  # type: ignore[arg-type]


def check_run(tuned: Tuned, run: int) -> None:
    if not 0 <= run < tuned.runs:
        raise SpecError(f"run={run}: the model has runs 0 to {tuned.runs - 1}")


def quantised(module: nn.Module) -> str | None:
    """The type of a module's weight where it is no plain floating-point parameter that could be written."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return "no weight"
    plain = weight.is_floating_point() and weight.dtype.itemsize > 1 and not weight.is_meta
    return (
        None if plain else f"{type(weight).__name__} of {str(weight.dtype).removeprefix('torch.')} on {weight.device}"
    )


def _reason(joint: Joint, module: nn.Module, runs: int, run: int) -> str | None:
    """Why a change does not fold into its module, or None."""
    form, delta = joint.change.form, joint.delta
    if isinstance(form, spec.Prefix):
        return "a prefix adds positions to the attention, which no weight of the base does"
    if isinstance(form, spec.Bottleneck) and form.norm:
        return "its own LayerNorm is not linear"
    if isinstance(form, spec.Bottleneck | spec.Kronecker) and form.activation != "identity":
        return f"an adapter is not linear (its activation is {form.activation})"
    if (weight := quantised(module)) is not None:
        return f"{joint.path!r} is quantised or not loaded ({weight}); load the base in full precision and merge there"
    if isinstance(form, spec.Bias | spec.Norm):
        return None
    if delta.held is not None or joint.hook == "pre" or delta.reads not in ("input", "output"):
        return f"it reads {joint.change.reads!r}, which is neither the input nor the output of {joint.path!r}"
    if not isinstance(module, nn.Linear | Conv1D):
        return f"{joint.path!r} is a {type(module).__name__}, no linear map"
    if module.bias is None and not isinstance(delta.form, LowRank) and affine(joint, module, runs, run)[1].any():
        return f"{joint.path!r} has no bias to take the adapter's"
    return None


def _shared(module: nn.Module, path: str, users: dict[int, list[str]]) -> str | None:
    others = (user for p in module.parameters(recurse=False) for user in users[id(p)] if user != path)
    return next(others, None)


def affine(joint: Joint, module: nn.Module, runs: int, run: int) -> tuple[Tensor, Tensor]:
    """A and c of a change that computes A x + c: c is its value at 0, the columns of A those at the unit vectors."""
    form, part = joint.delta.form, joint.delta.part
    inputs, outputs = features(module)
    if joint.delta.reads == "output":
        inputs = outputs if part is None else len(part.rows(torch.arange(outputs)))
    device = next(form.parameters()).device
    points = torch.eye(inputs + 1, inputs, dtype=torch.float64, device=device).roll(1, 0)
    training = form.training
    form.eval()  # dropout is no part of the map
    values = form(points[None], Route.of_rows(torch.tensor([run], device=device), runs))[0].detach()
    form.train(training)
    return (values[1:] - values[0]).T, values[0]


def _fold(module: nn.Module, found: list[Joint], runs: int, run: int) -> None:
    """Write into one module what its changes, in order, make of it; computed in float64, rounded once."""
    scale, shift = module.weight, getattr(module, "bias", None)
    weight = (scale.T if isinstance(module, Conv1D) else scale).double()
    bias = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device) if shift is None else shift.double()
    weight, bias = weight.clone(), bias.clone()
    for joint in found:
        delta, form = joint.delta, joint.delta.form
        factor = weight_of(delta, run)
        if isinstance(form, Bias):
            bias += factor * form.bias[run].double()
        elif isinstance(form, Norm):
            weight += factor * form.weight[run].double()
            if form.bias is not None:
                bias += factor * form.bias[run].double()
        else:
            a, c = affine(joint, module, runs, run)
            rows = torch.arange(len(weight), device=weight.device)
            rows = rows if delta.part is None else delta.part.rows(rows)
            if delta.reads == "input":
                weight[rows] += factor * a
                bias[rows] += factor * c
            else:
                weight[rows], bias[rows] = (
                    weight[rows] + factor * a @ weight[rows],
                    bias[rows] + factor * (a @ bias[rows] + c),
                )
    scale.copy_(weight.T if isinstance(module, Conv1D) else weight)
    if shift is not None:
        shift.copy_(bias)
