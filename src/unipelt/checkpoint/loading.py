"""Saved runs on a base: one, or several side by side under names, of different methods and numbers of classes."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor
from transformers import PreTrainedModel

from unipelt import spec
from unipelt.checkpoint.description import Description
from unipelt.checkpoint.disk import CONFIG
from unipelt.checkpoint.fill import attach_values, expected_shapes, mismatch
from unipelt.checkpoint.fingerprint import check_base, check_tokenizer
from unipelt.checkpoint.folder import SavedRun, read_run
from unipelt.checkpoint.model_config import restore_task_config
from unipelt.errors import CheckpointError, SpecError, UserError, did_you_mean
from unipelt.forms.routed import Route, RoutedLinear
from unipelt.inject.added_tokens import PREFIX, added_rows, misfit, put_added
from unipelt.inject.architectures import Stack, rows_for
from unipelt.inject.attach import attach, detach
from unipelt.inject.heads import HeadLinear
from unipelt.inject.state import NAME, AttachedState, attached_state
from unipelt.spec.location import HEAD

Folder = str | os.PathLike


def load(
    model: PreTrainedModel,
    folder: Folder | Sequence[Folder] | Mapping[str, Folder],
    *,
    stacks: tuple[Stack, ...] | None = None,
    tokenizer: Any = None,
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
    if isinstance(folder, str | os.PathLike):
        saved = _checked(model, folder, tokenizer)
        head = saved.description.head
        attach_values(
            model, saved.mixture, saved.tensors, _what(saved), head=head["policy"], pooling=head["pooling"],
            head_modules=head["modules"], stacks=_rows(model, saved.description, stacks),
        )  # fmt: skip
        restore_task_config(model, saved.description)
        _put_added(model, [(saved.description.base["tokens"], saved.added)])
        attached_state(model).names = [Path(folder).name]
        return model
    runs = [_read(model, name, path, tokenizer) for name, path in _named(folder).items()]
    assert runs[0].description is not None
    return _attach(model, runs, _rows(model, runs[0].description, stacks))


def add(model: PreTrainedModel, folder: Folder, name: str | None = None) -> PreTrainedModel:
    """Load one more run beside those that a model has; without a name it has that of its folder. peft: `load_adapter`.

    Everything is attached again: the runs keep their values and their order, the new one is the last. Raises
    CheckpointError where it cannot be loaded, SpecError where the name is taken; the model is then as it was.
    """
    name = name or Path(folder).name
    if not isinstance(getattr(model, NAME, None), AttachedState):
        return load(model, {name: folder})
    state = attached_state(model)
    before, stacks = _runs(model), state.parts[0].options["stacks"]
    if name in state.names:
        raise SpecError(
            f"a run {name!r} is attached already; expected another name, or unipelt.remove(model, {name!r})"
        )
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
    runs, stacks = _runs(model), state.parts[0].options["stacks"]
    left = [run for run in runs if run.name != name]
    if len(left) == len(runs):
        raise SpecError(f"no run {name!r} is attached: {did_you_mean(name, [run.name for run in runs])}")
    detach(model)
    return _attach(model, left, stacks) if left else model


@dataclass(frozen=True)
class NamedRun:
    """One run that is, or will be, attached."""

    name: str
    mixture: spec.Mixture
    tensors: dict[str, Shaped[Tensor, "..."]]
    policy: str
    pooling: str
    modules: list[str]
    description: Description | None = None
    what: str = "a run"
    """begins the message of an error"""
    tokens: int = 0
    """that are the base's own"""
    added: dict[str, Shaped[Tensor, "token ..."]] = field(default_factory=dict)
    """rows of the embeddings for the tokens behind them"""


class PaddedLinear(RoutedLinear):
    """A head's linear whose outputs are filled with -inf to the width of the widest run's: absent classes have probability 0."""

    def __init__(self, inputs: int, outputs: int, width: int, bias: bool):
        super().__init__(1, inputs, outputs, bias)
        self.width = width

    def forward(
        self, x: Float[Tensor, "batch *seq inputs"], route: Route, onto: Tensor | None = None
    ) -> Float[Tensor, "batch *seq width"]:
        y = super().forward(x, route, onto)
        return F.pad(y, (0, self.width - y.shape[-1]), value=-torch.inf)


def _named(folders: Sequence[Folder] | Mapping[str, Folder]) -> dict[str, Folder]:
    """Folders by the name of their run."""
    if isinstance(folders, Mapping):
        named = dict(folders)
    else:
        short = [Path(folder).name for folder in folders]
        named = {one if short.count(one) == 1 else str(folder): folder for one, folder in zip(short, folders)}
        if len(named) != len(folders):
            raise SpecError(f"the same folder twice in {list(map(str, folders))}; expected different runs")
    if not named:
        raise SpecError("no folder is given; expected one, or a list of at least one")
    return named


def _checked(model: PreTrainedModel, folder: Folder, tokenizer: Any) -> SavedRun:
    """A saved run that fits its base and its tokenizer. Raises CheckpointError."""
    saved = read_run(folder)
    check_base(model, saved.description, saved.folder)
    if tokenizer is not None:
        check_tokenizer(tokenizer, saved.description.tokenizer, saved.folder)
    if saved.added and (problem := misfit(model, saved.description.base["tokens"], saved.added)):
        raise CheckpointError(f"{_what(saved)}: {problem}")
    return saved


def _put_added(model: PreTrainedModel, given: list[tuple[int, dict[str, Tensor]]]) -> None:
    """Give an attached base the rows of added tokens that runs have, which `_same_added` found alike."""
    tokens, added = max(given, key=lambda one: len(one[1].get(f"{PREFIX}input", ())))
    if added:
        attached_state(model).base_state["tokens"] = put_added(model, tokens, added)


def _same_added(runs: "list[NamedRun]") -> None:
    """Raise CheckpointError where runs disagree about a row of an added token: one model has one."""
    having = sorted((run for run in runs if run.added), key=lambda run: -len(run.added[f"{PREFIX}input"]))
    for run in having[1:]:
        pairs = ((rows, having[0].added[name]) for name, rows in run.added.items())
        if run.tokens != having[0].tokens or any(not torch.equal(few, many[: len(few)]) for few, many in pairs):
            raise CheckpointError(
                f"{run.name!r} has other embeddings for the same added tokens than the runs beside it, and one model has one for "
                "each token; load it alone"
            )


def _read(model: PreTrainedModel, name: str, folder: Folder, tokenizer: Any = None) -> NamedRun:
    """A saved run that is checked against its base."""
    saved = _checked(model, folder, tokenizer)
    head = saved.description.head
    return NamedRun(
        name,
        saved.mixture,
        saved.tensors,
        head["policy"],
        head["pooling"],
        head["modules"],
        saved.description,
        _what(saved),
        saved.description.base["tokens"],
        saved.added,
    )


def _rows(
    model: PreTrainedModel, description: Description, stacks: tuple[Stack, ...] | None
) -> tuple[Stack, ...] | None:
    """The rows of the base's architecture: those given, those of the table, or those that the checkpoint kept."""
    return stacks or rows_for(model.base_model.config) or description.rows()  # type: ignore[union-attr]


def _what(saved: SavedRun) -> str:
    return f"{saved.folder}: {saved.description.tensors} does not fit {CONFIG}"


def _runs(model: PreTrainedModel) -> list[NamedRun]:
    """The runs of an attached model with their values; a run without a name has its number."""
    state = attached_state(model)
    runs: list[NamedRun] = []
    tokens = state.base_state["tokens"]["from"] if "tokens" in state.base_state else 0
    added = added_rows(model, tokens)
    for part in state.parts:
        for number in range(part.runs):
            name = state.names[len(runs)] if state.names else str(len(runs))
            tensors = {path: value.clone() for path, value in part.state_of(number).items()}
            runs.append(
                NamedRun(
                    name,
                    part.mixture,
                    tensors,
                    part.options["head"],
                    part.options["pooling"],
                    part.head_modules(),
                    tokens=tokens,
                    added=added,
                )
            )
    return runs


def _attach(model: PreTrainedModel, runs: list[NamedRun], stacks: tuple[Stack, ...] | None) -> PreTrainedModel:
    """Attach runs side by side with their values. Raises CheckpointError where one does not fit; nothing is attached then."""
    poolings, policies = {run.pooling: run.name for run in runs}, {run.policy for run in runs}
    if len(poolings) > 1:
        listed = " and ".join(f"{name!r} reads pooling={pooling!r}" for pooling, name in poolings.items())
        raise CheckpointError(
            f"{listed}: the head of one model reads one pooling; expected runs that were trained alike"
        )
    modules = list(dict.fromkeys(path for run in runs for path in run.modules))
    for run in runs:
        if problem := mismatch(_expected(model, run, stacks), run.tensors):
            raise CheckpointError(f"{run.what}: {problem}")
    _same_added(runs)
    options: dict[str, Any] = {"pooling": runs[0].pooling, "head_modules": modules, "stacks": stacks}
    attach(model, [run.mixture for run in runs], head=policies.pop() if len(policies) == 1 else "train", **options)
    state = attached_state(model)
    state.names = [run.name for run in runs]
    outputs = f"{HEAD}.{modules[-1]}.linear.weight" if modules else ""
    width = max((len(run.tensors[outputs]) for run in runs if outputs in run.tensors), default=0)
    for part, run in zip(state.parts, runs):
        if outputs in run.tensors:
            head: Any = part.get_submodule(f"{HEAD}.{modules[-1]}")
            _widen(head, len(run.tensors[outputs]), width)
        with torch.no_grad():
            for name, parameter in part.named_parameters():
                if name in run.tensors:  # else a head module that only other runs tune: the base's own values
                    parameter[0].copy_(run.tensors[name])
    _put_added(model, [(run.tokens, run.added) for run in runs])
    if len(runs) == 1 and runs[0].description is not None:
        restore_task_config(model, runs[0].description)
    return model


def _expected(model: PreTrainedModel, run: NamedRun, stacks: tuple[Stack, ...] | None) -> dict[str, Tensor]:
    """The shapes that a run's values must have; its last head module may have another number of outputs than the base's."""
    shapes = expected_shapes(model, run.mixture, {"head_modules": run.modules, "stacks": stacks})
    last = f"{HEAD}.{run.modules[-1]}.linear" if run.modules else ""
    weight, bias = f"{last}.weight", f"{last}.bias"
    if weight in shapes and weight in run.tensors and run.tensors[weight].shape[1:] == shapes[weight].shape[1:]:
        shapes[weight] = torch.empty(run.tensors[weight].shape, device="meta")
        if bias in shapes:
            shapes[bias] = torch.empty(len(shapes[weight]), device="meta")
    return shapes


def _widen(head: HeadLinear, outputs: int, width: int) -> None:
    """Give a run's last head module its own number of outputs, padded to the widest of all runs."""
    old = head.linear
    if outputs != old.weight.shape[1] or outputs != width:
        head.linear = PaddedLinear(old.weight.shape[2], outputs, width, old.bias is not None).to(old.weight)
        head.linear.requires_grad_(old.weight.requires_grad)
        head.linear.path = old.path  # type: ignore[assignment]  # by which a replica of it is found
