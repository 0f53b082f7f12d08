"""What one forward of a stack carries beside the hidden states: what each token counts, and which run each row belongs to.

A pre-hook on the stack makes a `Context` and adds it as one keyword; the layers hand the keyword on, and the pre-hook of
each attention block takes it out again. So a layer that is recomputed for its gradients finds the context of its own
forward, which a variable that outlives the forward would not give.
"""

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unipelt.errors import SiteError
from unipelt.forms.gate import shares_of
from unipelt.forms.prefix import pad_mask
from unipelt.forms.routed import Route

KEYWORD = "unipelt_context"


class Context(NamedTuple):
    """Shapes: real `[batch, seq, 1]` and source `[batch, source, 1]`, each token's share in the mean over its row's real ones;
    none given: all are real, or no gate averages.

    Where several mixtures are side by side, `parts` are the contexts of each one's own rows.
    """

    route: Route
    batch: int | None = None
    real: Tensor | None = None
    source: Tensor | None = None
    mixture: int = 0
    """whose it is, where several are side by side"""
    mine: Any = None
    """the mixture's rows of the batch; none: all"""
    parts: tuple["Context", ...] = ()
    shared: dict[str, Tensor] | None = None
    """what all layers read of a prefix's table, by its name"""

    @classmethod
    def of(
        cls,
        route: Route,
        batch: int,
        real: Tensor | None = None,
        source: Tensor | None = None,
        shared: dict[str, Tensor] | None = None,
    ) -> "Context":
        """The context of a batch, cut by mixtures where there are several."""
        parts = []
        for mixture, mine, own in route.split(batch):
            shares = [None if every is None else every[mine] for every in (real, source)]
            parts.append(cls(own, real=shares[0], source=shares[1], mixture=mixture, mine=mine, shared=shared))
        return cls(route, batch, real, source, parts=tuple(parts), shared=shared)

    def each(self, change: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
        """change(context, *rows) of each mixture's own rows, put together again; of all rows where there is one mixture."""
        if not self.parts:
            return change(self, *tensors)
        changed = [change(part, *(None if t is None else t[part.mine] for t in tensors)) for part in self.parts]
        return together([part.mine for part in self.parts], changed)


def together(rows: Sequence[slice | Tensor], parts: Sequence[Tensor]) -> Tensor:
    """Rows of a batch in their order again. rows: where each part's belong."""
    whole = torch.cat(list(parts))
    return whole if isinstance(rows[0], slice) else whole[torch.cat(list(rows)).argsort()]  # type: ignore[arg-type]


class ForwardState(threading.local):
    """The context of the forward under way, and the tensors held between two modules of a layer, by what they are: of each
    thread's own forward, for a model that serves may run in several.

    Between forwards it has the context that needs no forward: equal blocks. A module before the attention block, when a
    layer is recomputed, finds that one.
    """

    def __init__(self, runs: int):
        self.runs = runs
        self.between = self.context = Context(Route.blocks(runs))
        self.held: dict[str, Tensor] = {}
        self.pad_mask = Widened()

    def __reduce__(self):
        """A copy begins between forwards."""
        return ForwardState, (self.runs,)


class Widened:
    """Masks that have been pad_mask for prefixes in this forward: a stack's layers have theirs in common."""

    def __init__(self):
        self.made: list[tuple[Tensor, tuple[int, torch.dtype], Tensor]] = []

    def __call__(self, mask: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
        for given, how, wide in self.made:
            if given is mask and how == (columns, dtype):
                return wide
        wide = pad_mask(mask, columns, dtype)
        self.made.append((mask, (columns, dtype), wide))
        return wide


class StackHooks:
    """Makes the context at a stack's door, clears it at the end."""

    def __init__(
        self, stack: nn.Module, flow: ForwardState, route: Callable[[], Route], pooled: set[str], hands_on: bool,
        prefixes: Sequence[Any],
    ):  # fmt: skip
        """pooled: the masks over which a gate averages; hands_on: its layers hand keywords on to their attention blocks;
        prefixes: a delta of each prefix's table."""
        self.flow, self.route, self.pooled, self.hands_on, self.prefixes = flow, route, pooled, hands_on, prefixes
        self.names = [name for name in inspect.signature(type(stack).forward).parameters if name != "self"]

    def enter(self, stack: nn.Module, args: tuple, kwargs: dict[str, Any]):
        first = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        for name in ("input_ids", "inputs_embeds", "pixel_values"):
            given = argument(self.names, args, kwargs, name)
            first = given if isinstance(given, Tensor) else first
        batch = None if first is None else first.shape[0]
        route = self._route(stack, batch, args, kwargs)
        dtype = next(stack.parameters()).dtype
        real, source = (
            self._shares(args, kwargs, name, dtype) for name in ("attention_mask", "encoder_attention_mask")
        )
        context = (
            Context(route) if batch is None else Context.of(route, batch, real, source, self._shared(stack, route))
        )
        self.flow.context = context
        return (args, {**kwargs, KEYWORD: context}) if self.hands_on else None

    def leave(self, stack: nn.Module, args: tuple, output: Any) -> None:
        self.flow.context = self.flow.between
        self.flow.held.clear()
        self.flow.pad_mask.made.clear()

    def _route(self, stack: nn.Module, batch: int | None, args: tuple, kwargs: dict[str, Any]) -> Route:
        """The route of this forward. Raises SiteError where it does not fit the batch, or the way that gradients are computed."""
        route = self.route()
        if batch is not None and route.rows is not None and batch != len(route.rows):
            if argument(self.names, args, kwargs, "past_key_values") is None:  # only generation hands a cache in
                raise SiteError(
                    f"the route has {len(route.rows)} rows, the batch {batch}: expected one each; only generation with its cache, "
                    "which repeats rows for its beams, repeats a route"
                )
            route = route.repeated(batch)
        if route.rows is None and batch is not None and batch % route.runs:
            raise SiteError(
                f"a batch of {batch} rows for {route.runs} runs in equal blocks: expected a multiple of {route.runs}"
            )
        if (route.rows is not None or route.shares) and checkpoints(stack):
            what = "several mixtures" if route.shares else "a route by rows"
            expected = "one mixture" if route.shares else "equal blocks; sort the batch by run"
            raise SiteError(f"{what} with gradient checkpointing: expected {expected}")
        return route

    def _shared(self, stack: nn.Module, route: Route) -> dict[str, Tensor]:
        """What all layers read of each prefix's table; not for layers that will be recomputed one by one."""
        if not self.prefixes or checkpoints(stack):  # which looks at every module
            return {}
        with_runs = [delta for delta in self.prefixes if not route.shares or route.shares[delta.mixture]]
        found = {delta.table: delta.form.share() for delta in with_runs}
        return {table: shared for table, shared in found.items() if shared is not None}

    def _shares(self, args: tuple, kwargs: dict[str, Any], name: str, dtype: torch.dtype) -> Tensor | None:
        mask = argument(self.names, args, kwargs, name) if name in self.pooled else None
        if mask is None:
            return None
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            raise SiteError(
                f"{name} is not [batch, seq]: a gate that averages over a sequence cannot tell packed sequences apart; "
                "unpack them, or use Gate(pool='token')"
            )
        return shares_of(mask, dtype)


class AttentionEntry:
    """At the door of an attention block: the context of this very forward, and the block's input for whom it may concern."""

    def __init__(self, flow: ForwardState, holds: str | None, mask_argument: bool):
        self.flow, self.holds, self.mask_argument = flow, holds, mask_argument

    def enter(self, attention: nn.Module, args: tuple, kwargs: dict[str, Any]):
        if self.holds is not None:
            self.flow.held[self.holds] = args[0] if args else kwargs["hidden_states"]
        if KEYWORD in kwargs:
            kwargs = {name: value for name, value in kwargs.items() if name != KEYWORD or self._take(value)}
            return args, kwargs
        if self.mask_argument:  # a layer without keywords: its own mask, real ⊗ real, is what a recomputation has
            mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
            if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[-1] == mask.shape[-2]:
                real = shares_of(mask[:, 0].diagonal(dim1=-2, dim2=-1), next(attention.parameters()).dtype)
                self.flow.context = self.flow.context._replace(real=real)
        return None

    def _take(self, context: Context) -> bool:
        self.flow.context = context
        return False


class InputCapture:
    """Keeps a module's first argument until a later module of the same layer reads it."""

    def __init__(self, flow: ForwardState, name: str):
        self.flow, self.name = flow, name

    def enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.flow.held[self.name] = args[0] if args else kwargs["hidden_states"]


def argument(names: list[str], args: tuple, kwargs: dict[str, Any], name: str) -> Any:
    """An argument of a forward, given by position or by keyword."""
    if name in kwargs:
        return kwargs[name]
    place = names.index(name) if name in names else len(args)
    return args[place] if place < len(args) else None


def checkpoints(model: nn.Module, kind: str = "any") -> bool:
    """Whether this forward will be recomputed layer by layer for its gradients, in any way or by reentrant checkpointing."""
    return torch.is_grad_enabled() and any(
        getattr(m, "gradient_checkpointing", False) and m.training and (kind == "any" or _reentrant(m))
        for m in model.modules()
    )


def _reentrant(module: nn.Module) -> bool:
    keywords = getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {})
    return keywords.get("use_reentrant", True)
