"""Saved runs on a base: one, or several side by side under names, of different methods and numbers of classes."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from unipelt import spec
from unipelt.checkpoint.bases import name_classes
from unipelt.checkpoint.description import Description, Head, parse_description, tensors_file
from unipelt.checkpoint.disk import read_file, resolve
from unipelt.checkpoint.fingerprint import check_base, check_tokenizer
from unipelt.checkpoint.folder import head_of, not_finite
from unipelt.checkpoint.header import values_hash
from unipelt.checkpoint.safe import parse_safetensors
from unipelt.errors import CheckpointError, SpecError, UserError, did_you_mean
from unipelt.inject.added_tokens import PREFIX, added_rows, put_added, rows_problem, take_added
from unipelt.inject.architectures import Stack, entries_for
from unipelt.inject.attach import attach, class_names, detach
from unipelt.inject.build import build
from unipelt.inject.discover import entries_of
from unipelt.inject.heads import find_head
from unipelt.inject.hook_points import Base
from unipelt.inject.hooks import BoundChange
from unipelt.inject.resolve import find_stacks
from unipelt.inject.state import NAME, AttachedState, attached_state
from unipelt.spec.location import HEAD

Folder = str | os.PathLike
READ = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""dtypes from which a tuned parameter is read; whole numbers, complex ones and 8 bits cannot hold one"""


def load(
    model: PreTrainedModel,
    folder: Folder | Sequence[Folder] | Mapping[str, Folder],
    *,
    stacks: tuple[Stack, ...] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PreTrainedModel:
    """Attach what a checkpoint holds to its base, and name its classes. A hub repository id loads like a folder.

    folder: one, or a list of them, or folders by name, whose runs then stand side by side: `route(model, names)` says which
    run each row of a batch belongs to. In a list a run has the name of its folder, or its whole path where two end alike.
    Outputs of runs with fewer classes are filled with -inf. stacks: as `attach` takes them. tokenizer: the one that will be
    used, to be checked against that of the training. Tokens that were added before the training get their rows in the
    embeddings back; `detach` takes them away again.

    Raises CheckpointError for another base, tokenizer, version, key or shape, and for a damaged file; the base is then as it
    was.
    """
    named = {Path(folder).name: folder} if isinstance(folder, str | os.PathLike) else _named(folder)
    runs = [_read(model, name, path, tokenizer) for name, path in named.items()]
    return _attach(model, runs, stacks, resize_heads=not isinstance(folder, str | os.PathLike))


def add(model: PreTrainedModel, folder: Folder, name: str | None = None) -> PreTrainedModel:
    """Load one more run beside those that a model has; without a name it has that of its folder. peft: `load_adapter`.

    Everything is attached again: the runs keep their values and their order, the new one is the last. Raises
    CheckpointError where it cannot be loaded, SpecError where the name is taken; the model is then as it was.
    """
    name = name or Path(folder).name
    if not isinstance(getattr(model, NAME, None), AttachedState):
        return load(model, {name: folder})
    state = attached_state(model)
    before, stacks = _runs(model), state.mixtures[0].options["stacks"]
    if name in state.names:
        raise SpecError(f"a run {name!r} is attached already; take another name, or unipelt.remove(model, {name!r})")
    detach(model)
    try:
        return _attach(model, [*before, _read(model, name, folder)], stacks)
    except UserError:
        _attach(model, before, stacks)
        raise


def remove(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Take one run off a model, by its name; after the last the model is its plain base. peft: `delete_adapter`.

    Raises SpecError where there is no such run.
    """
    state = attached_state(model)
    runs, stacks = _runs(model), state.mixtures[0].options["stacks"]
    remaining = [run for run in runs if run.name != name]
    if len(remaining) == len(runs):
        raise SpecError(f"no run {name!r} is attached: {did_you_mean(name, [run.name for run in runs])}")
    detach(model)
    return _attach(model, remaining, stacks) if remaining else model


def attach_read(
    model: PreTrainedModel,
    mixture: spec.Mixture,
    head: dict[str, Tensor],
    values_of: Callable[[dict[str, Tensor], list[BoundChange]], dict[str, Tensor]],
    stacks: tuple[Stack, ...] | None,
    folder: Path,
) -> PreTrainedModel:
    """Attach what was read of another library's folder.

    head: parameters of head modules, by their names in the base. values_of: from the parameters that the mixture has on the
    base, without values, and its changes there, to values by name. Raises CheckpointError where one does not fit.
    """
    modules = sorted({name.rpartition(".")[0] for name in head})
    for path in modules:
        if not isinstance(model.get_submodule(path), nn.Linear | nn.LayerNorm):
            kind = type(model.get_submodule(path)).__name__
            raise CheckpointError(f"{folder}: a head with a {kind}, {path!r}; expected linears and LayerNorms")
    shapes, changes = _without_values(model, mixture, modules, stacks)
    tensors = values_of(shapes, changes)
    tensors |= {name: head[name.removeprefix("head.")] for name in shapes if name.startswith("head.")}
    policy: Head = {"policy": "train" if modules else "frozen", "pooling": "model", "modules": modules}
    run = NamedRun(folder.name, mixture, tensors, policy, error_prefix=f"{folder}: another base, or a damaged folder")
    return _attach(model, [run], stacks, resize_heads=False)


@dataclass(frozen=True)
class NamedRun:
    """One run that is, or will be, attached."""

    name: str
    mixture: spec.Mixture
    tensors: dict[str, Shaped[Tensor, "..."]]
    head: Head
    tokens: int = 0
    """that are the base's own"""
    added: dict[str, Shaped[Tensor, "token ..."]] = field(default_factory=dict)
    """rows of the embeddings for the tokens behind them"""
    description: Description | None = None
    """of a saved run"""
    error_prefix: str = "a run"
    """begins the message of an error"""


def _named(folders: Sequence[Folder] | Mapping[str, Folder]) -> dict[str, Folder]:
    """Folders by the name of their run."""
    if isinstance(folders, Mapping):
        named = dict(folders)
    else:
        short = [Path(folder).name for folder in folders]
        named = {name if short.count(name) == 1 else str(folder): folder for name, folder in zip(short, folders)}
        if len(named) != len(folders):
            raise SpecError(f"the same folder twice in {list(map(str, folders))}; expected different runs")
    if not named:
        raise SpecError("no folder is given; expected one, or a list of at least one")
    return named


def _most_added(runs: list[NamedRun]) -> NamedRun:
    """The run with the most rows of added tokens. Raises CheckpointError where another has other rows: one model has one."""
    most = max(runs, key=lambda run: len(run.added.get(f"{PREFIX}input", ())))
    for run in runs:
        pairs = [(rows, most.added[name]) for name, rows in run.added.items()]
        if pairs and (run.tokens != most.tokens or any(not torch.equal(few, many[: len(few)]) for few, many in pairs)):
            raise CheckpointError(
                f"{run.name!r} has other embeddings for the same added tokens than the runs beside it, and one model has one for "
                "each token; load it alone"
            )
    return most


def _read(
    model: PreTrainedModel, name: str, folder: Folder, tokenizer: PreTrainedTokenizerBase | None = None
) -> NamedRun:
    """A saved run that fits its base and its tokenizer. Nothing is written. Raises CheckpointError."""
    path = tensors_file(resolve(folder))
    try:
        data = read_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    tensors, header = parse_safetensors(data, path)
    description = parse_description(header, path)
    if values_hash(data) != description.sha256:
        raise CheckpointError(f"{path}: its values are not those that were saved; copy or download it again")
    if all(key.startswith(f"{NAME}.") and value.dim() for key, value in tensors.items()):  # of save_pretrained
        tensors = {key.removeprefix(f"{NAME}."): value[0] for key, value in tensors.items()}
    added, tokens = take_added(tensors), description.base["tokens"]
    check_base(model, description, path.parent)
    if tokenizer is not None:
        check_tokenizer(tokenizer, description.tokenizer, path.parent)
    error_prefix = f"{path}: does not fit its mixture"
    if added and (problem := rows_problem(model, tokens, added)):
        raise CheckpointError(f"{error_prefix}: {problem}")
    try:
        GenerationConfig.from_dict(description.config.get("generation", {}))
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: transformers refuses its generation settings: {error}") from None
    mixture = spec.Mixture.from_dict(description.mixture)
    return NamedRun(name, mixture, tensors, description.head, tokens, added, description, error_prefix)


def _runs(model: PreTrainedModel) -> list[NamedRun]:
    """The runs of an attached model with their values; a run without a name has its number."""
    state = attached_state(model)
    runs: list[NamedRun] = []
    tokens = state.before_load["tokens"]["from"] if "tokens" in state.before_load else 0
    added = added_rows(model, tokens)
    for part in state.mixtures:
        for number in range(part.runs):
            name = state.names[len(runs)] if state.names else str(len(runs))
            tensors = {path: value.clone() for path, value in part.state_of(number).items()}
            description = state.before_load.get("descriptions", {}).get(name)
            runs.append(NamedRun(name, part.mixture, tensors, head_of(part), tokens, added, description))
    return runs


def _attach(
    model: PreTrainedModel, runs: list[NamedRun], stacks: tuple[Stack, ...] | None, *, resize_heads: bool = True
) -> PreTrainedModel:
    """Attach runs side by side with their values. Raises CheckpointError where one does not fit; nothing is attached then.

    stacks: None: the entries known for the architecture, or those that the first checkpoint kept. resize_heads: give each
    run's head the number of outputs that it was saved with, which may differ from the base's.
    """
    first = runs[0].description
    stacks = stacks or entries_for(model.base_model.config) or (None if first is None else first.entries())  # type: ignore[union-attr]
    poolings, policies = {run.head["pooling"]: run.name for run in runs}, {run.head["policy"] for run in runs}
    if len(poolings) > 1:
        listed = " and ".join(f"{name!r} reads pooling={pooling!r}" for pooling, name in poolings.items())
        raise CheckpointError(f"{listed}: the head of one model reads one pooling; expected runs trained alike")
    for run in runs:
        expected, _ = _without_values(model, run.mixture, run.head["modules"], stacks)
        if resize_heads:
            _take_outputs(expected, run)
        if problem := _mismatch(expected, run.tensors):
            raise CheckpointError(f"{run.error_prefix}: {problem}")
    most = _most_added(runs)
    modules = list(dict.fromkeys(path for run in runs for path in run.head["modules"]))
    attach(
        model, [run.mixture for run in runs], head=policies.pop() if len(policies) == 1 else "train", stacks=stacks,
        pooling=runs[0].head["pooling"], head_modules=modules,
    )  # fmt: skip
    state = attached_state(model)
    state.names = [run.name for run in runs]
    outputs = f"{HEAD}.{modules[-1]}.weight" if modules else ""
    for part, run in zip(state.mixtures, runs):
        if outputs in run.tensors:
            _resize(part.head_modules[modules[-1]], len(run.tensors[outputs]))
        with torch.no_grad():
            for name, parameter in part.named_parameters():
                if name in run.tensors:  # else a head module that only other runs tune: the base's own values
                    parameter[0].copy_(run.tensors[name])
    state.before_load["descriptions"] = {run.name: run.description for run in runs}
    if most.added:
        state.before_load["tokens"] = put_added(model, most.tokens, most.added)
    if len(runs) == 1 and first is not None:
        _restore_task_config(model, first)
    return model


def _without_values(
    model: PreTrainedModel, mixture: spec.Mixture, head_modules: list[str], stacks: tuple[Stack, ...] | None
) -> tuple[dict[str, Shaped[Tensor, "..."]], list[BoundChange]]:
    """The parameters that one run of a mixture has on a base, and its changes at their modules.

    Both are without values: no memory is taken, whatever a file asks for.
    """
    resolved, modules = find_stacks(model, entries_of(model, stacks, True)), frozenset(find_head(model))
    with torch.device("meta"):
        state = build(mixture, 1, 0, Base(model, resolved, modules, several=False), head_modules=head_modules)
    return {name: parameter[0] for name, parameter in state.named_parameters()}, state.changes


def _mismatch(parameters: dict[str, Shaped[Tensor, "..."]], values: dict[str, Shaped[Tensor, "..."]]) -> str | None:
    """What is wrong with these values for these parameters, in a few words; None: they fit."""
    missing, unknown = sorted(parameters.keys() - values.keys()), sorted(values.keys() - parameters.keys())
    if missing:
        return f"has no {missing[0]!r}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
    if unknown:
        return f"holds {unknown[0]!r}, which its mixture does not have"
    for name, parameter in parameters.items():
        if parameter.shape != values[name].shape:
            labels = "; load a base with as many labels" if name.startswith(f"{HEAD}.") else ""
            return f"{name!r} is {tuple(values[name].shape)}, expected {tuple(parameter.shape)}{labels}"
        if values[name].dtype not in READ:
            return f"{name!r} is of {values[name].dtype}, expected one of {', '.join(map(str, READ))}"
    return not_finite({name: value.to(parameters[name].dtype) for name, value in values.items()})


def _take_outputs(shapes: dict[str, Tensor], run: NamedRun) -> None:
    """Give the last head module of these shapes as many outputs as a run's has, where it reads as many inputs."""
    last = f"{HEAD}.{run.head['modules'][-1]}" if run.head["modules"] else ""
    weight, bias = f"{last}.weight", f"{last}.bias"
    if weight in shapes and weight in run.tensors and run.tensors[weight].shape[1:] == shapes[weight].shape[1:]:
        shapes[weight] = torch.empty(run.tensors[weight].shape, device="meta")
        if bias in shapes:
            shapes[bias] = torch.empty(len(shapes[weight]), device="meta")


def _resize(head: nn.Module, outputs: int) -> None:
    """Give a run's last head module its own number of outputs."""
    for name, old in list(head.named_parameters()):
        if outputs != old.shape[1]:
            setattr(head, name, nn.Parameter(old.new_zeros(1, outputs, *old.shape[2:]), old.requires_grad))


def _restore_task_config(model: PreTrainedModel, description: Description) -> None:
    """Give an attached model the class names, problem type and generation settings of a checkpoint.

    `detach` gives back what the base had.
    """
    before, config = attached_state(model).before_load, description.config
    names = description.task.get("labels") or config.get("id2label") or []
    before["config"] |= class_names(model)
    if len(names) == getattr(model.config, "num_labels", 0):
        name_classes(model, names)
    if "problem_type" in config:
        before["config"]["problem_type"] = getattr(model.config, "problem_type", None)
        model.config.problem_type = config["problem_type"]
    if "generation" in config and model.can_generate():
        before["generation_config"] = model.generation_config
        model.generation_config = GenerationConfig.from_dict(config["generation"])
