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
from unipelt.inject.added_tokens import load_added_rows, put_back
from unipelt.inject.architectures import Stack
from unipelt.inject.attention import AttentionImplementations, BoundPrefix
from unipelt.inject.build import build, hooks_of
from unipelt.inject.compiled import refuse_compiled, uncompile
from unipelt.inject.discover import entries_of
from unipelt.inject.heads import POLICIES, POOLINGS, find_head, train_head
from unipelt.inject.hook_points import Base
from unipelt.inject.resolve import find_stacks, warn_of_skipped_layers
from unipelt.inject.state import NAME, AttachedState, attached_state

SAVING = ("_keys_to_ignore_on_save", "_weight_conversions", "save_pretrained")
"""attributes of a PreTrainedModel that decide what it saves, under which names, and how"""
PEFT_FLAG = "_hf_peft_config_loaded"
"""attribute that tells transformers' Trainer that parameters train on top of quantised weights"""
CLASSES = ("id2label", "label2id")
"""fields of a config that name the classes; loading a checkpoint replaces them"""


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
    """Attach the changes of a mixture to a model and freeze the model's own parameters. It stays the same PreTrainedModel.

    mixture: a mixture, or a list of them; each then changes only the rows of its own runs.
    runs: number of sets of parameters (see `route`); for a list of mixtures, one number or one per mixture.
    seeds: one per run, from which its initial values are drawn (default: 0, 1, …).
    head: `train` (always), `frozen` (never), or `paper`: as in UniPELT's code, the head trains with adapters (bottleneck
    or Kronecker) and with the method head; only its bias trains with BitFit; else it is frozen.
    pooling: what the head reads: `model` (the model's own pooling), `cls` (the first token) or `mean`.
    stacks: entries for an architecture that the table lacks (default: found by running the model on a few tokens).
    fresh_head: draw the initial values of a head that trains from the seeds, instead of starting from the base's values.
    head_modules: paths of the head's modules (default: found from the model's structure).
    discover: False: do not look for the entries of an unknown architecture.

    Raises SpecError for a misspelt preset or option. Raises SiteError if the base lacks what a change needs, if nothing would
    train, or if weights are not in memory. The base is unchanged after an error.
    """
    mixtures, runs_each, seeds = _as_lists(mixture, runs, seeds)
    for name, value, known in (("head", head, POLICIES), ("pooling", pooling, POOLINGS)):
        if value not in known:
            raise SpecError(f"{name}={value!r}: {did_you_mean(value, known)}")
    _check_model(model)
    options = {"head": head, "pooling": pooling, "stacks": entries_of(model, stacks, discover)}
    return attach_checked(model, mixtures, runs_each, seeds, options, fresh_head, head_modules, refuse_untrained=True)


@torch.inference_mode(False)  # parameters made in inference mode could never train
def attach_checked(
    model: PreTrainedModel, mixtures: list[spec.Mixture], runs_each: list[int], seeds: list[int], options: dict[str, Any],
    fresh_head: bool, head_modules: list[str] | None, *, refuse_untrained: bool,
) -> PreTrainedModel:  # fmt: skip
    """Attach mixtures whose options are checked. Raises SiteError; refuse_untrained: also for one that would train nothing."""
    head, pooling = options["head"], options["pooling"]
    stacks = find_stacks(model, options["stacks"])
    options = options | {"stacks": tuple(stack.entry for stack in stacks)}
    base = Base(model, stacks, frozenset(find_head(model)), several=sum(runs_each) > 1)
    warn_of_skipped_layers(base.config.model_type, stacks)
    states = []
    for number, (mixture, runs) in enumerate(zip(mixtures, runs_each)):
        attached = build(mixture, runs, number, base, options=options, fresh_head=fresh_head, head_modules=head_modules)
        train_head(attached, head)
        if refuse_untrained and not any(p.requires_grad for p in attached.parameters()):
            _refuse_untrained(model, mixture, head, bool(attached.head_modules))
        states.append(attached)
    state: AttachedState = states[0] if len(states) == 1 else AttachedState(states)
    state.depth = max(stack.layers[-1].index + 1 for stack in stacks)
    _cast(state, model)
    for run, seed in enumerate(seeds):
        state.reset_run(run, seed)
    _to_devices(state, model)
    for path, module in state.named_modules():
        module.path = path  # type: ignore[assignment]  # DataParallel's copies are found by this path
    if any(isinstance(change, BoundPrefix) and change.point.stack.dispatches for change in state.all_changes()):
        state.kernels = AttentionImplementations(model)
    state.hooks = hooks_of(state, base, pooling)
    if state.kernels is not None:
        state.kernels.wrap()

    state.base_state = {
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "attributes": {name: vars(model)[name] for name in (*SAVING, PEFT_FLAG) if name in vars(model)},
    }
    state.before_load = {"config": class_names(model)}
    model.requires_grad_(False)
    # a Trainer's checkpoint holds only the trained parameters; list exactly the missing keys, or Trainer warns when it resumes
    model._keys_to_ignore_on_save = list(model.state_dict())
    model._weight_conversions = []  # type: ignore[assignment]  # conversions are for the base's keys: ours are saved unchanged
    model.save_pretrained = partial(save_pretrained, model)  # type: ignore[method-assign]  # survives deepcopy and pickle
    if getattr(model, "is_quantized", False):
        setattr(model, PEFT_FLAG, True)
    model.add_module(NAME, state)
    state.base_state["reading"] = model.register_load_state_dict_pre_hook(load_added_rows)
    state.train(model.training)
    state.register_hooks(model)
    reset_dynamo()
    return model


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Restore the base: weights, hooks, requires_grad, attention implementation and attributes."""
    replaced = remove(model).before_load
    for name, value in replaced["config"].items():
        setattr(model.config, name, value)
    if "generation_config" in replaced:
        model.generation_config = replaced["generation_config"]
    if "tokens" in replaced:
        put_back(model, replaced["tokens"])
    return model


def remove(model: PreTrainedModel) -> AttachedState:
    """Detach, but leave what a checkpoint has replaced besides parameters. Returns what was attached."""
    state = attached_state(model)
    uncompile(model)
    refuse_compiled(model)
    state.remove_hooks()
    while state.merged:
        state.merged.pop().restore()
    if state.kernels is not None:
        state.kernels.restore()
    state.base_state["reading"].remove()
    delattr(model, NAME)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(state.base_state["requires_grad"].get(name, parameter.requires_grad))
    for name in {*SAVING, PEFT_FLAG} & vars(model).keys():
        delattr(model, name)
    for name, value in state.base_state["attributes"].items():
        setattr(model, name, value)
    reset_dynamo()
    return state


def save_pretrained(model: PreTrainedModel, save_directory: Any, *arguments: Any, **options: Any) -> None:
    """`model.save_pretrained` while a mixture is attached; calls `unipelt.checkpoint.pretrained`, which imports this module."""
    import_module("unipelt.checkpoint.pretrained").save_pretrained(model, save_directory, *arguments, **options)


def class_names(model: PreTrainedModel) -> dict[str, Any]:
    """The fields of the model's config that name its classes."""
    return {name: getattr(model.config, name) for name in CLASSES if hasattr(model.config, name)}


def reset_dynamo() -> None:
    """Make torch.compile look again: the code that it has made knows nothing of hooks that came or went."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def _as_lists(mixture: Any, runs: Any, seeds: Any) -> tuple[list[spec.Mixture], list[int], list[int]]:
    """The mixtures, the number of runs of each, and one seed per run. Raises SpecError where the numbers do not fit."""
    mixtures = [spec.mixture(item) for item in (mixture if isinstance(mixture, list | tuple) else [mixture])]
    runs_each = list(runs) if isinstance(runs, list | tuple) else [runs] * len(mixtures)
    if not mixtures:
        raise SpecError("got an empty list; expected a mixture, or a list of at least one, such as ['lora', 'adapter']")
    if len(runs_each) != len(mixtures) or any(type(number) is not int or number < 1 for number in runs_each):
        raise SpecError(f"runs={runs!r} of {len(mixtures)} mixtures: expected at least one run of each")
    try:
        seeds = list(range(sum(runs_each))) if seeds is None else list(seeds)
    except TypeError:
        raise SpecError(f"seeds={seeds!r}: expected a list with one seed per run, such as [{seeds!r}]") from None
    if len(seeds) != sum(runs_each):
        raise SpecError(f"runs={runs!r} with {len(seeds)} seeds: expected one seed each")
    return mixtures, runs_each, seeds


def _refuse_untrained(model: PreTrainedModel, mixture: spec.Mixture, policy: str, has_head: bool) -> None:
    why = f"head={policy!r} keeps the head as it is" if has_head else f"{type(model).__name__} has no head of its own"
    raise SiteError(
        f"{mixture.name!r}: nothing would train, because it changes nothing in the base and {why}; "
        + ("use head='train'" if has_head else "use another method, such as lora, or a model class with a head")
    )


def _check_model(model: PreTrainedModel) -> None:
    """Raise SiteError for a model to which nothing can be attached."""
    if hasattr(model, "_orig_mod"):
        raise SiteError(
            "the model is compiled, and compiled code ignores new hooks: attach to the plain model, then compile it"
        )
    if not hasattr(model, "base_model") or not hasattr(model, "config"):
        raise SiteError(f"expected a transformers PreTrainedModel; got {type(model).__name__}")
    if isinstance(state := getattr(model, NAME, None), AttachedState):
        raise SiteError(f"the model has {state.name!r} attached already; call unipelt.detach(model) first")
    if hasattr(model, NAME):
        raise SiteError(f"the model already has an attribute {NAME!r}, the name under which changes are attached")
    for path, module in model.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            if type(getattr(hook, "__self__", None)).__module__.startswith(__package__):
                raise SiteError(
                    f"{path or 'the model'} is shared with another model that has a mixture attached: "
                    "detach that one first, or attach to a copy"
                )
    refuse_compiled(model)
    _check_memory(model)


def _check_memory(model: PreTrainedModel) -> None:
    """Raise SiteError if weights are offloaded to disk or main memory. A model that is all on `meta` is accepted: its
    parameters can be counted."""
    offloaded = [name for name, p in model.named_parameters() if p.is_meta]
    hooked = any(hasattr(module, "_hf_hook") for module in model.modules())
    if offloaded and (hooked or len(offloaded) < len(list(model.parameters()))):
        raise SiteError(
            f"{len(offloaded)} of the base's parameters are not in memory, such as {offloaded[0]!r}: device_map has offloaded them; "
            "expected all weights on compute devices: load with a smaller dtype, quantised, or with more devices"
        )


def _cast(state: AttachedState, model: PreTrainedModel) -> None:
    """Attached parameters are float32 for a half-precision base, float64 for a float64 base."""
    floating = [p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype.itemsize > 1]
    state.to(torch.promote_types(floating[0], torch.float32) if floating else torch.float32)


def _to_devices(state: AttachedState, model: PreTrainedModel) -> None:
    """Move each change to the device of the module that it changes."""
    devices = {p.device: None for p in model.parameters()}
    device = next(iter(devices), torch.device("cpu"))
    state.to(device) if device.type != "meta" else state.to_empty(device=device)
    if len(devices) < 2:
        return
    for change in state.all_changes():
        target = next(model.get_submodule(change.path).parameters(), None)
        # a prefix table serves all layers: it stays on the first device
        for module in (change.weight, None if isinstance(change, BoundPrefix) else change.form):
            if target is not None and isinstance(module, nn.Module):
                module.to(target.device)
    for attached in state.mixtures:
        for path, module in attached.head_modules.items():
            module.to(next(model.get_submodule(path).parameters()).device)
