"""Attach a mixture to a base, and give the base back as it was."""

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.errors import SiteError, SpecError, did_you_mean
from unipelt.inject.added_tokens import put_back, read_added
from unipelt.inject.architectures import Stack
from unipelt.inject.attention import Kernels
from unipelt.inject.build import build
from unipelt.inject.compiled import refuse_compiled, uncompile
from unipelt.inject.discover import rows_of
from unipelt.inject.heads import POLICIES, POOLINGS, build_head, find_head, train_head
from unipelt.inject.plan import Base
from unipelt.inject.registration import Joined, hooks_of
from unipelt.inject.resolve import find_stacks
from unipelt.inject.state import NAME, AttachedState, MixtureState, MultiMixtureState, attached_state
from unipelt.spec.location import HEAD

SAVING = ("_keys_to_ignore_on_save", "_weight_conversions", "save_pretrained")
"""attributes of a PreTrainedModel that say what it saves, under which names, and how"""
TRAINABLE = "_hf_peft_config_loaded"
"""the attribute by which transformers' Trainer knows that something trains on top of quantised weights"""
CLASSES = ("id2label", "label2id")
"""those by which its config names classes, which a checkpoint may name anew"""


def attach(
    model: PreTrainedModel,
    mixture: str | spec.Mixture | Sequence[str | spec.Mixture] = spec.DEFAULT,
    *,
    runs: int | Sequence[int] = 1,
    seeds: Sequence[int] | None = None,
    head: str = "train",
    pooling: str = "model",
    stacks: tuple[Stack, ...] | None = None,
    fresh_head: bool = False,
    head_modules: list[str] | None = None,
    discover: bool = True,
) -> PreTrainedModel:
    """Join the changes of a mixture to a model, which stays the PreTrainedModel it is, and freeze its own parameters.

    mixture: one, or a list of mixtures that stand side by side, each changing the rows of its own runs alone. runs: how many
    sets of parameters stand side by side (see `route`); of several mixtures, how many of each, in their order. seeds: one a
    run, from which its initial values are drawn; 0, 1, … if none are given. head: `train` for every method, `frozen`, or
    `paper` (with an adapter it trains, with BitFit its bias alone, else it stays as it is: U's code). pooling: what the head
    reads, `model` (its own), `cls` or `mean`. stacks: rows for an architecture that the table lacks; without them the rows are
    found by running the model on a few tokens, unless discover=False. fresh_head: draw a head that trains from the seeds too, instead of starting from the base's values. head_modules: the paths
    of the head's modules, where they are not to be found by structure.

    Raises SpecError for a misspelt preset or option, SiteError where the base lacks what a change asks for, where nothing
    would train, or where its weights are not in memory; the base is then as it was.
    """
    mixtures, shares, seeds = _given(mixture, runs, seeds)
    for name, value, known in (("head", head, POLICIES), ("pooling", pooling, POOLINGS)):
        if value not in known:
            raise SpecError(f"{name}={value!r}: {did_you_mean(value, known)}")
    _check_model(model)
    options = {"head": head, "pooling": pooling, "stacks": rows_of(model, stacks, discover)}
    return join(model, mixtures, shares, seeds, options, fresh_head, head_modules, refuse_untrained=True)


@torch.inference_mode(False)  # else nothing that is made here could be trained later
def join(
    model: PreTrainedModel, mixtures: list[spec.Mixture], shares: list[int], seeds: list[int], options: dict[str, Any],
    fresh_head: bool, head_modules: list[str] | None, *, refuse_untrained: bool,
) -> PreTrainedModel:  # fmt: skip
    """What `attach` does once its options are checked. refuse_untrained: whether each mixture must train something."""
    head, pooling = options["head"], options["pooling"]
    stacks = find_stacks(model, options["stacks"])
    options = options | {"stacks": tuple(stack.row for stack in stacks)}
    base = Base(model, stacks, frozenset(find_head(model)), several=sum(shares) > 1)
    parts, heads = [], []
    joined: Joined = []
    for number, (one, share) in enumerate(zip(mixtures, shares)):
        built = build(one, share, number, base)
        joined += built.joined
        part = MixtureState(one, share, options, fresh_head)
        heads.append(build_head(model, head_modules, share))
        own = {spec.Location("", None, HEAD, path): module for path, module in heads[-1].items()}
        for location, module in {**built.modules, **own}.items():
            part.place(location, module)
        train_head(part, head)
        if refuse_untrained and not any(p.requires_grad for p in part.parameters()):
            _refuse_untrained(model, one, head, bool(heads[-1]))
        parts.append(part)
    state: AttachedState = parts[0] if len(parts) == 1 else MultiMixtureState(parts)
    state.depth = max(stack.layers[-1].index + 1 for stack in stacks)
    _cast(state, model)
    for run, seed in enumerate(seeds):
        state.begin(run, seed)
    _to_devices(state, joined, model)
    for path, module in state.named_modules():
        module.path = path  # type: ignore[assignment]  # by which DataParallel's copy of it is found
    if any(point.side == "attention" for point, _ in joined):
        state.kernels = Kernels(list(_configs(model).values()))
    state.hooks = hooks_of(state, base, joined, heads, pooling)
    if state.kernels is not None:
        state.kernels.wrap()

    state.before = {
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "attributes": {name: vars(model)[name] for name in (*SAVING, TRAINABLE) if name in vars(model)},
        "classes": class_names(model),
    }
    model.requires_grad_(False)
    # a Trainer's checkpoint holds the tuned part alone; exactly what it lacks, or a resuming Trainer warns
    model._keys_to_ignore_on_save = list(model.state_dict())
    model._weight_conversions = []  # type: ignore[assignment]  # its keys are saved as they are: renaming is for the base's
    model.save_pretrained = partial(save_pretrained, model)  # type: ignore[method-assign]  # survives deepcopy and pickle
    if getattr(model, "is_quantized", False):
        setattr(model, TRAINABLE, True)
    model.add_module(NAME, state)
    state.before["reading"] = model.register_load_state_dict_pre_hook(read_added)
    state.train(model.training)
    state.register_hooks(model)
    reset_dynamo()
    return model


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Give the base back: weights, hooks, requires_grad, attention implementation and attributes are as they were."""
    state = attached_state(model)
    uncompile(model)
    refuse_compiled(model)
    state.remove_hooks()
    if state.kernels is not None:
        state.kernels.restore()
    state.before["reading"].remove()
    delattr(model, NAME)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(state.before["requires_grad"][name])
    for name in {*SAVING, TRAINABLE} & vars(model).keys():
        delattr(model, name)
    for name, value in state.before["attributes"].items():
        setattr(model, name, value)
    for name, value in state.before["classes"].items():
        setattr(model.config, name, value)
    if "tokens" in state.before:
        put_back(model, state.before["tokens"])
    reset_dynamo()
    return model


def save_pretrained(model: PreTrainedModel, save_directory: Any, *arguments: Any, **options: Any) -> None:
    """`model.save_pretrained` while something is attached: see `unipelt.checkpoint.pretrained`, which knows this module."""
    import_module("unipelt.checkpoint.pretrained").save_pretrained(model, save_directory, *arguments, **options)


def class_names(model: PreTrainedModel) -> dict[str, Any]:
    """What its config says of classes."""
    return {name: getattr(model.config, name) for name in CLASSES if hasattr(model.config, name)}


def reset_dynamo() -> None:
    """Make torch.compile look again: the code that it has made knows nothing of hooks that came or went."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def _given(mixture: Any, runs: Any, seeds: Any) -> tuple[list[spec.Mixture], list[int], list[int]]:
    """The mixtures, how many runs each has, and one seed a run."""
    mixtures = [spec.mixture(one) for one in (mixture if isinstance(mixture, list | tuple) else [mixture])]
    shares = list(runs) if isinstance(runs, list | tuple) else [runs] * len(mixtures)
    if not mixtures:
        raise SpecError("got an empty list; expected a mixture, or a list of at least one, such as ['lora', 'adapter']")
    if len(shares) != len(mixtures) or any(type(share) is not int or share < 1 for share in shares):
        raise SpecError(f"runs={runs!r} of {len(mixtures)} mixtures: expected at least one run of each")
    try:
        seeds = list(range(sum(shares))) if seeds is None else list(seeds)
    except TypeError:
        raise SpecError(f"seeds={seeds!r}: expected a list, one seed a run, such as [{seeds!r}]") from None
    if len(seeds) != sum(shares):
        raise SpecError(f"runs={runs!r} with {len(seeds)} seeds: expected one seed each")
    return mixtures, shares, seeds


def _refuse_untrained(model: PreTrainedModel, mixture: spec.Mixture, policy: str, has_head: bool) -> None:
    why = f"head={policy!r} keeps the head as it is" if has_head else f"{type(model).__name__} has no head of its own"
    raise SiteError(
        f"{mixture.name!r}: nothing would train, because it changes nothing in the base and {why}; "
        + ("use head='train'" if has_head else "use another method, such as lora, or a model class with a head")
    )


def _check_model(model: PreTrainedModel) -> None:
    if hasattr(model, "_orig_mod"):
        raise SiteError(
            "the model is compiled, and compiled code ignores new hooks: attach to the plain model, then compile it"
        )
    if not hasattr(model, "base_model") or not hasattr(model, "config"):
        raise SiteError(f"expected a transformers PreTrainedModel; got {type(model).__name__}")
    if isinstance(state := getattr(model, NAME, None), AttachedState):
        raise SiteError(f"the model has {state.name!r} attached already; call unipelt.detach(model) first")
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
    _check_memory(model)


def _check_memory(model: PreTrainedModel) -> None:
    """Raise SiteError where weights are offloaded to disk or main memory; a model that is all on `meta` computes nothing, and
    its parameters can be counted."""
    offloaded = [name for name, p in model.named_parameters() if p.is_meta]
    hooked = any(hasattr(module, "_hf_hook") for module in model.modules())
    if offloaded and (hooked or len(offloaded) < len(list(model.parameters()))):
        raise SiteError(
            f"{len(offloaded)} of the base's parameters are not in memory, {offloaded[0]!r} for one: device_map has offloaded them; "
            "expected all on devices that compute: load with a smaller dtype, quantised, or with more devices"
        )


def _cast(state: AttachedState, model: PreTrainedModel) -> None:
    """Tuned parameters are float32 beside a half-precision base, float64 beside a float64 one."""
    floating = [p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype.itemsize > 1]
    state.to(torch.promote_types(floating[0], torch.float32) if floating else torch.float32)


def _to_devices(state: AttachedState, joined: Joined, model: PreTrainedModel) -> None:
    """Put each change where the module is that it changes: these may be on several devices."""
    devices = {p.device: None for p in model.parameters()}
    device = next(iter(devices), torch.device("cpu"))
    state.to(device) if device.type != "meta" else state.to_empty(device=device)
    if len(devices) < 2:
        return
    for point, change in joined:
        target = next(model.get_submodule(point.path).parameters(), None)
        own = [change.weight] if point.side == "attention" else [change.form, change.weight]  # a table is of all layers
        for module in own:
            if target is not None and isinstance(module, nn.Module):
                module.to(target.device)
    for part in state.parts:
        for path in part.head_modules():
            target = next(model.get_submodule(path).parameters())
            part.get_submodule(f"{HEAD}.{path}").to(target.device)


def _configs(model: PreTrainedModel) -> dict[int, Any]:
    """Every config of a model that names an attention implementation."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return {id(config): config for config in configs if hasattr(config, "_attn_implementation")}
