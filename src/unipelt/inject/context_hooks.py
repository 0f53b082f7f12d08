"""Hooks that prepare a forward: they make its context, capture inputs and bring prefixes into attention blocks."""

from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from unipelt.errors import SiteError
from unipelt.forms.gate import mean_weights
from unipelt.forms.routed import JointLinears
from unipelt.inject.attention import PREFIXES, AttentionImplementations, BoundPrefix, Calls
from unipelt.inject.context import (
    KEYWORD,
    PROMPT,
    Context,
    ForwardState,
    argument,
    checkpointable,
    parameters_of,
    prepare_cache,
    uses_gradient_checkpointing,
)
from unipelt.inject.own_softmax import OwnSoftmax


class ContextHook:
    """Makes a context from the arguments of one module's call."""

    def __init__(self, module: nn.Module, forwards: ForwardState, averaged: set[str]):
        """averaged: names of the masks over which gates average."""
        self.forwards, self.averaged = forwards, averaged
        self.names = parameters_of(module)

    def context(self, args: tuple, kwargs: dict[str, Any], x: Tensor, dtype: torch.dtype) -> Context:
        """The context of a call. x: a tensor with one row for each row of the batch. dtype: of the token weights."""
        cache = argument(self.names, args, kwargs, "past_key_values")  # only generation gives one
        masks = [
            self._mask(args, kwargs, n) if n in self.averaged else None
            for n in ("attention_mask", "encoder_attention_mask")
        ]
        weights = [None if mask is None else mean_weights(mask, dtype) for mask in masks]
        prompt, gates = None, None
        if PROMPT in self.averaged and not self.forwards.thread.disabled:
            prompt, gates = self.forwards.prompt_weights(x, self._mask(args, kwargs, "attention_mask"), cache, dtype)
        return self.forwards.context(
            len(x), *weights, repeats=cache is not None, prompt_weights=prompt, prompt_gates=gates
        )

    def _mask(self, args: tuple, kwargs: dict[str, Any], name: str) -> Tensor | None:
        mask = argument(self.names, args, kwargs, name)
        return None if mask is None else self.real_tokens(mask, name)

    def real_tokens(self, mask: Any, name: str) -> Shaped[Tensor, "batch seq"]:
        """Which tokens are real, from a mask that the module was given."""
        raise NotImplementedError


class StackHook(ContextHook):
    """Stack pre-hook: makes the context of a forward and passes it to the layers as a keyword."""

    def __init__(
        self, stack: nn.Module, forwards: ForwardState, averaged: set[str], kernels: AttentionImplementations | None,
        passes_keywords: bool, changes_first: bool,
    ):  # fmt: skip
        """passes_keywords: whether the layers receive the keyword; changes_first: whether a layer has changes before its
        attention block."""
        super().__init__(stack, forwards, averaged)
        self.stack, self.modules, self.kernels = stack, checkpointable(stack), kernels
        self.passes_keywords = passes_keywords
        self.context_survives_recomputation = passes_keywords and not changes_first

    def enter(self, stack: nn.Module, args: tuple, kwargs: dict[str, Any]):
        inputs = (argument(self.names, args, kwargs, name) for name in ("input_ids", "inputs_embeds", "pixel_values"))
        tensors = [value for value in (*inputs, *args, *kwargs.values()) if isinstance(value, Tensor)]
        thread = self.forwards.thread
        thread.context = None
        if self.kernels is not None and not thread.disabled:
            self.kernels.wrap()  # the user may have set another attention implementation since the last forward
        if (
            not self.context_survives_recomputation
            and (thread.rows is not None or thread.prompt_mask is not None or thread.disabled or thread.dropped)
            and uses_gradient_checkpointing(self.modules)
        ):
            raise SiteError(
                f"{type(stack).__name__} uses gradient checkpointing, and a recomputed layer does not see `route` by "
                "rows, `prompt`, `disabled` or `dropped`; use equal blocks of rows, or no gradient checkpointing"
            )
        cache = argument(self.names, args, kwargs, "past_key_values")
        if PROMPT in self.averaged and tensors and cache is not None and not thread.disabled:
            prepare_cache(cache, tensors[0].shape[1])
        if not tensors or not self.passes_keywords:
            return None
        dtype = next(self.stack.parameters()).dtype  # a replica has tensors in place of parameters
        return args, {**kwargs, KEYWORD: self.context(args, kwargs, tensors[0], dtype)}

    def real_tokens(self, mask: Any, name: str) -> Shaped[Tensor, "batch seq"]:
        """A mask `[batch, seq]` as it is. Raises SiteError for anything else."""
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            raise SiteError(
                f"{name} is not [batch, seq]: a gate that averages over a sequence cannot tell packed sequences apart; "
                "unpack them, or use Gate(pool='token')"
            )
        return mask


class LayerHook(ContextHook):
    """Layer hooks: the pre-hook sets the context of the layer's modules, the forward hook clears it."""

    def enter(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        thread = self.forwards.thread
        thread.captured.clear()
        if KEYWORD in kwargs:
            thread.context = kwargs[KEYWORD]
            return
        x: Tensor = args[0] if args else kwargs["hidden_states"]
        thread.context = self.context(args, kwargs, x, x.dtype)

    def leave(self, layer: nn.Module, args: tuple, output: Any) -> None:
        """Clear the context; called after a failed forward too."""
        thread = self.forwards.thread
        thread.context, thread.made_by_attention = None, False
        thread.captured.clear()

    def real_tokens(self, mask: Any, name: str) -> Shaped[Tensor, "batch seq"]:
        return attended_keys(mask)


def attended_keys(mask: Shaped[Tensor, "batch *head_query key"]) -> Shaped[Tensor, "batch key"]:
    """Which keys some query attends to.

    mask: a padding mask `[batch, key]`, or an attention mask `[batch, head, query, key]` that is True or 1 where a query
    attends, or 0 there and hugely negative elsewhere.

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
    """Pre-hook: captures the first argument of the module at this path for a later module of the same layer."""

    def __init__(self, forwards: ForwardState, path: str):
        self.forwards, self.path = forwards, path

    def enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.forwards.thread.captured[self.path] = args[0] if args else kwargs["hidden_states"]


class ReplicaHook:
    """Pre-hook of the model: stores DataParallel's copy of the attached state for the device of this thread."""

    def __init__(self, forwards: ForwardState, name: str):
        self.forwards, self.name = forwards, name

    def enter(self, model: nn.Module, args: tuple) -> None:
        is_replica = getattr(model, "_is_replica", False)
        self.forwards.thread.replica = getattr(model, self.name) if is_replica else None


class AttentionHook:
    """Attention hooks: the pre-hook reads the forward's context and adds the block's prefixes to its call."""

    def __init__(
        self, attention: nn.Module, forwards: ForwardState, averaged: set[str], changes: list[BoundPrefix],
        kernels: AttentionImplementations | None, softmax: str | None, joint: JointLinears | None,
    ):  # fmt: skip
        """softmax: of the block's entry. joint: linears of changes that read the block's input."""
        self.forwards, self.changes, self.kernels, self.softmax = forwards, changes, kernels, softmax
        self.joint = joint
        self.context_hook = LayerHook(attention, forwards, averaged)

    def enter(self, attention: nn.Module, args: tuple, kwargs: dict[str, Any]):
        thread = self.forwards.thread
        if KEYWORD in kwargs:
            thread.context = kwargs[KEYWORD]
            kwargs = {name: value for name, value in kwargs.items() if name != KEYWORD}
        elif thread.context is None:
            self.context_hook.enter(attention, args, kwargs)
            thread.made_by_attention = True
        if thread.context is None or thread.context.disabled or not (self.joint or self.changes):
            return args, kwargs
        x = args[0] if args else kwargs["hidden_states"]
        context = thread.context.on(x.device)
        if self.joint is not None and x.dim() == 3 and not context.dropped and context.replica is None:
            self.joint.read(x, context.route)
        if self.changes:
            calls = self._calls(x, context)
            if self.softmax is not None:
                interceptor = OwnSoftmax(len(x), calls, self.softmax)
                interceptor.__enter__()
                thread.softmax_interceptors.append((attention, interceptor))
                return args, kwargs
            if self.kernels is not None:
                self.kernels.wrap()
            kwargs = {**kwargs, PREFIXES: calls}
        return args, kwargs

    def leave(self, attention: nn.Module, args: tuple, output: Any) -> None:
        """Also after a forward that has failed, whose output is None."""
        if self.joint is not None:
            self.joint.end()
        interceptors = self.forwards.thread.softmax_interceptors
        if interceptors and interceptors[-1][0] is attention:
            _, interceptor = interceptors.pop()
            interceptor.__exit__(None, None, None)
            if output is not None:
                interceptor.refuse_incomplete(type(attention).__name__)
        if self.forwards.thread.made_by_attention:
            self.context_hook.leave(attention, args, output)

    def _calls(self, x: Tensor, context: Context) -> Calls:
        calls = []
        for part in context.per_mixture or (context,):
            inputs = x if part.rows is None else x[part.rows]
            calls.append((part.rows, tuple(c.prefix_call(inputs, part) for c in self.changes if c.takes_part(part))))
        return calls


class EmbeddingsHook:
    """Forward hook of the embeddings: their output requires a gradient, or reentrant checkpointing would train no layer."""

    def __init__(self, model: nn.Module, forwards: ForwardState):
        self.modules, self.forwards = checkpointable(model), forwards

    def after(self, embeddings: nn.Module, args: tuple, output: Any) -> None:
        if not isinstance(output, Tensor) or output.requires_grad or self.forwards.thread.disabled:
            return
        if uses_gradient_checkpointing(self.modules, "reentrant"):
            output.requires_grad_(True)
