"""The one child module of a base that holds all trained parameters, and the hooks that apply them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from unipelt import spec
from unipelt.errors import SiteError, SpecError, did_you_mean
from unipelt.forms.routed import Route
from unipelt.inject.context import ForwardState
from unipelt.inject.hooks import BoundChange

NAME = "unipelt"
MERGE_LOCK = Lock()  # held while merged changes are removed from weights, or written into them


class Hook(NamedTuple):
    """A method to register as a hook of one module of the base."""

    path: str
    kind: str
    """`pre` or `post`, either also `with keywords`; or `always`: as `post`, and after a failed forward too"""
    method: Callable[..., Any]

    def register(self, base: nn.Module) -> Any:
        """Returns the handle that removes it."""
        module, keywords = base.get_submodule(self.path), self.kind.endswith("with keywords")
        if self.kind.startswith("pre"):
            return module.register_forward_pre_hook(self.method, with_kwargs=keywords)
        return module.register_forward_hook(self.method, with_kwargs=keywords, always_call=self.kind == "always")


class AttachedState(nn.Module):
    """What is attached to a base: several mixtures, whose runs are numbered consecutively. The subclass is one mixture."""

    def __init__(self, mixtures: Sequence["MixtureState"] = ()):
        super().__init__()
        for number, state in enumerate(mixtures):
            self.add_module(str(number), state)
        self.forwards = ForwardState(1)
        self.hooks: list[Hook] = []
        self.handles: list[Any] = []
        self.merged: list[Any] = []
        """changes that are written into the base's weights: see `merge`"""
        self.unmerged_depth = 0
        """number of open blocks of `unmerged_weights`"""
        self.depth = 0
        """number of layers of the deepest stack"""
        self.base_state: dict[str, Any] = {}
        """what `detach` restores: requires_grad of each parameter, and attributes of the base"""
        self.before_load: dict[str, Any] = {}
        """values of the base that loading a checkpoint replaced, for `detach`: `config` (class names), `generation_config`,
        `tokens` (rows of added tokens)"""
        self.kernels: Any = None
        self.names: list[str] = []
        """names of the runs, if they were loaded by name"""
        if mixtures:
            self.set_runs([state.runs for state in mixtures])

    def set_runs(self, counts: Sequence[int]) -> None:
        """Set how many runs the parameters of each mixture have."""
        for state, runs in zip(self.mixtures, counts):
            state.set_runs([runs])
        self.runs = sum(counts)
        self.forwards.route = Route(self.runs, None, tuple(counts))

    def run_indices(self, rows: Any) -> Any:
        """Replace names of runs by their indices; anything else is returned unchanged. Raises SpecError for an unknown name."""
        if not isinstance(rows, list | tuple) or not any(isinstance(row, str) for row in rows):
            return rows
        if unknown := [row for row in rows if row not in self.names]:
            known = did_you_mean(unknown[0], self.names) if self.names else "these runs have no names"
            raise SpecError(f"no run {unknown[0]!r} is attached: {known}")
        return [self.names.index(row) for row in rows]

    @property
    def mixtures(self) -> list["MixtureState"]:
        """The state of each mixture."""
        if isinstance(self, MixtureState):
            return [self]
        return [state for state in self.children() if isinstance(state, MixtureState)]

    def all_changes(self) -> list[BoundChange]:
        """Every change of every mixture at every module."""
        return [change for state in self.mixtures for change in state.changes]

    def active(self) -> "AttachedState":
        """The state of the only mixture that has runs now, or the whole state if several have."""
        with_runs = [state for state in self.mixtures if state.runs]
        return with_runs[0] if len(with_runs) == 1 else self

    @property
    def prompt_length(self) -> int:
        """Number of positions that soft prompts add to the input, in the mixture with the most."""
        forms = [[change.form for change in state.mixture.changes] for state in self.mixtures]
        return max(sum(form.length for form in each if isinstance(form, spec.Prompt)) for each in forms)

    @property
    def name(self) -> str:
        return ", ".join(state.mixture.name for state in self.mixtures)

    def reset_run(self, run: int, seed: int) -> None:
        """Draw the initial values of one run from its seed."""
        state, index = self.locate_run(run)
        state.reset_run_parameters(index, seed)

    def locate_run(self, run: int | None) -> tuple["MixtureState", int]:
        """The mixture of a run, and the index of the run in it. None means the only run.

        Raises SpecError for None if there are several runs, and for a run that does not exist."""
        if run is None and self.runs == 1:
            run = 0
        if isinstance(run, bool) or not isinstance(run, int) or not 0 <= run < self.runs:
            raise SpecError(f"run={run!r}: the model has runs 0 to {self.runs - 1}; say which one, such as run=0")
        for state in self.mixtures:
            if run < state.runs:
                break
            run -= state.runs
        return state, run

    def register_hooks(self, base: nn.Module) -> None:
        """Register every hook, in order."""
        self.handles = [hook.register(base) for hook in self.hooks]

    def remove_hooks(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []


class MixtureState(AttachedState):
    """All trained parameters of a mixture, `[run, ...]`, under paths such as `encoder.0.low_rank_query.query.down.weight`."""

    def __init__(self, mixture: spec.Mixture, runs: int, options: dict[str, Any], fresh_head: bool = False):
        super().__init__()
        self.mixture, self.options, self.fresh_head = mixture, options, fresh_head
        self.changes: list[BoundChange] = []
        """every change at every module, in the mixture's order"""
        self.head_modules: Mapping[str, nn.Module] = {}
        """what computes in place of the head's modules, by their paths in the base"""
        self.initial_values: dict[str, Tensor] = {}
        """values of one run's parameters before any initialisation"""
        self.set_runs([runs])

    def set_runs(self, counts: Sequence[int]) -> None:
        (self.runs,) = counts
        self.forwards.route = Route.blocks(self.runs)

    def add_at(self, location: spec.Location, module: nn.Module) -> None:
        """Add a module under the path of its location."""
        parent: nn.Module = self
        *parents, name = str(location).split(".")
        for part in parents:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(name, module)

    @torch.no_grad()
    def reset_run_parameters(self, run: int, seed: int) -> None:
        """Draw the initial values of one run from its own generator, in the mixture's order; they depend on no other run."""
        if not self.initial_values:
            self.initial_values = {name: _copy(p[0]) for name, p in self.named_parameters() if not p.is_meta}
        for name, parameter in self.named_parameters():
            if name in self.initial_values:
                parameter.data[run] = self.initial_values[name].to(parameter.device)
        generator = torch.Generator().manual_seed(seed)
        for path, module in self.named_modules():
            fresh = self.fresh_head or not path.startswith("head.")
            if fresh and hasattr(module, "reset_parameters"):
                module.reset_parameters(run, generator)

    def state_of(self, run: int) -> dict[str, Shaped[Tensor, "..."]]:
        """One run's parameters, without the run axis."""
        return {name: parameter.detach()[run] for name, parameter in self.named_parameters()}

    @contextmanager
    def with_parameters(self, state: dict[str, Tensor]) -> Iterator[None]:
        """Context manager: there is one run, with these parameters. state: as `state_of` returns it, without the run axis."""
        parameters = dict(self.named_parameters())
        values, runs = {name: parameter.data for name, parameter in parameters.items()}, self.runs
        try:
            for name, parameter in parameters.items():
                parameter.data = state[name][None]
            self.set_runs([1])
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = values[name]
            self.set_runs([runs])

    def named_locations(self) -> Iterator[tuple[spec.Location, nn.Parameter]]:
        """Each parameter with its location."""
        for path, parameter in self.named_parameters():
            yield spec.Location.parse(path), parameter


def _copy(values: Tensor) -> Tensor:
    """A copy; one number if all values are equal, as nearly all are before initialisation."""
    first = values.flatten()[:1]
    return first.clone() if bool((values == first).all()) else values.clone()


def attached_state(model: nn.Module) -> AttachedState:
    """The state attached to a model. Raises SiteError if there is none."""
    state = getattr(model, NAME, None)
    if not isinstance(state, AttachedState):
        raise SiteError(f"{type(model).__name__} has nothing attached; call unipelt.attach(model, …) first")
    return state


def mixture_state(model: nn.Module) -> MixtureState:
    """The state of the only mixture of a model. Raises SiteError if nothing is attached, or several mixtures are."""
    state = attached_state(model)
    if not isinstance(state, MixtureState):
        raise SiteError(
            f"{len(state.mixtures)} mixtures are attached ({state.name}), and one was expected; "
            "unipelt.save(model, folder, run=…) writes one run, which can then be loaded alone"
        )
    return state


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Context manager: forwards of this thread use the plain base with its own head.

    Changes that `merge(…, unmergeable="keep")` has written into weights are removed inside the block, for all threads.
    """
    state = attached_state(model)
    with state.forwards.thread.set_switches(disabled=True), unmerged_weights(state):
        yield model


@contextmanager
def unmerged_weights(state: AttachedState) -> Iterator[None]:
    """Context manager: the base has its original weights, without the changes that were merged into them."""
    with MERGE_LOCK:
        state.unmerged_depth += 1
        for merged in state.merged:
            merged.restore()
    try:
        yield
    finally:
        with MERGE_LOCK:
            state.unmerged_depth -= 1
            for merged in () if state.unmerged_depth else state.merged:
                merged.write()


@contextmanager
def dropped(model: nn.Module, layers: int) -> Iterator[nn.Module]:
    """Context manager: forwards of this thread skip all changes in the lowest `layers` layers of each stack, which costs
    nothing there, forward or backward          AdapterDrop: Rücklé et al. 2021, arXiv:2010.11918, §3

    Use it for inference, or around each training step with a new random number of layers (AdapterDrop's robust variant). Run
    backward inside the block too. A model compiled by `compile` runs uncompiled inside the block.

    Raises SpecError if the base has fewer layers, and where `merge` has written a change of such a layer into its weights.
    """
    state = attached_state(model)
    if isinstance(layers, bool) or not isinstance(layers, int) or not 0 <= layers <= state.depth:
        raise SpecError(f"layers={layers!r}: expected a whole number from 0 to {state.depth}, the layers of the base")
    for change in (change for written in state.merged for change in written.changes):
        if change.location.layer is not None and change.location.layer < layers:
            raise SpecError(
                f"layers={layers}: {change.name} is merged into the weights of layer {change.location.layer}, where it cannot be "
                "skipped; use `dropped` with a model on which merge(…, unmergeable='keep') was not called"
            )
    thread = state.forwards.thread
    with thread.set_switches(dropped=max(thread.dropped, layers)):
        yield model


@contextmanager
def route(model: nn.Module, rows: Sequence[int | str] | Shaped[Tensor, " batch"] | None = None) -> Iterator[nn.Module]:
    """Context manager: set which run each row of a batch belongs to, for forwards of this thread or asyncio task.

    rows: for each row the index of its run, or the name under which the run was loaded. None, and a forward outside of the
    block: equal blocks of rows, the first block for run 0. Generation with beams repeats the route as it repeats the rows.

    Raises SpecError for an unknown run. A forward with another number of rows raises SiteError.
    """
    state = attached_state(model)
    runs = None if rows is None else _runs_of_rows(state.run_indices(rows), state)
    with state.forwards.thread.set_switches(rows=runs):
        yield model


@contextmanager
def prompt(model: nn.Module, mask: Shaped[Tensor, "batch seq"]) -> Iterator[nn.Module]:
    """Context manager: set which tokens are the prompt, for forwards of this thread. Gates with pool='prompt' average over them.

    mask: 1 at the prompt's tokens; tokens after its end do not belong to the prompt. Generation with a cache needs no mask:
    its first forward reads the prompt. A forward whose batch is not a multiple of the mask's rows raises SiteError.
    """
    thread = attached_state(model).forwards.thread
    before, thread.prompt_mask = thread.prompt_mask, mask
    try:
        yield model
    finally:
        thread.prompt_mask = before


def _runs_of_rows(rows: Sequence[int] | Tensor, state: AttachedState) -> Tensor:
    try:
        runs = torch.as_tensor(rows, device=next((p.device for p in state.parameters()), None))
    except (TypeError, ValueError, RuntimeError):
        runs = torch.empty(0)
    is_integer = runs.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if not is_integer or runs.dim() != 1 or len(runs) == 0 or int(runs.min()) < 0 or int(runs.max()) >= state.runs:
        raise SpecError(f"rows={rows!r}: expected one run of 0 to {state.runs - 1} for each row, as whole numbers")
    return runs.long()
