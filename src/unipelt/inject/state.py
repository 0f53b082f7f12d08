"""The one child module of a base that holds everything tuned, and the hooks that join it to the base."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unipelt import spec
from unipelt.errors import SiteError, SpecError
from unipelt.forms.routed import Route

NAME = "unipelt"


class AttachedState(nn.Module):
    """What hangs on a base: one mixture's tuned part, or several side by side."""

    def __init__(self, runs: int):
        super().__init__()
        self.runs, self.route = runs, Route.blocks(runs)
        self.hooks: list[tuple[str, str, Any]] = []
        """module path, kind of hook and the bound method that hangs there, in order"""
        self.without: tuple[str, ...] = ()
        """paths below which no change joins now: see `dropped`"""
        self.handles: list[Any] = []
        self.hooked = False
        self.before: dict[str, Any] = {}
        """what detach gives back: requires_grad of each parameter and attributes of the base"""
        self.kernels: Any = None

    @property
    def parts(self) -> list["MixtureState"]:
        """One a mixture: this alone, or those inside."""
        return (
            [self]
            if isinstance(self, MixtureState)
            else [part for part in self.children() if isinstance(part, MixtureState)]
        )

    def shown(self) -> "AttachedState":
        """The part that alone has runs now; all of it where several have."""
        having = [part for part in self.parts if part.runs]
        return having[0] if len(having) == 1 else self

    @property
    def name(self) -> str:
        return ", ".join(part.mixture.name for part in self.parts)

    def current_route(self) -> Route:
        return self.route

    def show(self, shares: Sequence[int]) -> None:
        """So many runs of each part stand in the parameters now."""
        for part, runs in zip(self.parts, shares):
            part.runs, part.route = runs, Route.blocks(runs)

    def begin(self, run: int, seed: int) -> None:
        """Initial values of one run, drawn from its own seed."""
        part, own = self.one_run(run)
        part.start(own, seed)

    def one_run(self, run: int | None) -> tuple["MixtureState", int]:
        """The run that is meant, as its part and its place there; none named: the only one. Raises SpecError where there are
        more, or no such run."""
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
        self.hooked = True
        for path, kind, method in self.hooks:
            if hasattr(method.__self__, "deltas") and f"{path}.".startswith(self.without):
                continue
            module = base.get_submodule(path)
            if kind == "pre":
                self.handles.append(module.register_forward_pre_hook(method))
            elif kind == "pre with keywords":
                self.handles.append(module.register_forward_pre_hook(method, with_kwargs=True))
            elif kind == "weight":  # its own handle
                self.handles.append(method(module))
            elif kind == "post with keywords":
                self.handles.append(module.register_forward_hook(method, with_kwargs=True))
            else:
                self.handles.append(module.register_forward_hook(method))

    def remove_hooks(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.hooked = False

    @contextmanager
    def changing(self, base: nn.Module) -> Iterator[None]:
        """Inside the block the hooks, or what they leave out, may become others. They register_hooks again where they did: not inside
        `disabled`, nor where this was detached meanwhile."""
        hooked = self.hooked
        self.remove_hooks()
        yield
        if hooked:
            self.register_hooks(base)


class MultiMixtureState(AttachedState):
    """MixtureState parts of several mixtures side by side, each with runs of its own: one mixture's runs after another's."""

    def __init__(self, parts: Sequence["MixtureState"]):
        super().__init__(0)
        for number, part in enumerate(parts):
            self.add_module(str(number), part)
        self.show([part.runs for part in parts])

    def show(self, shares: Sequence[int]) -> None:
        super().show(shares)
        self.runs = sum(shares)
        self.route = Route(self.runs, None, tuple(shares))


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
        """Initial values of one run from its own generator, in the order of the mixture: they do not depend on its fleet."""
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

    def state_of(self, run: int) -> dict[str, Tensor]:
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
        return [delta.location for _, _, method in self.hooks for delta in getattr(method.__self__, "deltas", ())]

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
    joined = getattr(model, NAME, None)
    if not isinstance(joined, AttachedState):
        raise SiteError(f"{type(model).__name__} has nothing attached; call unipelt.attach(model, …) first")
    return joined


def mixture_state(model: nn.Module) -> MixtureState:
    """The tuned part of an attached model. Raises SiteError where nothing is attached, or mixtures side by side."""
    joined = attached_state(model)
    if not isinstance(joined, MixtureState):
        raise SiteError(
            f"{len(joined.parts)} mixtures are attached side by side ({joined.name}), and one was expected; "
            "unipelt.save(model, folder, run=…) writes a run of one, to be loaded alone"
        )
    return joined
