"""Prefixes in attention blocks that compute their own softmax instead of calling transformers' attention functions.

While such a block runs, its matrix products and its softmax are intercepted. Scores are S = s q kᵀ + (mask, biases), with s = 1/√d
("scaled") or 1 where queries are scaled before ("plain"); what the block then computes is h = softmax(S) v. Where it is one
call of torch's fused attention ("fused"), that call says s. With a prefix it becomes

    (1−λ) h + softmax([L, S])_prefix g P_v,    L = g s q P_kᵀ,    λ = Σ softmax([L, S])_prefix

which is softmax([L, S]) [g P_v; v], the same as concatenated keys (Li & Liang 2021, arXiv:2101.00190; He et al. 2022, §3.1).
Positions give the prefix no bias. Attention dropout does not apply to the prefix, except in a fused call with an ungated prefix.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from unipelt.errors import SiteError
from unipelt.forms.prefix import multi_head_parallel
from unipelt.inject.attention import Calls, PrefixCall, apply_prefixes
from unipelt.inject.context import in_batch_order

PRODUCTS = ("matmul", "__matmul__", "bmm", "baddbmm", "einsum")


@dataclass
class Watched:
    """What one attention computed. Shapes: query `[batch, head, query, d]`, key and value `[batch, head, key, d]`."""

    query: Tensor
    key: Tensor
    value: Tensor | None = None
    scores: Float[Tensor, "batch head query key"] | None = None
    """None where it is one fused call"""
    factor: float = 1.0
    """by which the product itself multiplies q kᵀ"""


class OwnSoftmax(TorchFunctionMode):
    """Watches one call of an attention block, and adds the prefixes of `calls` to what it attends to."""

    def __init__(self, batch: int, calls: Calls | None = None, kind: str = "plain"):
        """batch: of the block's input; kind: of the block's entry in the table."""
        super().__init__()
        self.batch, self.calls, self.kind = batch, calls or [], kind
        self.product: tuple[Tensor, Tensor, float] | None = None
        self.watched: list[Watched] = []
        self.softmaxes = 0
        self.paused = False
        """while a change computes something"""

    @property
    def complete(self) -> bool:
        """Whether exactly one attention was seen, from its scores to its output."""
        return len(self.watched) == 1 and self.softmaxes <= 1 and self.watched[0].value is not None

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        if self.paused:
            return function(*args, **kwargs)
        if name == "scaled_dot_product_attention":
            return self._fused(function, *args, **kwargs)
        output = function(*args, **kwargs)
        if name in PRODUCTS:
            operands = [*_tensors((args, kwargs))][-2:]
            if name == "einsum" and _contracts_last(args[0]):
                operands[-1] = operands[-1].mT
            return self._multiplied(output, operands, kwargs.get("alpha", 1.0))
        if name == "softmax":
            self.softmaxes += 1
            scores: Tensor = next(_tensors((args, kwargs)))
            query, key, factor = self.product or (scores, scores, 0.0)
            if scores.shape[-2:] == (query.shape[-2], key.shape[-1]) and scores.numel() % self.batch == 0:
                watched = Watched(self._heads(query), self._heads(key).mT, None, self._heads(scores), factor)
                self.watched.append(watched)
        return output

    def _heads(self, x: Tensor) -> Float[Tensor, "batch head _ _"]:
        return x if x.dim() == 4 else x.reshape(self.batch, -1, *x.shape[-2:])

    def _multiplied(self, output: Tensor, operands: list[Tensor], factor: float) -> Tensor:
        self.product = (operands[0], operands[1], factor) if len(operands) == 2 else None
        watched = self.watched[-1] if self.watched else None
        if watched is None or watched.scores is None or watched.value is not None or len(operands) < 2:
            return output
        left, right = operands
        if left.numel() != watched.scores.numel() or left.shape[-2:] != watched.scores.shape[-2:]:
            return output
        watched.value = self._heads(right)
        if not any(prefixes for _, prefixes in self.calls):
            return output
        changed = self._changed(watched, self._heads(output))
        return changed.to(output.dtype).reshape(output.shape)

    def _changed(self, watched: Watched, h: Float[Tensor, "batch head query d"]) -> Float[Tensor, "batch head query d"]:
        """The attention's output with each mixture's prefixes applied to its own rows."""
        scores = watched.scores
        assert scores is not None
        if self.calls[0][0] is None:
            return self._with_prefixes(self.calls[0][1], watched.query, scores, h, watched.factor)
        per_mixture = [(watched.query[rows], scores[rows], h[rows], prefixes) for rows, prefixes in self.calls]
        parts = [self._with_prefixes(prefixes, q, s, heads, watched.factor) for q, s, heads, prefixes in per_mixture]
        return in_batch_order([rows for rows, _ in self.calls], parts)

    def _with_prefixes(self, prefixes: tuple, query: Tensor, scores: Tensor, h: Tensor, factor: float) -> Tensor:
        scale = factor * (query.shape[-1] ** -0.5 if self.kind == "scaled" else 1.0)
        logits, values, added = [], [], []
        for prefix in (prefix.to(query.dtype) for prefix in prefixes):
            weight: Any = 1.0 if prefix.weight is None else prefix.weight[:, None]  # batch 1 query 1
            if prefix.function == "relu":
                queries = query if prefix.query is None else prefix.query
                added.append(multi_head_parallel(queries, prefix.key, prefix.value).transpose(1, 2) * weight)
                continue
            prefix = _repeated(prefix, query.shape[1])
            logits.append(weight * scale * (query @ prefix.key.mT))
            values.append((weight, prefix.value))
        if logits:
            mass = scores.logsumexp(dim=-1, keepdim=True)
            shares = F.softmax(torch.cat([*(part.to(mass.dtype) for part in logits), mass], dim=-1), dim=-1).to(h.dtype)
            *prefix_shares, rest = shares.split([*(part.shape[-1] for part in logits), 1], dim=-1)
            h = rest * h
            for share, (weight, value) in zip(prefix_shares, values):
                h = h + (weight * (share @ value.to(h.dtype))).to(h.dtype)
        for delta in added:
            h = h + delta.to(h.dtype)
        return h

    def _fused(
        self, function: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, **rest: Any,
    ) -> Tensor:  # fmt: skip
        self.watched.append(Watched(query, key, value))
        if not any(prefixes for _, prefixes in self.calls):
            return function(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **rest)
        if is_causal:
            attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
            attn_mask = attn_mask[None, None]

        def plain(q: Tensor, k: Tensor, v: Tensor, mask: Any, bias: None, dropout: float) -> Any:
            return function(q, k, v, mask, dropout, scale=scale, **rest).transpose(1, 2), None

        scaling = query.shape[-1] ** -0.5 if scale is None else scale
        calls = [(rows, tuple(_repeated(prefix, key.shape[1]) for prefix in prefixes)) for rows, prefixes in self.calls]
        arguments = query, key, value, attn_mask, None, dropout_p
        return apply_prefixes(calls, plain, *arguments, scaling=scaling)[0].transpose(1, 2)

    def refuse_incomplete(self, block_name: str) -> None:
        """Raise SiteError where the prefixes did not enter the one attention that the block computes."""
        fused = self.complete and self.watched[0].scores is None
        if not self.complete or (self.kind == "fused" and not fused):
            raise SiteError(
                f"{block_name} computes its attention in another way than when its entry was found, so no prefix entered "
                "it: set the attention implementation with which the entry was found, or use a mixture without a prefix"
            )


def _contracts_last(equation: str) -> bool:
    """Whether an einsum sums over the last dimension of its second operand, as q kᵀ of keys `[batch, head, key, d]` does."""
    inputs, _, output = equation.partition("->")
    return inputs[-1] not in output


def _repeated(prefix: PrefixCall, heads: int) -> PrefixCall:
    """A prefix of grouped keys and values for this many heads."""
    repeat = heads // prefix.key.shape[1]
    key, value = (p.repeat_interleave(repeat, dim=1) for p in (prefix.key, prefix.value))
    return prefix._replace(key=key, value=value)


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors of nested arguments, in order."""
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list | dict):
            yield from _tensors(value)
