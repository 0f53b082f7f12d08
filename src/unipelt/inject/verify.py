"""Whether a row is right about a model: three laws, tried on single layers.

sites: what is added to query, key or value alone moves that tensor alone. ffn: with the FFN's output at zero its input does not
matter, with it as it is it does, and each token's matters to that token alone. places: the attention's output, the norms and
the residual are where the row says, and later tokens move earlier ones exactly where it says so.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unipelt.inject.architectures import Attention, Stack
from unipelt.inject.layer_row import is_norm
from unipelt.inject.resolve import Layer, ResolvedStack, features, find_stacks, head_shape, projection
from unipelt.inject.trace import attention_function, example_inputs, first_tensor, kernel_of, output_tensor, prepared

Change = Callable[[Tensor], Tensor]


def broken_laws(model: PreTrainedModel, rows: tuple[Stack, ...]) -> list[str]:
    """What these rows say that the model does not do; empty where all laws hold. Raises SiteError where a row does not fit."""
    base: Any = model.base_model
    broken = []
    with prepared(base), torch.no_grad():
        for stack in find_stacks(model, rows):
            tried: set[tuple] = set()
            for layer in stack.layers:
                kind = tuple((path, type(module)) for path, module in layer.module.named_modules())
                if kind not in tried:
                    tried.add(kind)
                    test = LayerTest(base, stack, layer)
                    broken += [f"{layer.path}: {law}" for law in (*test.sites(), *test.ffn(), *test.places())]
    return broken


@dataclass
class Seen:
    """What one run of a layer showed: what modules read and gave, by their path in the layer, and calls of the attention."""

    reads: dict[str, Tensor] = field(default_factory=dict)
    gives: dict[str, Tensor] = field(default_factory=dict)
    attends: dict[nn.Module, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)


class LayerTest:
    """Runs one layer on what it reads in a forward of the base, with changes to what its modules read or give."""

    def __init__(self, base: Any, stack: ResolvedStack, layer: Layer):
        self.base, self.stack, self.layer, self.row = base, stack, layer, stack.row
        self.inputs = example_inputs(base)
        self.blocks = [("", stack.row.attention), *([("cross-", stack.row.cross)] if stack.row.cross else [])]
        self.call: tuple[tuple, dict[str, Any]] | None = None
        self.has_mask = False
        calls: list[tuple[tuple, dict[str, Any]]] = []

        def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))

        def look(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            masks = [value for name, value in self.inputs.items() if name.endswith("attention_mask")]
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            self.has_mask |= any(a.shape == m.shape and a.dtype == m.dtype for a in given for m in masks)

        handles = [
            layer.module.register_forward_pre_hook(keep, with_kwargs=True),
            stack.module.register_forward_pre_hook(look, with_kwargs=True),
        ]
        whole = self.run()
        for handle in handles:
            handle.remove()
        self.call = calls[0]
        self.plain = self.run_alone() or whole
        same = torch.equal(self.plain.gives[""], whole.gives[""])
        if not same:  # it depends on more than its arguments
            self.call, self.plain = None, whole
        largest = whole.gives[""].abs().max().clamp_min(1e-6)
        self.near = float(largest * {torch.float64: 1e-9, torch.float32: 1e-5}.get(whole.gives[""].dtype, 2e-2))

    def run_alone(self) -> Seen | None:
        try:
            return self.run()
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError):
            self.call = None
            return None

    def run(self, before: Mapping[str, Change] | None = None, after: Mapping[str, Change] | None = None) -> Seen:
        """One run. before: changes to what a module reads; after: to what it gives; by path in the layer."""
        seen = Seen()

        def enter(path: str) -> Any:
            def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
                x = first_tensor(args, kwargs)
                if x is not None and before and path in before:
                    changed = before[path](x)
                    args = tuple(changed if a is x else a for a in args)
                    kwargs, x = {name: changed if a is x else a for name, a in kwargs.items()}, changed
                if x is not None:
                    seen.reads.setdefault(path, x.clone())
                return args, kwargs

            return hook

        def leave(path: str) -> Any:
            def hook(module: nn.Module, args: tuple, output: Any) -> Any:
                y = output_tensor(output)
                if y is not None and after and path in after:
                    changed = after[path](y)
                    output = changed if y is output else type(output)(changed if a is y else a for a in output)
                    y = changed
                if y is not None:
                    seen.gives.setdefault(path, y.clone())
                return output

            return hook

        def attend(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
        ):
            seen.attends.setdefault(module, (query, key, value))
            return kernel_of(module)(module, query, key, value, attention_mask, **kwargs)

        with ExitStack() as hooks:
            hooks.enter_context(attention_function(self.base, attend))
            for path, module in self.layer.module.named_modules():
                for handle in (
                    module.register_forward_pre_hook(enter(path), with_kwargs=True),
                    module.register_forward_hook(leave(path)),
                ):
                    hooks.callback(handle.remove)
            if self.call is None:
                self.base(**self.inputs)
            else:
                self.layer.module(*self.call[0], **self.call[1])
        return seen

    def noise(
        self, attention: Attention, part: str, factor: float = 1.0, token: int | None = None
    ) -> dict[str, Change]:
        """Something added to a projection's query, key or value, in all tokens or in one."""
        path, _, outputs, fused = projection(self.layer, attention, part, self.base.config)

        def change(y: Tensor) -> Tensor:
            shape = (*y.shape[:-1], outputs)
            added = factor * torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(y)
            if token is not None:
                one = torch.zeros_like(added)
                one[:, token] = added[:, token]
                added = one
            return y + added if fused is None else fused.add(y, added)

        return {path: change}

    def moved(self, a: Tensor | None, b: Tensor | None) -> bool:
        if a is None or b is None or not a.numel():
            return False
        return a.shape != b.shape or float((a - b).abs().max()) > self.near

    def sites(self) -> Iterator[str]:
        """What is added to one of query, key and value moves that one alone."""
        parts = ("query", "key", "value")
        for kind, attention in self.blocks:
            block = self.layer.get(attention.module)
            plain = self.plain.attends.get(block)
            if plain is None:
                yield from self.sites_by_effect(kind, attention)
                continue
            for part in parts:
                moved = self.run(after=self.noise(attention, part)).attends[block]
                found = [name for name, a, b in zip(parts, plain, moved) if self.moved(a, b)]
                if found != [part]:
                    yield f"a change of the {kind}{part} moves {' and '.join(found) or 'nothing'}"
            shape = (plain[1].shape[1], plain[1].shape[-1], plain[2].shape[-1])
            if attention.prefix and tuple(head_shape(self.layer, attention, self.base.config)) != shape:
                yield f"the {kind}attention has the shape {shape} of heads, not the row's"
        inside = [m for m in self.layer.module.modules() if m in self.plain.attends]
        others = [m for m in inside if all(m is not self.layer.get(a.module) for _, a in self.blocks)]
        if others:
            yield f"{type(others[0]).__name__} attends too, and the row does not name it"

    def sites_by_effect(self, kind: str, attention: Attention) -> Iterator[str]:
        """A value's effect is linear; a query's is not, and stays in its own token; a key's is not, and does not."""
        heads = self.plain.reads[attention.out]
        for part in ("query", "key", "value"):
            once, twice = (self.run(after=self.noise(attention, part, n)).reads[attention.out] - heads for n in (1, 2))
            if not once.abs().max() > self.near:
                yield f"a change of the {kind}{part} does not reach {attention.out!r}"
                continue
            linear = bool((twice - 2 * once).abs().max() < 1e-3 * once.abs().max())
            if linear != (part == "value"):
                yield f"the effect of a change of the {kind}{part} is {'linear' if linear else 'not linear'}"
            query = self.plain.gives[attention.query]
            if heads.dim() == 3 and query.shape[:2] == heads.shape[:2] and part == "query":
                one = self.run(after=self.noise(attention, part, 1.0, token=0)).reads[attention.out] - heads
                if one[:, 1:].abs().max() > self.near:
                    yield f"a change of one token's {kind}query reaches other tokens"

    def ffn(self) -> Iterator[str]:
        """The FFN's input matters through its output alone, token by token."""
        entry, output = {self.row.ffn_input: _shaken}, {self.row.ffn_output: _zero}
        plain, shaken = self.plain.gives[""], self.run(before=entry)
        blank, both = self.run(after=output), self.run(before=entry, after=output)
        if not self.moved(shaken.gives[""], plain):
            yield "the FFN's input moves nothing"
        if self.moved(blank.gives[""], both.gives[""]):
            yield f"the input of {self.row.ffn_input!r} matters besides the output of {self.row.ffn_output!r}"
        if not self.moved(blank.gives[""], plain):
            yield "the FFN's output moves nothing"
        last = self.run(before={self.row.ffn_input: _last_token_shaken}).gives.get(self.row.ffn_output)
        before = self.plain.gives.get(self.row.ffn_output)
        if last is not None and before is not None and self.moved(self.but_last(last), self.but_last(before)):
            yield "one token's FFN reads other tokens"

    def but_last(self, x: Tensor) -> Tensor:
        """Every token but the last of each row, also of [batch·seq, d]."""
        shape = self.plain.reads[""].shape
        x = x.view(*shape[:-1], -1) if len(shape) == 3 and x.numel() == shape.numel() else x
        return x[:, :-1] if x.dim() == 3 else x[:-1]

    def places(self) -> Iterator[str]:
        """The attention's output, the norms, the residual and the order of tokens are as the row says."""
        row, plain, layer = self.row, self.plain, self.layer
        width = plain.reads[""].shape[-1]
        for kind, attention in self.blocks:
            out, value = {attention.out: _zero}, self.noise(attention, "value")
            if features(layer.get(attention.out))[1] != width or plain.reads[attention.module].shape[-1] != width:
                yield f"the {kind}attention does not read or give the {width} features of the stream"
            if not self.moved(self.run(after=value).reads[attention.out], plain.reads[attention.out]):
                yield f"{attention.out!r} does not read what comes of the {kind}value"
            blank = self.run(after=out).gives[""]
            if not self.moved(blank, plain.gives[""]):
                yield f"{attention.out!r} moves nothing"
            if attention.out not in value and self.moved(self.run(after={**value, **out}).gives[""], blank):
                yield f"the {kind}value has another way to the layer's output than {attention.out!r}"
            if kind == "" and attention.norm is None:
                yield from self.unnamed_norm(attention)
            if attention.norm and plain.gives[attention.out].numel() == plain.reads[attention.norm].numel():
                rest = plain.reads[attention.norm] - plain.gives[attention.out].view_as(plain.reads[attention.norm])
                if not any(_proportional(rest, plain.reads[path]) for path in ("", attention.module)):
                    yield f"{attention.norm!r} does not normalise the stream and the {kind}attention's output"
        if self.base.main_input_name != "pixel_values" and plain.reads[""].dim() == 3:
            later = self.run(before={"": _last_token_shaken}).gives[""]
            if self.moved(later[:, :-1], plain.gives[""][:, :-1]) == row.causal:
                yield f"a later token {'moves' if row.causal else 'does not move'} earlier ones"
            if not self.has_mask and row.module:
                yield f"{row.module!r} is not given the attention mask"
        yield from self.ffn_place()
        yield from self.norm_places(width)

    def unnamed_norm(self, attention: Attention) -> Iterator[str]:
        """A norm over the stream and the attention's output, from which the stream goes on."""
        given, x = self.plain.gives[attention.out], self.plain.reads[""]
        blank = dict.fromkeys((self.row.ffn_output, *(a.out for _, a in self.blocks[1:])), _zero)
        for path in self.row.norms:
            if path == self.row.ffn_residual:
                continue
            reads = self.plain.reads.get(path)
            if reads is None or not reads.shape == given.shape == x.shape:
                continue
            if self.moved(reads, given) and _proportional(reads - given, x):
                shaken = self.run(after={**blank, path: _shaken}).gives[""]
                if self.moved(shaken, self.run(after=blank).gives[""]):
                    yield f"{path!r} normalises the stream and the attention's output, and the row does not say so"

    def ffn_place(self) -> Iterator[str]:
        row, plain = self.row, self.plain
        blank = self.run(after={row.ffn_output: _zero})
        if row.ffn_norm:
            last = row.cross.norm if row.cross else row.attention.norm
            if not last and self.moved(plain.gives[row.ffn_norm], plain.gives[""]):
                yield f"the output of {row.ffn_norm!r} is not the layer's"
            if last and not _proportional(blank.reads[row.ffn_norm], blank.gives[last]):
                yield f"{row.ffn_norm!r} does not read the stream and the FFN's output"
        if row.ffn_residual:
            serial = self.moved(
                self.run(after={row.attention.out: _zero}).gives.get(row.ffn_output),
                plain.gives.get(row.ffn_output),
            )
            outs = {
                attention.out: _zero for _, attention in self.blocks
            }  # and other branches are small beside a large input
            large = self.run(before={"": lambda x: 1000 * x}, after=outs)
            grows = _proportional(large.reads[row.ffn_residual], large.reads[""], near=0.02)
            if not grows and not _proportional(blank.gives[""], blank.reads[row.ffn_residual]):  # MiniMax normalises it
                yield f"{row.ffn_residual!r} does not read the stream: it does not grow with the layer's input"
            shaken = self.run(before={row.ffn_residual: _shaken})
            if not self.moved(shaken.gives.get(row.ffn_output), plain.gives.get(row.ffn_output)):
                yield f"what {row.ffn_residual!r} reads does not reach the FFN"
            if serial and self.moved(shaken.gives[row.attention.out], plain.gives[row.attention.out]):
                yield f"what {row.ffn_residual!r} reads goes into the attention too"

    def norm_places(self, width: int) -> Iterator[str]:
        """Every norm of the layer is named, those between the projections and the attention's output apart."""
        out = {a.out: _zero for _, a in self.blocks}
        parts = [self.noise(a, part) for _, a in self.blocks for part in ("query", "key", "value")]
        inner = [self.run(after={**noise, **out}) for noise in parts]
        still = self.run(after=out)
        for path, module in self.layer.module.named_modules():
            if path not in self.plain.reads or not is_norm(module, width):
                continue
            inside = any(self.moved(run.reads.get(path), still.reads.get(path)) for run in inner)
            if not inside and path not in self.row.norms:
                yield f"the norm {path!r} is not named"
        for path in self.row.norms:
            norm: Any = self.layer.get(path) if self.layer.has(path) and path in self.plain.reads else None
            if hasattr(norm, "weight") and not is_norm(norm, width):  # else it has none to tune, in this layer
                yield f"{path!r} is not a norm of {width} features"


def _zero(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def _shaken(x: Tensor) -> Tensor:
    return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(5)).to(x)


def _last_token_shaken(x: Tensor) -> Tensor:
    rows = x.clone()
    last = rows[:, -1] if rows.dim() == 3 else rows[-1]
    last += torch.randn(last.shape, generator=torch.Generator().manual_seed(6)).to(x)
    return rows


def _proportional(a: Tensor, b: Tensor, near: float | None = None) -> bool:
    """Whether two tensors are equal up to a factor and a shift of each feature, as a scaled residual and a norm's bias give."""
    if a.numel() != b.numel():
        return False
    x, y = (t.reshape(-1, t.shape[-1]).double() for t in (a, b))
    x, y = x - x.mean(0), y - y.mean(0)
    factor = (x * y).sum(0) / (y * y).sum(0).clamp_min(1e-30)
    near = near or {torch.float64: 1e-9, torch.float32: 1e-4}.get(a.dtype, 5e-2)
    return bool((x - factor * y).abs().max() <= near * x.abs().max().clamp_min(1e-6))
