"""What one forward carries beside the hidden states: which run each row belongs to, and which tokens are real.

A pre-hook on each stack makes a `Context` and adds it as a keyword, which the layers pass on; the pre-hooks of a layer and of
its attention block read it there. So a layer that is recomputed for its gradients, which runs the pre-hooks of what is inside it
alone, has the context of its own forward from its attention block on, in whichever thread that happens. A layer without the keyword (its stack's `forward` was called directly, it was called alone, or its architecture passes
no keywords on) makes the same context from the thread's route and from its own attention mask. Nothing outlives the layer.
"""

import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from unipelt.errors import SiteError
from unipelt.forms.gate import mean_weights
from unipelt.forms.routed import Route

KEYWORD = "unipelt_context"
PROMPT = "prompt"  # among the masks over which gates average: the prompt, which is no argument of a stack
KEPT = "unipelt_gates"  # attribute of a cache: the gates of the prompt that filled it


class Context(NamedTuple):
    """Shapes: real `[batch, seq, 1]` and source `[batch, source, 1]`, each token's share in the mean over its row's real ones,
    of the stack's own stream and of the encoder's output; None: all tokens are real, or no gate averages."""

    route: Route
    batch: int
    real: Tensor | None = None
    source: Tensor | None = None
    prompt: Tensor | None = None
    """`[batch, seq, 1]`: the same for the mean over the prompt's real tokens, where a gate takes it"""
    kept: dict[Any, Tensor] | None = None
    """the gates of the prompt by change, as the cache keeps them; None: there is no cache"""
    off: bool = False
    """inside `disabled`: no change takes part"""
    dropped: int = 0
    """changes in so many of the lowest layers take no part: see `dropped`"""
    replica: nn.Module | None = None
    """what holds the parameters in place of the attached state: DataParallel's copy for one device"""
    mixture: int = 0
    mine: Any = None
    """the rows of the batch that belong to the mixture; None: all"""
    parts: tuple["Context", ...] = ()
    """one context for each mixture's rows, where several mixtures are attached side by side"""

    def split(self) -> "Context":
        """The same, with one part for each mixture that has rows, where there are several mixtures."""
        parts = []
        for mixture, mine, own in self.route.split(self.batch):
            shares = (self.real, self.source, self.prompt)
            real, source, prompt = (None if t is None else t.expand(self.batch, -1, -1)[mine] for t in shares)
            parts.append(self._replace(route=own, real=real, source=source, prompt=prompt, mixture=mixture, mine=mine))
        return self._replace(parts=tuple(parts))

    def on(self, device: torch.device) -> "Context":
        """The same on a device: the layers of one base may be on several."""
        held = [
            t
            for t in (self.real, self.source, self.prompt, self.route.rows, *(part.mine for part in self.parts))
            if isinstance(t, Tensor)
        ]
        if all(t.device == device for t in held):
            return self
        real, source, prompt = (None if t is None else t.to(device) for t in (self.real, self.source, self.prompt))
        mine = self.mine.to(device) if isinstance(self.mine, Tensor) else self.mine
        route = self.route if self.route.rows is None else self.route._replace(rows=self.route.rows.to(device))
        parts = tuple(part.on(device) for part in self.parts)
        return self._replace(route=route, real=real, source=source, prompt=prompt, mine=mine, parts=parts)

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


class PerThread(threading.local):
    """What one thread has set for its forwards, and what the layer that it is in has captured."""

    def __init__(self):
        self.rows: Tensor | None = None
        self.prompt: Tensor | None = None
        """`[batch, seq]`, 1 at the prompt's real tokens"""
        self.off, self.dropped = False, 0
        self.replica: nn.Module | None = None
        self.context: Context | None = None
        self.alone = False
        """whether the context is that of an attention block which was called without its layer"""
        self.captured: dict[str, Tensor] = {}
        self.longer: Any = None
        """the longer input of this forward, where a soft prompt is in it"""
        self.watching: list[tuple[nn.Module, Any]] = []
        """the attention block that runs, and what watches its softmax, where it computes it by itself"""

    def watch(self, on: bool) -> None:
        """Whether what watches an attention block sees what is computed now: not what our changes compute inside of it."""
        for _, watching in self.watching:
            watching.paused = not on

    def __reduce__(self):
        """A copy begins outside of any forward."""
        return PerThread, ()


class ForwardState:
    """Makes contexts: the same for all threads is which runs a model has, a thread's own are its route and its switches."""

    def __init__(self, runs: int):
        self.route = Route.blocks(runs)
        self.thread = PerThread()

    def context(
        self, batch: int, real: Tensor | None = None, source: Tensor | None = None, *, repeats: bool = True,
        prompt: Tensor | None = None, kept: dict[Any, Tensor] | None = None,
    ) -> Context:  # fmt: skip
        """The context of a batch of so many rows. repeats: whether generation may have repeated the rows of a route.

        Raises SiteError for a batch that does not fit the route.
        """
        own = self.thread
        route = self.route if own.rows is None else self.route._replace(rows=own.rows)
        if route.rows is not None and batch != len(route.rows) and not repeats:
            raise SiteError(
                f"the route has {len(route.rows)} rows, the batch {batch}: expected one for each row; only generation with a cache, "
                "which repeats rows for its beams, repeats a route"
            )
        if route.rows is None and batch % route.runs and not own.off:
            raise SiteError(
                f"a batch of {batch} rows for {route.runs} runs in equal blocks: expected a multiple of {route.runs}"
            )
        if own.replica is not None and route.runs > 1:
            raise SiteError(
                f"DataParallel splits a batch over devices, so that no device knows which of {route.runs} runs its rows belong to: "
                "expected one run, or one process for each device (DistributedDataParallel)"
            )
        context = Context(route.repeated(batch), batch, real, source, prompt, kept, own.off, own.dropped, own.replica)
        return context.split() if route.mixture_runs and not own.off else context

    def prompt(
        self,
        x: Shaped[Tensor, "batch seq *d"],
        mask: Shaped[Tensor, "batch key"] | None,
        cache: Any,
        dtype: torch.dtype,
    ) -> tuple[Float[Tensor, "batch seq 1"] | None, dict[Any, Tensor] | None]:
        """Each token's share in the mean over its row's prompt, and the gates of the prompt that the cache keeps.

        The prompt is what the thread says, else the real tokens of the forward that fills an empty cache.

        Raises SiteError where neither says which tokens are the prompt.
        """
        given, (batch, length) = self.thread.prompt, x.shape[:2]
        kept = None if cache is None else vars(cache).setdefault(KEPT, {})
        if given is not None:
            if batch % len(given):
                raise SiteError(
                    f"the prompt's mask has {len(given)} rows, the batch {batch}: expected one for each row"
                )
            longer = self.thread.longer  # a soft prompt is part of the prompt
            own = length if longer is None or longer.full != length else length - longer.prompt
            given = given.to(x.device).repeat_interleave(batch // len(given), dim=0)[:, :own]
            given = F.pad(given, (0, own - given.shape[1]))
            return mean_weights(given if own == length else longer.spread(given), dtype), kept
        if cache is None:
            if self.thread.off:
                return None, None
            raise SiteError(
                "a gate with pool='prompt' needs to know which tokens are the prompt: generate with a cache, or call the model "
                "within `with unipelt.prompt(model, mask):`, a mask that is 1 at the prompt's real tokens"
            )
        real = torch.ones(batch, length, device=x.device) if mask is None else mask[:, -length:]
        return mean_weights(real, dtype), kept

    def at(self, x: Tensor) -> Context | None:
        """The context in which a module changes the rows of x; None where no change takes part."""
        context = self.thread.context
        if context is None:
            context = self.context(x.shape[0])
        return None if context.off else context.on(x.device)


class StackHook:
    """Stack pre-hook: makes the context of this forward and gives it to the layers as a keyword."""

    def __init__(
        self, stack: nn.Module, forwards: ForwardState, averaged: set[str], passes_keywords: bool, changes_first: bool
    ):
        """averaged: the names of the masks over which a gate averages; passes_keywords: whether the layers get it;
        changes_first: whether a layer is changed before its attention block."""
        self.stack, self.forwards, self.averaged = stack, forwards, averaged
        self.passes_keywords, self.recomputes = passes_keywords, passes_keywords and not changes_first
        self.names = parameters_of(stack)

    def enter(self, stack: nn.Module, args: tuple, kwargs: dict[str, Any]):
        given = (argument(self.names, args, kwargs, name) for name in ("input_ids", "inputs_embeds", "pixel_values"))
        every = [value for value in (*given, *args, *kwargs.values()) if isinstance(value, Tensor)]
        own = self.forwards.thread
        own.context = None
        if (
            not self.recomputes
            and (own.rows is not None or own.prompt is not None or own.off or own.dropped)
            and checkpoints(stack)
        ):
            raise SiteError(
                f"{type(stack).__name__} recomputes its layers for their gradients (gradient checkpointing), and a recomputed "
                "layer does not see a route by rows, `disabled` or `dropped`; use equal blocks of rows, or no gradient checkpointing"
            )
        if not every or not self.passes_keywords:
            return None
        cached = argument(self.names, args, kwargs, "past_key_values") is not None  # only generation gives one
        dtype = next(self.stack.parameters()).dtype  # a replica has tensors in place of parameters
        real, source = (self._shares(args, kwargs, f"{side}attention_mask", dtype) for side in ("", "encoder_"))
        prompt, kept = None, None
        if PROMPT in self.averaged:
            mask, cache = (argument(self.names, args, kwargs, name) for name in ("attention_mask", "past_key_values"))
            prompt, kept = self.forwards.prompt(every[0], _of_padding(mask), cache, dtype)
        context = self.forwards.context(len(every[0]), real, source, repeats=cached, prompt=prompt, kept=kept)
        return args, {**kwargs, KEYWORD: context}

    def _shares(self, args: tuple, kwargs: dict[str, Any], name: str, dtype: torch.dtype) -> Tensor | None:
        mask = argument(self.names, args, kwargs, name) if name in self.averaged else None
        return None if mask is None else mean_weights(_of_padding(mask, name), dtype)


def _of_padding(mask: Any, name: str = "attention_mask") -> Any:
    """A mask `[batch, seq]`, or None. Raises SiteError for another kind."""
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        raise SiteError(
            f"{name} is not [batch, seq]: a gate that averages over a sequence cannot tell packed sequences apart; "
            "unpack them, or use Gate(pool='token')"
        )
    return mask


class LayerHook:
    """Layer hooks: the pre-hook sets the context in which the layer's modules change their rows, the other clears it."""

    def __init__(self, layer: nn.Module, forwards: ForwardState, averaged: set[str]):
        self.forwards, self.averaged = forwards, averaged
        self.names = parameters_of(layer)

    def enter(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        own = self.forwards.thread
        own.captured.clear()
        if KEYWORD in kwargs:
            own.context = kwargs[KEYWORD]
            return
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        cache = argument(self.names, args, kwargs, "past_key_values")
        real, source = (self._shares(args, kwargs, f"{side}attention_mask", x.dtype) for side in ("", "encoder_"))
        prompt, kept = None, None
        if PROMPT in self.averaged:
            mask = argument(self.names, args, kwargs, "attention_mask")
            prompt, kept = self.forwards.prompt(x, None if mask is None else real_keys(mask), cache, x.dtype)
        own.context = self.forwards.context(
            x.shape[0], real, source, repeats=cache is not None, prompt=prompt, kept=kept
        )

    def leave(self, layer: nn.Module, args: tuple, output: Any) -> None:
        """Also after a forward that has failed."""
        thread = self.forwards.thread
        thread.context, thread.alone = None, False
        thread.captured.clear()

    def _shares(self, args: tuple, kwargs: dict[str, Any], name: str, dtype: torch.dtype) -> Tensor | None:
        mask = argument(self.names, args, kwargs, name) if name in self.averaged else None
        return None if mask is None else mean_weights(real_keys(mask), dtype)


def real_keys(mask: Shaped[Tensor, "batch *head_query key"]) -> Shaped[Tensor, "batch key"]:
    """True at each key to which some query attends: of a mask of padding, or of an attention mask `[batch, head, query, key]`
    that is True or 1 where a query attends, or 0 where it does and hugely negative elsewhere.

    Raises SiteError for another kind of mask.
    """
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        raise SiteError(
            f"an attention mask of type {type(mask).__name__}: a gate that averages over a sequence needs to know its padding; "
            "use the sdpa or eager attention, or Gate(pool='token')"
        )
    if mask.dim() == 2:
        return mask
    attends = mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask.bool()
    return attends.flatten(1, 2).any(dim=1)


class InputCapture:
    """Pre-hook: keeps a module's first argument until a later module of the same layer reads it."""

    def __init__(self, forwards: ForwardState, name: str):
        self.forwards, self.name = forwards, name

    def enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.forwards.thread.captured[self.name] = args[0] if args else kwargs["hidden_states"]


class ReplicaHook:
    """Pre-hook of the whole model: notes where DataParallel has put the parameters for the device of this thread."""

    def __init__(self, forwards: ForwardState, name: str):
        self.forwards, self.name = forwards, name

    def enter(self, model: nn.Module, args: tuple) -> None:
        is_replica = getattr(model, "_is_replica", False)
        self.forwards.thread.replica = getattr(model, self.name) if is_replica else None


def parameters_of(module: nn.Module) -> list[str]:
    """The names of the parameters of a module's forward, in order."""
    return [name for name in inspect.signature(type(module).forward).parameters if name != "self"]


def argument(names: list[str], args: tuple, kwargs: dict[str, Any], name: str) -> Any:
    """An argument of a forward, given by position or by keyword."""
    if name in kwargs:
        return kwargs[name]
    index = names.index(name) if name in names else len(args)
    return args[index] if index < len(args) else None


def checkpoints(model: nn.Module, kind: str = "any") -> bool:
    """Whether this forward will be recomputed layer by layer for its gradients, in any way or by reentrant checkpointing."""
    return torch.is_grad_enabled() and any(
        getattr(m, "gradient_checkpointing", False) and m.training and (kind == "any" or _reentrant(m))
        for m in model.modules()
    )


def _reentrant(module: nn.Module) -> bool:
    keywords = getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {})
    return keywords.get("use_reentrant", True)
