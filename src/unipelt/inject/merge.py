"""Merge changes into the base's weights, where the merged base computes exactly the same function."""

from collections.abc import Callable
from typing import Any, Literal

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
from unipelt.inject.attach import remove, reset_dynamo
from unipelt.inject.attention import BoundPrefix
from unipelt.inject.compiled import refuse_compiled, uncompile
from unipelt.inject.hooks import BoundChange, ModuleHook
from unipelt.inject.resolve import is_linear, weight_problem
from unipelt.inject.state import MixtureState, mixture_state, unmerged_weights


def merge(
    model: PreTrainedModel, *, run: int | None = None, unmergeable: Literal["error", "keep"] = "error"
) -> PreTrainedModel:
    """Merge one run, its head included, into the base's weights, and detach. The plain base then computes the same outputs.

    Mergeable are LoRA, DoRA, (IA)³, BitFit, norms, and adapters with activation="identity", each on a linear or a norm of the
    base, with a number or a learned scalar as its weight. Raises SpecError that names every other change and the reason;
    nothing is changed then.

    unmergeable="keep" (one run, inference only): merge what can be merged, and keep the rest and the head attached. Merged
    changes no longer train. `disabled` and `detach` restore the base's weights bit for bit, from a copy of the overwritten
    ones; `save` writes the same checkpoint as before.
    """
    if unmergeable not in ("error", "keep"):
        raise SpecError(f"unmergeable={unmergeable!r}: {did_you_mean(str(unmergeable), ('error', 'keep'))}")
    attached = mixture_state(model)
    _, run = attached.locate_run(run)
    changes = attached.changes
    users: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(path)

    query_modules = {change.query.args[0] for change in changes if isinstance(change, BoundPrefix) and change.query}

    def reason(change: BoundChange) -> str | None:
        module = model.get_submodule(change.path)
        why = _reason(change, module, attached.runs, run) or _shared(module, change.path, users)
        return why or _read_by_prefix(module, query_modules)

    if unmergeable == "keep":
        if attached.runs > 1:
            raise SpecError(
                f"unmergeable='keep' with {attached.runs} runs: the base's weights hold one; save and load one run"
            )
        return _merge_leading(model, reason)
    shared = [_shared(model.get_submodule(path), path, users) for path in attached.head_modules]
    refuse("merge", attached, changes, reason, next((why for why in shared if why), None))
    remove(model)  # class names, generation settings and rows of added tokens stay
    with torch.no_grad():
        for path in dict.fromkeys(change.path for change in changes):
            _write(model.get_submodule(path), [change for change in changes if change.path == path], attached.runs, run)
        for path, head in attached.head_modules.items():
            for name, parameter in head.named_parameters():
                target = getattr(model.get_submodule(path), name.rsplit(".", 1)[-1])
                target.copy_(parameter[run])
    return model


class MergedChanges:
    """Changes that are written into the weight of their module, and the weight's own values."""

    def __init__(self, module: nn.Module, changes: list[BoundChange]):
        self.module, self.changes = module, changes
        self.original: dict[str, Tensor] = {}
        """empty while the changes are not in the weight"""

    @torch.no_grad()
    def write(self) -> None:
        if not self.original:
            self.original = {name: p.detach().clone() for name, p in self.module.named_parameters(recurse=False)}
            _write(self.module, self.changes, 1, 0)

    @torch.no_grad()
    def restore(self) -> None:
        for name, value in self.original.items():
            self.module.get_parameter(name).copy_(value)
        self.original = {}


def _merge_leading(model: PreTrainedModel, reason: Callable[[BoundChange], str | None]) -> PreTrainedModel:
    """Merge the leading mergeable changes of each module into its weight; the later ones stay on the hook."""
    attached = mixture_state(model)
    uncompile(model)
    refuse_compiled(model)
    attached.remove_hooks()
    for hook in list(attached.hooks):
        owner = getattr(hook.method, "__self__", None)
        if hook.kind != "post" or not isinstance(owner, ModuleHook):
            continue
        mergeable = [not isinstance(c.change.weight, spec.Gate) and reason(c) is None for c in owner.changes]
        leading = owner.changes[: (*mergeable, False).index(False)]
        if not leading:
            continue
        for change in leading:
            change.merged = True
            change.form.requires_grad_(False)
        attached.merged.append(MergedChanges(model.get_submodule(hook.path), leading))
        del owner.changes[: len(leading)]
        if not owner.changes:
            attached.hooks.remove(hook)
    with unmerged_weights(attached):  # leaving the (outermost) block writes the merged changes into the weights
        attached.register_hooks(model)
    reset_dynamo()
    return model


def refuse(
    verb: str, attached: MixtureState, changes: list[BoundChange], reason: Callable[[BoundChange], str | None],
    head: str | None = None,
):  # fmt: skip
    """Raise SpecError that names each change that has a reason, or a gate. verb: the action; head: why the head cannot be merged, or None."""
    if attached.options["pooling"] != "model":
        head = (
            f"it reads pooling={attached.options['pooling']!r}, which the plain model does not: "
            "train with pooling='model' (`unipelt train --pooling model`)"
        )
    reasons = {} if head is None else {"the head": head}
    gated = {
        change.name: "its gate depends on the input"
        for change in changes
        if isinstance(change.change.weight, spec.Gate)
    }
    for change in changes:
        if (why := reason(change)) is not None:
            reasons.setdefault(change.name, why)
    if reasons or gated:
        listed = "; ".join(f"{name}: {why}" for name, why in (gated | reasons).items())
        if not reasons:  # fixing the gates helps only if there is no other reason
            listed += (
                f"; fix its gates first: unipelt.fix_gates(model, {dict.fromkeys(gated, 0.5)}) with the means that "
                "unipelt.record_gates gives, or `unipelt export` with --data FILE"
            )
        raise SpecError(f"{verb} refused, nothing was changed: {listed}")


def weight_of(bound: BoundChange, run: int) -> float:
    """The constant weight of a change that is not gated."""
    return bound.weight.scale[run].item() if isinstance(bound.weight, LearnedScale) else float(bound.weight)  # type: ignore[arg-type]


def _reason(change: BoundChange, module: nn.Module, runs: int, run: int) -> str | None:
    """Why a change cannot be merged into its module, or None."""
    form, point = change.change.form, change.point
    if isinstance(form, spec.Prefix):
        return "a prefix adds positions to the attention, which no weight of the base can"
    if isinstance(form, spec.Prompt):
        return "a prompt adds vectors to the input, which no weight of the base can"
    if isinstance(form, spec.Bottleneck) and form.norm:
        return "its own LayerNorm is not linear"
    if isinstance(form, spec.Bottleneck | spec.Kronecker) and form.activation != "identity":
        return f"an adapter is not linear (its activation is {form.activation})"
    if isinstance(change.form, Scaling) and point.side == "before" and is_linear(module):
        return _unwritable(change, module)
    if point.captured is not None or point.side == "before" or point.reads not in ("input", "output"):
        return f"it reads {change.change.reads!r}, which is neither the input nor the output of {change.path!r}"
    if not isinstance(form, spec.Bias | spec.Norm) and not is_linear(module):
        return f"{change.path!r} is a {type(module).__name__}, which is not linear"
    if (why := _unwritable(change, module)) is not None:
        return why
    if isinstance(form, spec.Bias | spec.Norm | spec.LowRank | spec.Dora | spec.Scaling):
        return None
    if module.bias is None and affine(change, runs, run)[1].any():
        return f"{change.path!r} has no bias to which the adapter's could be added"
    return None


def _unwritable(change: BoundChange, module: nn.Module) -> str | None:
    if (weight := weight_problem(module)) is None:
        return None
    return f"{change.path!r} is quantised or not loaded ({weight}); load the base in full precision and merge there"


def _read_by_prefix(module: nn.Module, query_modules: set[Any]) -> str | None:
    why = "prefix(norm=True) computes its own query from this weight, which merging would change"
    return why if module in query_modules else None


def _shared(module: nn.Module, path: str, users: dict[int, list[str]]) -> str | None:
    others = (user for p in module.parameters(recurse=False) for user in users[id(p)] if user != path)
    return next((f"{path!r} shares its weight with {other!r}" for other in others), None)


def affine(change: BoundChange, runs: int, run: int) -> tuple[Tensor, Tensor]:
    """Matrix A and vector c of a change that computes A x + c; without a matrix, measured at the unit vectors and at 0."""
    form: Any = change.form
    if isinstance(form, LowRank):
        a = form.scale * form.up.weight[run].double() @ form.down.weight[run].double()
        return a, a.new_zeros(len(a))
    if isinstance(form, Dora):
        a = form.change_of_weight(run)
        return a, a.new_zeros(len(a))
    inputs, device = change.point.inputs, next(form.parameters()).device
    points = torch.eye(inputs + 1, inputs, dtype=torch.float64, device=device).roll(1, 0)
    training = form.training
    form.eval()  # dropout is not part of the map
    values = form(points[None], Route.of_rows(torch.tensor([run], device=device), runs))[0].detach()
    form.train(training)
    return (values[1:] - values[0]).T, values[0]


def _write(module: Any, changes: list[BoundChange], runs: int, run: int) -> None:
    """Write the changes of one module into its weight, in order; computed in float64 and rounded once."""
    scale, shift = module.weight, getattr(module, "bias", None)
    weight = (scale.T if isinstance(module, Conv1D) else scale).double()
    bias = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device) if shift is None else shift.double()
    weight, bias = weight.clone(), bias.clone()
    # a change of the input comes before the module, and so before all that is added to its weight: it is multiplied in last
    for change in sorted(changes, key=lambda change: change.point.side == "before"):
        form: Any = change.form
        columns: Any = change.point.columns
        factor = weight_of(change, run)
        if change.point.side == "before":
            weight *= 1 + factor * form.offset[run].double()
        elif isinstance(form, Bias):
            bias += factor * form.bias[run].double()
        elif isinstance(form, Norm):
            weight += factor * form.weight[run].double()
            if form.bias is not None:
                bias += factor * form.bias[run].double()
        else:
            a, c = affine(change, runs, run)
            rows = torch.arange(len(weight), device=weight.device)
            rows = rows if columns is None else columns.rows(rows)
            if change.point.reads == "input":
                weight[rows] += factor * a
                bias[rows] += factor * c
            else:
                bias[rows] += factor * (a @ bias[rows] + c)
                weight[rows] += factor * a @ weight[rows]
    scale.copy_(weight.T if isinstance(module, Conv1D) else weight)
    if shift is not None:
        shift.copy_(bias)
