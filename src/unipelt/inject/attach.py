"""Attach a mixture to a base, and give the base back as it was."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.errors import SiteError, SpecError, did_you_mean
from unipelt.inject.architectures import Stack
from unipelt.inject.attention import Kernels
from unipelt.inject.compiled import forget, refuse_compiled, reset_dynamo
from unipelt.inject.context import AttentionEntry, InputCapture, StackHooks, checkpoints
from unipelt.inject.discover import rows_of
from unipelt.inject.heads import POLICIES, POOLINGS, HeadHook, Pooling, build_head, find_head
from unipelt.inject.plan import Build
from unipelt.inject.resolve import ResolvedStack, find_stacks
from unipelt.inject.state import NAME, AttachedState, MixtureState, MultiMixtureState, attached_state
from unipelt.spec.location import HEAD

SAVING = ("_keys_to_ignore_on_save", "_weight_conversions")
"""attributes by which a PreTrainedModel says what it saves, and under which names"""
CLASSES = ("id2label", "label2id")
"""those by which its config names classes, which a checkpoint may name anew"""


@torch.inference_mode(False)  # else nothing that is made here could be trained later
def attach(
    model: PreTrainedModel,
    mixture: str | spec.Mixture | Sequence[str | spec.Mixture] = spec.DEFAULT,
    *,
    runs: int | Sequence[int] = 1,
    seeds: Sequence[int] | None = None,
    head: str = "train",
    pooling: str = "model",
    sites: tuple[Stack, ...] | None = None,
    fresh_head: bool = False,
    head_modules: list[str] | None = None,
    discover: bool = True,
) -> PreTrainedModel:
    """Join the changes of a mixture to a model, which stays the PreTrainedModel it is, and freeze its own parameters.

    mixture: one, or a list of mixtures that stand side by side, each changing the rows of its own runs alone. runs: how many
    sets of parameters stand side by side (see `route`); of several mixtures, how many of each, in their order. seeds: one a
    run, from which its initial values are drawn; 0, 1, … if none are given. head: `train` for every method, `frozen`, or
    `paper` (with an adapter it trains, with BitFit its bias alone, else it stays as it is: U's code). pooling: what the head
    reads, `model` (its own), `cls` or `mean`. fresh_head: draw a head that trains from the seeds too, instead of starting
    from the base's values. sites: rows for an architecture that the table lacks; without them the rows are found by running
    the model on a few tokens, unless discover=False.

    Raises SpecError for a misspelt preset or option, SiteError where the base lacks what a change asks for; the base is
    then as it was.
    """
    given: list = list(mixture) if isinstance(mixture, list | tuple) else [mixture]
    mixtures = [spec.mixture(one) for one in given]
    shares: list = list(runs) if isinstance(runs, list | tuple) else [runs] * len(mixtures)
    if not mixtures:
        raise SpecError("got an empty list; expected a mixture, or a list of at least one, such as ['lora', 'adapter']")
    if len(shares) != len(mixtures) or any(type(share) is not int or share < 1 for share in shares):
        raise SpecError(f"runs={runs!r} of {len(mixtures)} mixtures: expected at least one run of each")
    try:
        seeds = list(range(sum(shares))) if seeds is None else list(seeds)
    except TypeError:
        raise SpecError(f"seeds={seeds!r}: expected a list, one seed a run, such as [{seeds!r}]") from None
    for name, value, known in (("head", head, POLICIES), ("pooling", pooling, POOLINGS)):
        if value not in known:
            raise SpecError(f"{name}={value!r}: {did_you_mean(value, known)}")
    if len(seeds) != sum(shares):
        raise SpecError(f"runs={runs!r} with {len(seeds)} seeds: expected one seed each")
    _check_model(model)

    sites = rows_of(model, sites, discover)
    stacks = find_stacks(model, sites, sum(shares))
    build = Build(model, stacks, set(find_head(model)), several=sum(shares) > 1)
    options = {"head": head, "pooling": pooling, "sites": sites}
    parts, heads = [], []
    for one, share in zip(mixtures, shares):
        part = MixtureState(one, share, options, fresh_head)
        heads.append(build_head(model, head_modules, share))
        own = {spec.Location("", None, HEAD, path): module for path, module in heads[-1].items()}
        for location, module in {**build.mixture(one, share), **own}.items():
            part.place(location, module)
        _head_policy(part, head)
        parts.append(part)
    if len(parts) == 1:
        build.products()
    tuned = parts[0] if len(parts) == 1 else MultiMixtureState(parts)
    _cast(tuned, model)
    for run, seed in enumerate(seeds):
        tuned.begin(run, seed)
    _device(tuned, build, model)
    tuned.hooks = _hooks(tuned, build, stacks, heads, model, pooling)

    if build.prefixes:
        modules = [*model.modules()]
        configs = {
            id(m.config): m.config for m in modules if hasattr(getattr(m, "config", None), "_attn_implementation")
        }
        tuned.kernels = Kernels(list(configs.values()))
        tuned.kernels.enter()
    tuned.before = {
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "saving": {name: vars(model)[name] for name in SAVING if name in vars(model)},
        "classes": class_names(model),
    }
    model.requires_grad_(False)
    # a Trainer's checkpoint holds the tuned part alone; exactly what it lacks, or a resuming Trainer warns
    model._keys_to_ignore_on_save = list(model.state_dict())
    model._weight_conversions = []  # type: ignore[assignment]  # its keys are saved as they are: renaming is for the base's
    model.add_module(NAME, tuned)
    tuned.train(model.training)
    tuned.register_hooks(model)
    reset_dynamo()
    return model


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Give the base back: weights, hooks, requires_grad, attention implementation and attributes are as they were."""
    tuned = attached_state(model)
    forget(model)
    refuse_compiled(model)
    tuned.remove_hooks()
    if tuned.kernels is not None:
        tuned.kernels.restore()
    delattr(model, NAME)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(tuned.before["requires_grad"][name])
    for name in SAVING:
        delattr(model, name)
    for name, value in tuned.before["saving"].items():
        setattr(model, name, value)
    for name, value in tuned.before["classes"].items():
        setattr(model.config, name, value)
    reset_dynamo()
    return model


def class_names(model: PreTrainedModel) -> dict[str, Any]:
    """What its config says of classes."""
    return {name: getattr(model.config, name) for name in CLASSES if hasattr(model.config, name)}


@contextmanager
def disabled(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Inside the block the model is its plain base, its own head included."""
    tuned = attached_state(model)
    if not tuned.hooked:  # inside another such block
        yield model
        return
    tuned.remove_hooks()
    if tuned.kernels is not None:
        tuned.kernels.restore()
    try:
        yield model
    finally:
        if getattr(model, NAME, None) is tuned:  # else it was detached, or another mixture took its place
            if tuned.kernels is not None:
                tuned.kernels.enter()
            tuned.register_hooks(model)


@contextmanager
def route(model: PreTrainedModel, rows: Sequence[int] | Tensor | None = None) -> Iterator[PreTrainedModel]:
    """Inside the block each row of a batch belongs to the run that `rows` names; without it, to equal blocks of rows.

    A model with several runs takes equal blocks, the first block run 0, unless told otherwise. Generation with beams
    repeats the route as it repeats the rows. Raises SpecError for a run that is not there; a forward of another number of
    rows raises SiteError.
    """
    tuned = attached_state(model)
    before = tuned.route
    tuned.route = before._replace(rows=None if rows is None else _whole_numbers(rows, tuned))
    try:
        yield model
    finally:
        tuned.route = before


def _whole_numbers(rows: Sequence[int] | Tensor, tuned: AttachedState) -> Tensor:
    try:
        given = torch.as_tensor(rows, device=next((p.device for p in tuned.parameters()), None))
    except (TypeError, ValueError, RuntimeError):
        given = torch.empty(0)
    whole = given.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if not whole or given.dim() != 1 or len(given) == 0 or int(given.min()) < 0 or int(given.max()) >= tuned.runs:
        raise SpecError(f"rows={rows!r}: expected one run of 0 to {tuned.runs - 1} for each row, as whole numbers")
    return given.long()


def _check_model(model: PreTrainedModel) -> None:
    if hasattr(model, "_orig_mod"):
        raise SiteError(
            "the model is compiled, and compiled code ignores new hooks: attach to the plain model, then compile it"
        )
    if not hasattr(model, "base_model") or not hasattr(model, "config"):
        raise SiteError(f"expected a transformers PreTrainedModel; got {type(model).__name__}")
    if isinstance(joined := getattr(model, NAME, None), AttachedState):
        raise SiteError(f"the model has {joined.name!r} attached already; call unipelt.detach(model) first")
    if hasattr(model, NAME):
        raise SiteError(f"the model has an attribute {NAME!r} of its own: nothing can be attached under that name")
    for path, module in model.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if type(getattr(hook, "__self__", None)).__module__.startswith(__package__):
                raise SiteError(
                    f"{path or 'the model'} is a part of another model too, which has a mixture attached: "
                    "detach that first, or attach to a copy"
                )
    refuse_compiled(model)


def _head_policy(tuned: MixtureState, policy: str) -> None:
    """What of the head is trained; `paper`, as U's code: all with an adapter, its bias alone with BitFit, else nothing."""
    forms = {change.form.name for change in tuned.mixture.changes}
    if policy == "paper":
        adapted = forms & {"bottleneck", "kronecker"} or not forms
        policy = "train" if adapted else "bias" if forms == {"bias"} else "frozen"
    for name, parameter in tuned.named_parameters():
        if name.startswith("head."):
            parameter.requires_grad_(policy == "train" or (policy == "bias" and name.endswith("bias")))


def _cast(tuned: AttachedState, model: PreTrainedModel) -> None:
    """MixtureState parameters are float32 beside a half-precision base, float64 beside a float64 one."""
    floating = [p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype.itemsize > 1]
    dtype = torch.promote_types(floating[0], torch.float32) if floating else torch.float32
    tuned.to(dtype)


def _device(tuned: AttachedState, build: Build, model: PreTrainedModel) -> None:
    """A change lives where its target lives: joined modules may be on several devices."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    tuned.to(device) if device.type != "meta" else tuned.to_empty(device=device)
    if len({p.device for p in model.parameters()}) < 2:
        return
    for side in (build.before, build.after):
        for path, hook_on in side.items():
            target = next(model.get_submodule(path).parameters(), None)
            for delta in hook_on.deltas:
                if target is not None:
                    delta.form.to(target.device)
                    if isinstance(delta.weight, nn.Module):
                        delta.weight.to(target.device)
    for path, entry in build.prefixes.items():
        for delta in entry.deltas:
            if isinstance(delta.weight, nn.Module):
                delta.weight.to(next(model.get_submodule(path).parameters()).device)


def _hooks(
    tuned: AttachedState,
    build: Build,
    stacks: list[ResolvedStack],
    heads: list[dict[str, Any]],
    model: PreTrainedModel,
    pooling: str,
) -> list[tuple[str, str, Any]]:
    """Every hook of an attached model, in the order in which they are to register_hooks."""
    hooks: list[tuple[str, str, Any]] = []
    for stack in stacks:
        pooled = {mask for name, mask in build.pooled if name == stack.row.name}
        hands_on = stack.row.attention.prefix and stack.row.keywords
        by_mask = not hands_on and getattr(model, "supports_gradient_checkpointing", False)
        every = [delta for entry in build.prefixes.values() if entry.flow is stack.flow for delta in entry.deltas]
        prefixes = list({delta.table: delta for delta in every}.values())
        door = StackHooks(stack.module, stack.flow, tuned.current_route, pooled, hands_on, prefixes)
        flows = pooled or prefixes or tuned.runs > 1
        if build.prefixes:
            hooks.append((stack.path, "pre with keywords", AttentionHook(tuned).enter))
        if flows or any(flow is stack.flow for flow, _ in build.holds.values()):
            hooks.append((stack.path, "pre with keywords", door.enter))
            hooks.append((stack.path, "post", door.leave))
        for layer in stack.layers:
            for _, attention in stack.attentions():
                path = f"{layer.path}.{attention.module}"
                held = build.holds.pop(path, (None, None))[1]
                hooks.append((path, "pre with keywords", AttentionEntry(stack.flow, held, by_mask).enter))
    hooks += [(path, "pre with keywords", InputCapture(flow, name).enter) for path, (flow, name) in build.holds.items()]
    hooks += [(path, "pre with keywords", entry.enter) for path, entry in build.prefixes.items()]
    hooks += [(path, "pre", hook_on.before) for path, hook_on in build.before.items()]
    hooks += [(path, "post", hook_on.after) for path, hook_on in build.after.items()]
    for path in heads[0]:
        hooks.append((path, "post", HeadHook([head[path] for head in heads], tuned.current_route).after))
    if pooling != "model":
        if len(stacks) != 1 or stacks[0].row.causal or model.base_model is model:
            raise SiteError(
                f"pooling={pooling!r}: {type(model).__name__} is no encoder with a head that pools; use pooling='model'"
            )
        path = next(path for path, module in model.named_modules() if module is model.base_model)
        hooks.append((path, "post with keywords", Pooling(pooling == "mean").after))
    try:
        embeddings = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # a model that has none, or names none
        embeddings = None
    place = next((path for path, module in model.named_modules() if module is embeddings), None)
    if place:
        hooks.append((place, "post", Checkpointed(model).after))
    return hooks


class AttentionHook:
    """Looks at each forward whether the user has set another attention implementation."""

    def __init__(self, tuned: AttachedState):
        self.tuned = tuned

    def enter(self, *_: Any) -> None:
        self.tuned.kernels.enter()


class Checkpointed:
    """Reentrant gradient checkpointing drops the gradients of a layer whose input needs none: then the embeddings need one."""

    def __init__(self, model: PreTrainedModel):
        self.model = model

    def after(self, embeddings: nn.Module, args: tuple, output: Any) -> None:
        if isinstance(output, Tensor) and not output.requires_grad and checkpoints(self.model, "reentrant"):
            output.requires_grad_(True)
