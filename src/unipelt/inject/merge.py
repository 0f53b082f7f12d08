"""Folding changes into the base's own weights, where the merged base computes the same function."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from unipelt import spec
from unipelt.errors import SpecError, did_you_mean
from unipelt.forms.constants import Bias, Norm
from unipelt.forms.dora import Dora
from unipelt.forms.gate import LearnedScale
from unipelt.forms.low_rank import LowRank
from unipelt.forms.routed import Route
from unipelt.forms.scaling import Scaling
from unipelt.inject.attach import detach, reset_dynamo
from unipelt.inject.compiled import refuse_compiled, uncompile
from unipelt.inject.hooks import BoundChange, changes_of
from unipelt.inject.resolve import features, is_linear, unreadable
from unipelt.inject.state import Hook, MixtureState, mixture_state


class Joint(NamedTuple):
    """One change at one module of the base."""

    path: str
    hook: str
    name: str
    change: spec.Change
    delta: BoundChange


def merge(
    model: PreTrainedModel, *, run: int | None = None, rest: Literal["refuse", "attached"] = "refuse"
) -> PreTrainedModel:
    """Fold one run of what is attached into the base's weights, its head too, and detach: the same outputs from a plain base.

    What folds: LoRA, BitFit, tuned norms and adapters without a non-linearity, each on a linear or norm of the base with a
    number or a learned scalar as its weight. Raises SpecError that names each change that does not, and why; nothing has
    changed then.

    rest="attached", of a model with one run, for inference: what does not fold stays attached, the head too, and what folds
    trains no longer. `disabled` and `detach` give the base's own weights back bit for bit, for which a copy of those that
    were written is kept; `save` writes the checkpoint that it would have written before.
    """
    if rest not in ("refuse", "attached"):
        raise SpecError(f"rest={rest!r}: {did_you_mean(str(rest), ('refuse', 'attached'))}")
    tuned = mixture_state(model)
    _, run = tuned.locate_run(run)
    found = list(joints(tuned))
    users: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(path)

    def reason(joint: Joint) -> str | None:
        module = model.get_submodule(joint.path)
        return _reason(joint, module, tuned.runs, run) or _shared(module, joint.path, users)

    if rest == "attached":
        if tuned.runs > 1:
            raise SpecError(
                f"rest='attached' with {tuned.runs} runs: the base's weights hold one; save and load one run"
            )
        return _into_weights(model, found, reason)
    shared = [_shared(model.get_submodule(path), path, users) for path in tuned.head_modules()]
    refuse("merge", tuned, found, reason, next((why for why in shared if why), None))
    heads = {path: tuned.get_submodule(f"head.{path}") for path in tuned.head_modules()}
    classes = {name: getattr(model.config, name) for name in tuned.base_state["classes"]} if heads else {}
    generation = getattr(model, "generation_config", None)
    tuned.base_state.pop("tokens", None)  # rows of added tokens stay
    detach(model)
    for name, value in classes.items():  # of the head that stays
        setattr(model.config, name, value)
    if generation is not None:
        model.generation_config = generation
    with torch.no_grad():
        for path in dict.fromkeys(joint.path for joint in found):
            _fold(model.get_submodule(path), [joint for joint in found if joint.path == path], tuned.runs, run)
        for path, head in heads.items():
            for name, parameter in head.named_parameters():
                target = getattr(model.get_submodule(path), name.rsplit(".", 1)[-1])
                target.copy_(parameter[run])
    return model


class InWeights:
    """Changes that stand in the weight of their module instead of on a hook of it: its own handle, `remove` takes them out."""

    def __init__(self, found: list[Joint]):
        self.found, self.changes = found, [joint.delta for joint in found]
        self.before: dict[str, Tensor] = {}

    @torch.no_grad()
    def write(self, module: nn.Module) -> "InWeights":
        self.module = module
        if self.before:
            return self
        self.before = {name: p.detach().clone() for name, p in module.named_parameters(recurse=False)}
        _fold(module, self.found, 1, 0)
        return self

    @torch.no_grad()
    def remove(self) -> None:
        for name, value in self.before.items():
            self.module.get_parameter(name).copy_(value)
        self.before = {}


def _into_weights(model: PreTrainedModel, found: list[Joint], reason: Callable[[Joint], str | None]) -> PreTrainedModel:
    """Put the first changes of a module that fold into its weight; those after one that does not fold stay on the hook."""
    tuned = mixture_state(model)
    uncompile(model)
    refuse_compiled(model)
    hooks = []
    for hook in tuned.hooks:
        changes = [id(change) for change in changes_of(hook.method)] if hook.kind == "post" else []
        mine = [joint for joint in found if id(joint.delta) in changes]
        foldable = [not isinstance(joint.change.weight, spec.Gate) and reason(joint) is None for joint in mine]
        first = (*foldable, False).index(False)
        if first:
            hooks.append(Hook(hook.path, "weight", InWeights(mine[:first]).write))
            for joint in mine[:first]:
                joint.delta.form.requires_grad_(False)
            del changes_of(hook.method)[:first]
        if not mine or mine[first:]:
            hooks.append(hook)
    tuned.remove_hooks()
    tuned.hooks = hooks
    tuned.register_hooks(model)
    reset_dynamo()
    return model


def joints(tuned: MixtureState) -> Iterator[Joint]:
    """Every module that a change joins, change by change in tuple order."""
    bound = [(hook, change) for hook in tuned.hooks for change in changes_of(hook.method)]
    for name, change in tuned.mixture.named():
        for hook, one in bound:
            if one.location.change == name:
                yield Joint(hook.path, hook.kind, name, change, one)


def refuse(
    verb: str, tuned: MixtureState, found: list[Joint], reason: Callable[[Joint], str | None], head: str | None = None
):
    """Raise SpecError that names each change for which there is a reason, or that is gated; head: what is against the head."""
    if tuned.options["pooling"] != "model":
        head = (
            f"it reads pooling={tuned.options['pooling']!r}, which the plain model does not: "
            "train with pooling='model' (`unipelt train --pooling model`)"
        )
    reasons = {} if head is None else {"the head": head}
    gated = {
        joint.name: "its gate depends on the input" for joint in found if isinstance(joint.change.weight, spec.Gate)
    }
    for joint in found:
        if (why := reason(joint)) is not None:
            reasons.setdefault(joint.name, why)
    if reasons or gated:
        listed = "; ".join(f"{name}: {why}" for name, why in (gated | reasons).items())
        if not reasons:  # where something else is in the way too, fixing the gates would not help
            listed += (
                f"; fix its gates first: unipelt.fix_gates(model, {dict.fromkeys(gated, 0.5)}) with the means that "
                "unipelt.record_gates gives, or `unipelt export --fix-gates --data FILE`"
            )
        raise SpecError(f"{verb} refused, nothing was changed: {listed}")


def weight_of(delta: BoundChange, run: int) -> float:
    """What multiplies a change that is not gated."""
    return delta.weight.scale[run].item() if isinstance(delta.weight, LearnedScale) else float(delta.weight)  # type: ignore[arg-type]


def _reason(joint: Joint, module: nn.Module, runs: int, run: int) -> str | None:
    """Why a change does not fold into its module, or None."""
    form, delta = joint.change.form, joint.delta
    if isinstance(form, spec.Prefix):
        return "a prefix adds positions to the attention, which no weight of the base does"
    if isinstance(form, spec.Prompt):
        return "a prompt adds vectors to the input, which no weight of the base does"
    if isinstance(form, spec.Bottleneck) and form.norm:
        return "its own LayerNorm is not linear"
    if isinstance(form, spec.Bottleneck | spec.Kronecker) and form.activation != "identity":
        return f"an adapter is not linear (its activation is {form.activation})"
    if isinstance(delta.form, Scaling) and joint.hook == "pre" and is_linear(module):
        return _unwritable(joint, module)
    if delta.captured is not None or joint.hook == "pre" or delta.reads not in ("input", "output"):
        return f"it reads {joint.change.reads!r}, which is neither the input nor the output of {joint.path!r}"
    if not isinstance(form, spec.Bias | spec.Norm) and not is_linear(module):
        return f"{joint.path!r} is a {type(module).__name__}, no linear map"
    if (why := _unwritable(joint, module)) is not None:
        return why
    if isinstance(form, spec.Bias | spec.Norm | spec.LowRank | spec.Dora | spec.Scaling):
        return None
    if module.bias is None and affine(joint, module, runs, run)[1].any():
        return f"{joint.path!r} has no bias to take the adapter's"
    return None


def _unwritable(joint: Joint, module: nn.Module) -> str | None:
    if (weight := unreadable(module)) is None:
        return None
    return f"{joint.path!r} is quantised or not loaded ({weight}); load the base in full precision and merge there"


def _shared(module: nn.Module, path: str, users: dict[int, list[str]]) -> str | None:
    others = (user for p in module.parameters(recurse=False) for user in users[id(p)] if user != path)
    return next((f"{path!r} shares its weight with {other!r}" for other in others), None)


def affine(joint: Joint, module: nn.Module, runs: int, run: int) -> tuple[Tensor, Tensor]:
    """A and c of a change that computes A x + c: where no matrix says so, its values at the unit vectors and at 0."""
    form: Any = joint.delta.form
    part: Any = joint.delta.part
    if isinstance(form, LowRank):
        a = form.scale * form.up.weight[run].double() @ form.down.weight[run].double()
        return a, a.new_zeros(len(a))
    if isinstance(form, Dora):
        a = form.change_of_weight(run)
        return a, a.new_zeros(len(a))
    inputs, outputs = features(module)
    if joint.delta.reads == "output":
        inputs = outputs if part is None else len(part.rows(torch.arange(outputs)))
    device = next(form.parameters()).device
    points = torch.eye(inputs + 1, inputs, dtype=torch.float64, device=device).roll(1, 0)
    training = form.training
    form.eval()  # dropout is not part of the map
    values = form(points[None], Route.of_rows(torch.tensor([run], device=device), runs))[0].detach()
    form.train(training)
    return (values[1:] - values[0]).T, values[0]


def _fold(module: Any, found: list[Joint], runs: int, run: int) -> None:
    """Write into one module what its changes, in order, make of it; computed in float64, rounded once."""
    scale, shift = module.weight, getattr(module, "bias", None)
    weight = (scale.T if isinstance(module, Conv1D) else scale).double()
    bias = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device) if shift is None else shift.double()
    weight, bias = weight.clone(), bias.clone()
    for joint in sorted(
        found, key=lambda joint: joint.hook == "pre"
    ):  # what changes the input changes it for all others
        form: Any = joint.delta.form
        part: Any = joint.delta.part
        factor = weight_of(joint.delta, run)
        if joint.hook == "pre":
            weight *= 1 + factor * form.offset[run].double()
        elif isinstance(form, Bias):
            bias += factor * form.bias[run].double()
        elif isinstance(form, Norm):
            weight += factor * form.weight[run].double()
            if form.bias is not None:
                bias += factor * form.bias[run].double()
        else:
            a, c = affine(joint, module, runs, run)
            rows = torch.arange(len(weight), device=weight.device)
            rows = rows if part is None else part.rows(rows)
            if joint.delta.reads == "input":
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
