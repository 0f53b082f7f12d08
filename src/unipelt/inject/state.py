"""The one child module of a base that holds everything tuned, and the hooks that join it to the base."""

from collections.abc import Callable, Iterator, Sequence
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
from unipelt.inject.hooks import changes_of

NAME = "unipelt"
WEIGHTS = Lock()  # two threads do not take changes out of weights, or put them back, at once


class Hook(NamedTuple):
    """A method to register as a hook of one module of the base."""

    path: str
    kind: str
    """one of KINDS, or `weight`: the method changes the module's weights and returns the handle that takes the change back"""
    method: Callable[..., Any]


KINDS: dict[str, Callable[[nn.Module, Callable[..., Any]], Any]] = {
    "pre": lambda module, method: module.register_forward_pre_hook(method),
    "pre with keywords": lambda module, method: module.register_forward_pre_hook(method, with_kwargs=True),
    "post": lambda module, method: module.register_forward_hook(method),
    "post with keywords": lambda module, method: module.register_forward_hook(method, with_kwargs=True),
    "always": lambda module, method: module.register_forward_hook(method, always_call=True),  # after a failure too
    "weight": lambda module, method: method(module),
}


class AttachedState(nn.Module):
    """What is attached to a base: the tuned part of one mixture, or of several side by side."""

    def __init__(self, runs: int):
        super().__init__()
        self.runs = runs
        self.forwards = ForwardState(runs)
        self.hooks: list[Hook] = []
        self.handles: list[Any] = []
        self.taken_out = 0
        """how many blocks of `own_weights` are open"""
        self.depth = 0
        """layers of the deepest stack"""
        self.before: dict[str, Any] = {}
        """what detach gives back: requires_grad of each parameter and attributes of the base"""
        self.kernels: Any = None
        self.names: list[str] = []
        """of the runs, in their order, where they were loaded by name"""

    def numbers(self, rows: Any) -> Any:
        """Runs by number, where `route` was given their names; anything else as it is. Raises SpecError for another name."""
        if not isinstance(rows, list | tuple) or not any(isinstance(row, str) for row in rows):
            return rows
        if unknown := [row for row in rows if row not in self.names]:
            known = did_you_mean(unknown[0], self.names) if self.names else "these runs have no names"
            raise SpecError(f"no run {unknown[0]!r} is attached: {known}")
        return [self.names.index(row) for row in rows]

    @property
    def parts(self) -> list["MixtureState"]:
        """One for each mixture: this alone, or those inside."""
        if isinstance(self, MixtureState):
            return [self]
        return [part for part in self.children() if isinstance(part, MixtureState)]

    def shown(self) -> "AttachedState":
        """The part that alone has runs now; all of it where several have."""
        having = [part for part in self.parts if part.runs]
        return having[0] if len(having) == 1 else self

    @property
    def prompt_length(self) -> int:
        """Positions that soft prompts take of the input's, in the mixture with the most."""
        forms = [[change.form for change in part.mixture.changes] for part in self.parts]
        return max(sum(form.length for form in each if isinstance(form, spec.Prompt)) for each in forms)

    @property
    def name(self) -> str:
        return ", ".join(part.mixture.name for part in self.parts)

    def show(self, shares: Sequence[int]) -> None:
        """Note that the parameters hold so many runs of each mixture now."""
        for part, runs in zip(self.parts, shares):
            part.runs, part.forwards.route = runs, Route.blocks(runs)

    def begin(self, run: int, seed: int) -> None:
        """Draw initial values of one run from its own seed."""
        part, own = self.one_run(run)
        part.start(own, seed)

    def one_run(self, run: int | None) -> tuple["MixtureState", int]:
        """The mixture of a run, and the run's number in it; None is the only run. Raises SpecError where there are more, or
        no such run."""
        if run is None and self.runs == 1:
            run = 0
        if isinstance(run, bool) or not isinstance(run, int) or not 0 <= run < self.runs:
            raise SpecError(f"run={run!r}: the model has runs 0 to {self.runs - 1}; say which one, such as run=0")
        for part in self.parts:
            if run < part.runs:
                break
            run -= part.runs
        return part, run

    def register_hooks(self, base: nn.Module) -> None:
        """Register every hook, in order."""
        self.handles = [KINDS[hook.kind](base.get_submodule(hook.path), hook.method) for hook in self.hooks]
        if self.taken_out:
            for handle in self.in_weights():
                handle.remove()

    def remove_hooks(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def in_weights(self) -> list[Any]:
        """The handles of changes that stand in the base's weights."""
        return [handle for handle, hook in zip(self.handles, self.hooks) if hook.kind == "weight"]


class MultiMixtureState(AttachedState):
    """Several mixtures side by side, each with runs of its own: one mixture's runs after another's."""

    def __init__(self, parts: Sequence["MixtureState"]):
        super().__init__(0)
        for number, part in enumerate(parts):
            self.add_module(str(number), part)
        self.show([part.runs for part in parts])

    def show(self, shares: Sequence[int]) -> None:
        super().show(shares)
        self.runs = sum(shares)
        self.forwards.route = Route(self.runs, None, tuple(shares))


class MixtureState(AttachedState):
    """Every tuned parameter of a mixture, `[run, ...]`, under paths such as `encoder.0.low_rank_query.query.down.weight`."""

    def __init__(self, mixture: spec.Mixture, runs: int, options: dict[str, Any], fresh_head: bool = False):
        super().__init__(runs)
        self.mixture, self.options, self.fresh_head = mixture, options, fresh_head
        self.blank: dict[str, Tensor] = {}
        """one run's parameters before anything was drawn"""

    def place(self, location: spec.Location, module: nn.Module) -> None:
        """Add a module under the path of its location."""
        parent: nn.Module = self
        *parents, name = str(location).split(".")
        for part in parents:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(name, module)

    @torch.no_grad()
    def start(self, run: int, seed: int) -> None:
        """Draw initial values of one run from its own generator, in the order of the mixture: they depend on no other run."""
        if not self.blank:
            self.blank = {name: _blank(p[0]) for name, p in self.named_parameters() if not p.is_meta}
        for name, parameter in self.named_parameters():
            if name in self.blank:
                parameter.data[run] = self.blank[name].to(parameter.device)
        generator = torch.Generator().manual_seed(seed)
        for path, module in self.named_modules():
            fresh = self.fresh_head or not path.startswith("head.")
            if hasattr(module, "reset_parameters") and fresh:  # what is inside it and draws too comes on its own
                module.reset_parameters(run, generator)

    def state_of(self, run: int) -> dict[str, Shaped[Tensor, "..."]]:
        """One run's parameters, without the run axis."""
        return {name: parameter.detach()[run] for name, parameter in self.named_parameters()}

    @contextmanager
    def holding(self, state: dict[str, Tensor]) -> Iterator[None]:
        """Inside the block there is one run, with these parameters: names as in `state_of`, without the run axis."""
        parameters = dict(self.named_parameters())
        values, runs = {name: parameter.data for name, parameter in parameters.items()}, self.runs
        try:
            for name, parameter in parameters.items():
                parameter.data = state[name][None]
            self.show([1])
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = values[name]
            self.show([runs])

    def head_modules(self) -> list[str]:
        """The base's modules that the tuned head stands for."""
        return [
            path.removeprefix("head.")
            for path, m in self.named_modules()
            if path.startswith("head.") and hasattr(m, "reset_parameters")
        ]

    def change_locations(self) -> list[spec.Location]:
        """Where each change joins the base."""
        return [change.location for hook in self.hooks for change in changes_of(hook.method)]

    def located(self) -> Iterator[tuple[spec.Location, nn.Parameter]]:
        """Each parameter with its location."""
        for path, parameter in self.named_parameters():
            yield spec.Location.parse(path), parameter


def _blank(values: Tensor) -> Tensor:
    """A copy, or one number where all are alike, as nearly all are before anything is drawn."""
    first = values.flatten()[:1]
    return first.clone() if bool((values == first).all()) else values.clone()


def attached_state(model: nn.Module) -> AttachedState:
    """What is attached to a model. Raises SiteError where nothing is."""
    state = getattr(model, NAME, None)
    if not isinstance(state, AttachedState):
        raise SiteError(f"{type(model).__name__} has nothing attached; call unipelt.attach(model, …) first")
    return state


def mixture_state(model: nn.Module) -> MixtureState:
    """The tuned part of an attached model. Raises SiteError where nothing is attached, or mixtures side by side."""
    state = attached_state(model)
    if not isinstance(state, MixtureState):
        raise SiteError(
            f"{len(state.parts)} mixtures are attached side by side ({state.name}), and one was expected; "
            "unipelt.save(model, folder, run=…) writes one run, which can then be loaded alone"
        )
    return state


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Inside the block the model is its plain base, its own head included, for forwards of this thread.

    Changes that `merge(…, rest="attached")` has written into weights are taken out of them meanwhile, for all threads.
    """
    state = attached_state(model)
    thread = state.forwards.thread
    before, thread.off = thread.off, True
    try:
        with own_weights(state):
            yield model
    finally:
        thread.off = before


@contextmanager
def own_weights(state: AttachedState) -> Iterator[None]:
    """Inside the block the base has its own weights, without the changes that were written into them."""
    with WEIGHTS:
        state.taken_out += 1
        for handle in state.in_weights():
            handle.remove()
    try:
        yield
    finally:
        with WEIGHTS:
            state.taken_out -= 1
            for handle in () if state.taken_out else state.in_weights():
                handle.write(handle.module)


@contextmanager
def dropped(model: nn.Module, layers: int) -> Iterator[nn.Module]:
    """Inside the block no change takes part in the lowest `layers` layers of each stack, in forwards of this thread; they
    cost nothing there, forward or backward          AdapterDrop: Rücklé et al. 2021, arXiv:2010.11918, §3

    For inference, or around each step of a training with a number drawn anew: AdapterDrop's robust variant. Backward belongs
    inside the block. A model that `compile` has compiled runs as it is inside.

    Raises SpecError for a number of layers that the base has not.
    """
    state = attached_state(model)
    if isinstance(layers, bool) or not isinstance(layers, int) or not 0 <= layers <= state.depth:
        raise SpecError(f"layers={layers!r}: expected a whole number from 0 to {state.depth}, the layers of the base")
    thread = state.forwards.thread
    before = thread.dropped
    thread.dropped = max(before, layers)
    try:
        yield model
    finally:
        thread.dropped = before


@contextmanager
def route(model: nn.Module, rows: Sequence[int | str] | Shaped[Tensor, " batch"] | None = None) -> Iterator[nn.Module]:
    """Inside the block, in this thread, each row of a batch belongs to the run that `rows` names; without it, rows are in
    equal blocks.

    A run is given by its number, or by the name under which it was loaded. A model with several runs takes equal blocks,
    the first block for run 0, unless told otherwise. Generation with beams
    repeats the route as it repeats the rows. Raises SpecError for a run that is not there; a forward of another number of
    rows raises SiteError.
    """
    state = attached_state(model)
    given = None if rows is None else _whole_numbers(state.numbers(rows), state)
    thread = state.forwards.thread
    before, thread.rows = thread.rows, given
    try:
        yield model
    finally:
        thread.rows = before


@contextmanager
def prompt(model: nn.Module, mask: Shaped[Tensor, "batch seq"]) -> Iterator[nn.Module]:
    """Inside the block, in this thread, the prompt of each row is where `mask` is 1: what gates with pool='prompt' average over.

    Tokens behind the mask's end are no prompt. Generation with a cache needs no mask: its first forward reads the prompt.
    A forward whose batch is no multiple of the mask's rows, as beams are, raises SiteError.
    """
    thread = attached_state(model).forwards.thread
    before, thread.prompt = thread.prompt, mask
    try:
        yield model
    finally:
        thread.prompt = before


def _whole_numbers(rows: Sequence[int] | Tensor, state: AttachedState) -> Tensor:
    try:
        given = torch.as_tensor(rows, device=next((p.device for p in state.parameters()), None))
    except (TypeError, ValueError, RuntimeError):
        given = torch.empty(0)
    whole = given.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if not whole or given.dim() != 1 or len(given) == 0 or int(given.min()) < 0 or int(given.max()) >= state.runs:
        raise SpecError(f"rows={rows!r}: expected one run of 0 to {state.runs - 1} for each row, as whole numbers")
    return given.long()
