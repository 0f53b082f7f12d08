"""What a forward needs beside the hidden states: the run of each row, and which tokens are real.

A pre-hook on each stack makes a `Context` and adds it as a keyword, which the layers pass on; the pre-hooks of a layer and of
its attention block read it there (context_hooks.py). Gradient checkpointing recomputes a layer later, perhaps in another thread,
and calls only the hooks inside it; because the keyword comes with the call, they see the context of their own forward. A layer
without the keyword (it or its stack's `forward` was called directly, or its architecture passes no keywords on) makes the same
context from the thread's route and from its own attention mask, and drops it when it returns.
"""

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from itertools import count
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from unipelt.errors import SiteError
from unipelt.forms.gate import mean_weights
from unipelt.forms.routed import Route

KEYWORD = "unipelt_context"
PROMPT = "prompt"  # key of the prompt's mask among the masks of gates; unlike the others it is no argument of a stack's forward
CACHE_ATTRIBUTE = "unipelt_gates"  # attribute of a cache: its PromptGates


class PromptGates(NamedTuple):
    """Gates of the prompt that filled a cache, kept with it for the tokens that follow."""

    prompt_length: int
    """tokens of the forward that filled the cache"""
    values: dict[Any, Tensor]
    """by change; empty until the gate's first forward"""


class Context(NamedTuple):
    """State of one forward: which run each row belongs to, the weights of tokens in means, and switches.

    Shapes: token_weights `[batch, seq, 1]` and encoder_weights `[batch, source, 1]`: the weight of each token in the mean over
    the real tokens of its row, for the stack's hidden states and for the encoder's output. None: all tokens are real, or no
    gate averages.
    """

    route: Route
    batch: int
    token_weights: Tensor | None = None
    encoder_weights: Tensor | None = None
    prompt_weights: Tensor | None = None
    """`[batch, seq, 1]`: the weights in the mean over the prompt, if a gate averages over it"""
    prompt_gates: PromptGates | None = None
    """None: no cache"""
    disabled: bool = False
    """inside `disabled`: no change is applied"""
    dropped: int = 0
    """number of lowest layers whose changes are skipped (AdapterDrop)"""
    replica: nn.Module | None = None
    """DataParallel's copy of the attached state for one device, whose parameters are used instead"""
    mixture: int = 0
    """index of the mixture that the context is for, if several are attached"""
    rows: Any = None
    """rows of the batch that belong to this mixture; None: all"""
    per_mixture: tuple["Context", ...] = ()
    """one context per mixture for its rows, if several mixtures are attached"""

    def _tensors(self, move: Callable[[Tensor], Tensor]) -> dict[str, Tensor | None]:
        tensors = {name: getattr(self, name) for name in ("token_weights", "encoder_weights", "prompt_weights")}
        return {name: None if value is None else move(value) for name, value in tensors.items()}

    def split(self) -> "Context":
        """The same context with one context per mixture that has rows."""
        per_mixture = []
        for mixture, rows, route in self.route.split(self.batch):
            weights: Any = self._tensors(lambda t, rows=rows: t.expand(self.batch, -1, -1)[rows])  # type: ignore[misc]
            per_mixture.append(self._replace(route=route, mixture=mixture, rows=rows, **weights))
        return self._replace(per_mixture=tuple(per_mixture))

    def on(self, device: torch.device) -> "Context":
        """The same context on another device: layers of one base may be on several."""
        tensors = (*self._tensors(lambda t: t).values(), self.route.rows, *(part.rows for part in self.per_mixture))
        if all(t.device == device for t in tensors if isinstance(t, Tensor)):
            return self
        weights: Any = self._tensors(lambda t: t.to(device))
        rows = self.rows.to(device) if isinstance(self.rows, Tensor) else self.rows
        route = self.route if self.route.rows is None else self.route._replace(rows=self.route.rows.to(device))
        return self._replace(
            route=route, rows=rows, per_mixture=tuple(part.on(device) for part in self.per_mixture), **weights
        )

    def apply(self, function: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
        """Apply function(context, *tensors) to the rows of each mixture, and return all rows in the batch's order."""
        if not self.per_mixture:
            return function(self, *tensors)
        changed = [function(part, *(None if t is None else t[part.rows] for t in tensors)) for part in self.per_mixture]
        return in_batch_order([part.rows for part in self.per_mixture], changed)


def in_batch_order(rows: Sequence[slice | Tensor], per_mixture: Sequence[Tensor]) -> Tensor:
    """Concatenate parts of a batch and restore the order of its rows. rows: the rows of each part."""
    combined = torch.cat(list(per_mixture))
    return combined if isinstance(rows[0], slice) else combined[torch.cat(list(rows)).argsort()]  # type: ignore[arg-type]


class Switches(NamedTuple):
    """What `route`, `disabled` and `dropped` have set."""

    rows: Tensor | None = None
    disabled: bool = False
    dropped: int = 0


SWITCHES: ContextVar[dict[int, Switches]] = ContextVar("unipelt_switches")
"""by number of the attached state; each thread, and each task of an event loop, has its own"""
PLAIN = Switches()
NUMBERS = count()


class PerThread(threading.local):
    """What one thread, or one task of an event loop, has set for its forwards; and what the layer that it is in has captured."""

    def __init__(self, number: int):
        """number: of the attached state."""
        self.number = number
        self.compiled = PLAIN
        """the innermost block's switches, for compiled code (no ContextVar there)"""
        self.prompt_mask: Tensor | None = None
        """`[batch, seq]`, 1 at the prompt's real tokens"""
        self.replica: nn.Module | None = None
        self.context: Context | None = None
        self.made_by_attention = False
        """whether an attention block was called without its layer and made the context"""
        self.captured: dict[str, Tensor] = {}
        self.prompted_input: Any = None
        """the input of this forward with its soft prompt, if it has one"""
        self.softmax_interceptors: list[tuple[nn.Module, Any]] = []
        """running attention blocks that compute their softmax themselves, each with the object that watches it"""

    def intercept_products(self, on: bool) -> None:
        """Pause or resume the interception of matrix products, so that a change's own products are not taken for the attention's."""
        for _, interceptor in self.softmax_interceptors:
            interceptor.paused = not on

    @property
    def switches(self) -> Switches:
        # dynamo cannot follow a context variable
        return self.compiled if torch.compiler.is_compiling() else SWITCHES.get({}).get(self.number, PLAIN)

    @property
    def rows(self) -> Tensor | None:
        return self.switches.rows

    @property
    def disabled(self) -> bool:
        return self.switches.disabled

    @property
    def dropped(self) -> int:
        return self.switches.dropped

    @contextmanager
    def set_switches(self, **switches: Any) -> Iterator[None]:
        """Context manager: these switches are set inside the block."""
        before, new_switches = self.compiled, self.switches._replace(**switches)
        token = SWITCHES.set(SWITCHES.get({}) | {self.number: new_switches})
        self.compiled = new_switches
        try:
            yield
        finally:
            self.compiled = before
            with suppress(ValueError):  # a generator that was begun in one thread or task and ends in another
                SWITCHES.reset(token)

    def __reduce__(self):
        """Copy as a new state, outside of any forward."""
        return PerThread, (next(NUMBERS),)


class ForwardState:
    """Makes contexts. The number of runs is shared by all threads; the route and the switches belong to one thread."""

    def __init__(self, runs: int):
        self.route = Route.blocks(runs)
        self.thread = PerThread(next(NUMBERS))

    def context(
        self, batch: int, token_weights: Tensor | None = None, encoder_weights: Tensor | None = None, *, repeats: bool = True,
        prompt_weights: Tensor | None = None, prompt_gates: PromptGates | None = None,
    ) -> Context:  # fmt: skip
        """The context of a batch. repeats: allow a batch that is a multiple of the route, as generation with beams makes it.

        Raises SiteError for a batch that does not fit the route.
        """
        thread = self.thread
        route = self.route if thread.rows is None else self.route._replace(rows=thread.rows)
        if route.rows is not None and batch != len(route.rows) and not repeats:
            raise SiteError(
                f"the route has {len(route.rows)} rows, the batch {batch}: expected one run per row in route(model, rows); "
                "only generation with a cache may repeat the rows of a route"
            )
        if route.rows is None and batch % route.runs and not thread.disabled:
            raise SiteError(
                f"a batch of {batch} rows for {route.runs} runs in equal blocks: expected a multiple of {route.runs}"
            )
        if thread.replica is not None and route.runs > 1:
            raise SiteError(
                f"DataParallel splits a batch over devices, so that no device knows which of {route.runs} runs its rows belong to: "
                "expected one run, or one process for each device (DistributedDataParallel)"
            )
        context = Context(
            route.repeated(batch), batch, token_weights, encoder_weights, prompt_weights, prompt_gates,
            thread.disabled, thread.dropped, thread.replica,
        )  # fmt: skip
        return context.split() if route.mixture_runs and not thread.disabled else context

    def prompt_weights(
        self,
        x: Shaped[Tensor, "batch seq *d"], mask: Shaped[Tensor, "batch key"] | None, cache: Any, dtype: torch.dtype,
    ) -> tuple[Float[Tensor, "batch seq 1"] | None, PromptGates | None]:  # fmt: skip
        """The weight of each token in the mean over the prompt, and the gates of the prompt stored with the cache.

        The prompt is given by the thread (see `prompt`), else it is the real tokens of the forward that fills an empty cache.

        Raises SiteError if neither gives the prompt.
        """
        prompt, (batch, length) = self.thread.prompt_mask, x.shape[:2]
        prompt_gates = None if cache is None else vars(cache).setdefault(CACHE_ATTRIBUTE, PromptGates(length, {}))
        if prompt is not None:
            if batch % len(prompt):
                raise SiteError(
                    f"the prompt's mask has {len(prompt)} rows, the batch {batch}: expected one for each row"
                )
            longer = self.thread.prompted_input  # a soft prompt is part of the prompt
            input_length = length if longer is None or longer.full != length else length - longer.prompt_length
            prompt = prompt.to(x.device).repeat_interleave(batch // len(prompt), dim=0)[:, :input_length]
            prompt = F.pad(prompt, (0, input_length - prompt.shape[1]))
            return mean_weights(prompt if input_length == length else longer.extend(prompt), dtype), prompt_gates
        if cache is None:
            raise SiteError(
                "a gate with pool='prompt' needs to know which tokens are the prompt: generate with a cache, or call the model "
                "within `with unipelt.prompt(model, mask):`, a mask that is 1 at the prompt's real tokens"
            )
        in_prompt = torch.ones(batch, length, device=x.device) if mask is None else mask[:, -length:]
        return mean_weights(in_prompt, dtype), prompt_gates

    def context_for(self, x: Tensor) -> Context | None:
        """The context for a module with input x; None if changes are disabled."""
        context = self.thread.context
        if context is None:
            context = self.context(x.shape[0])
        return None if context.disabled else context.on(x.device)


def prepare_cache(cache: Any, length: int) -> None:
    """Drop the gates of an earlier prompt from an empty cache. length: tokens of this forward.

    Raises SiteError for a cache that has no gates, or whose gates are not those of its whole prompt.
    """
    if getattr(cache, "is_compileable", False):
        raise SiteError(
            "a static cache cannot hold the gates of a prompt (pool='prompt'): expected the default cache of generate"
        )
    past = int(cache.get_seq_length())
    if past == 0:
        setattr(cache, CACHE_ATTRIBUTE, PromptGates(length, {}))
        return
    gates = getattr(cache, CACHE_ATTRIBUTE, None)
    if length > 1 or gates is None or past < gates.prompt_length:
        raise SiteError(
            f"{past} tokens in the cache and {length} given: a gate with pool='prompt' expects the whole prompt in the forward that "
            "fills an empty cache, and one token in each later forward; generation that goes on with an earlier call's cache, "
            "or cuts it (assisted generation, prefill_chunk_size), cannot be combined with it"
        )


def parameters_of(module: nn.Module) -> list[str]:
    """The names of the parameters of a module's forward, in order."""
    return _parameters(type(module))  # type: ignore[arg-type]  # a class is hashable


@cache
def _parameters(kind: type[nn.Module]) -> list[str]:
    return [name for name in inspect.signature(kind.forward).parameters if name != "self"]


def argument(names: list[str], args: tuple, kwargs: dict[str, Any], name: str) -> Any:
    """An argument of a forward, given by position or by keyword."""
    if name in kwargs:
        return kwargs[name]
    index = names.index(name) if name in names else len(args)
    return args[index] if index < len(args) else None


def checkpointable(model: nn.Module) -> list[nn.Module]:
    """The modules that gradient checkpointing may recompute."""
    return [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]


def uses_gradient_checkpointing(modules: list[nn.Module], kind: str = "any") -> bool:
    """Whether this forward uses gradient checkpointing. modules: the checkpointable ones; kind: "any", or "reentrant"."""
    return torch.is_grad_enabled() and any(
        m.gradient_checkpointing and m.training and (kind == "any" or _reentrant(m)) for m in modules
    )


def _reentrant(module: nn.Module) -> bool:
    keywords = getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {})
    return keywords.get("use_reentrant", True)
