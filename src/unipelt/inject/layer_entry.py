"""What an entry says of one layer, from a forward in which gradients tell what reaches what: see discover.py."""

from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge

from unipelt.errors import SiteError
from unipelt.inject.architectures import Attention
from unipelt.inject.resolve import Layer, features, head_shape, is_linear
from unipelt.inject.trace import Attending, Call, NotFound, Trace, frozen_eval, gradients, output_tensor, reached

PROJECTIONS = ("query", "key", "value")


class LayerEntry:
    """One layer of a trace, and what an entry says of it."""

    def __init__(self, trace: Trace, layer: Call):
        self.trace, self.layer = trace, layer
        if layer.reads is None or layer.gives is None or layer.x is None or not reached(layer.gives, [layer.reads])[0]:
            raise NotFound("its input does not reach its output without weights: it has no residual stream")
        if trace.masks and (layer.x.dim() != 3 or len(layer.x) != len(trace.masks[0])):
            raise NotFound(f"its hidden states are not [batch, seq, d] but {list(layer.x.shape)}")
        self.calls = [
            c for c in trace.calls if c is not layer and layer.holds(c.start) and self.local(c.path) and c.gives
        ]
        self.weighted = [p for p in trace.weighted if layer.holds(p.time)]
        self.attending = [a for a in trace.attending if layer.holds(a.time)]

    def local(self, path: str) -> str:
        prefix = self.layer.path + "."
        return path.removeprefix(prefix) if path.startswith(prefix) else ""

    def entry(self) -> dict[str, Any]:
        """The fields of a Stack that a layer tells."""
        blocks: dict[str, tuple[Attention, Call]] = {}
        for attending in self.attending:
            kind = "attention" if self.comes_from_input(attending.key) else "cross"
            if kind in blocks and blocks[kind][0].module != self.local(attending.path):
                raise NotFound(f"it has two attentions, {blocks[kind][0].module} and {self.local(attending.path)}")
            blocks.setdefault(kind, self.attention(attending))
        if "attention" not in blocks:
            raise NotFound("it has a cross-attention and no self-attention")
        self.width = features(blocks["attention"][1].module)[1]
        if self.layer.x.shape[-1] != self.width:  # type: ignore[union-attr]
            raise NotFound(f"its attention gives {self.width} features, its stream has {self.layer.x.shape[-1]}")  # type: ignore[union-attr]
        ffn, reader = self.ffn([out for _, out in blocks.values()])
        norm = self.norm_over(ffn)
        for kind, (attention, out) in blocks.items():
            attention_norm = self.norm_over(out)
            blocks[kind] = replace(attention, norm=self.local(attention_norm.path) if attention_norm else None), out
        return {
            "attention": blocks["attention"][0],
            "cross": blocks["cross"][0] if "cross" in blocks else None,
            "ffn_input": self.local(reader.path), "ffn_output": self.local(ffn.path),
            "ffn_norm": self.local(norm.path) if norm else None,
            "ffn_residual": None if norm else self.residual(reader), "norms": self.norms(), "positions": self.positions(),
        }  # fmt: skip

    def comes_from_input(self, edge: GradientEdge) -> bool:
        """Whether a tensor is computed from the layer's input, through weights or not."""
        edges, visited = [edge], set()
        while edges:
            hits = [reached(e, [self.layer.reads, *(p.gives for p in self.weighted)]) for e in edges]
            if any(hit[0] for hit in hits):
                return True
            new = [p for i, p in enumerate(self.weighted) if any(hit[i + 1] for hit in hits) and id(p) not in visited]
            visited |= {id(p) for p in new}
            edges = [e for p in new for e in p.reads]
        return False

    def attention(self, attending: Attending) -> tuple[Attention, Call]:
        """Where the projections of one attention are, and the call of the linear after it."""
        linears = [p for p in self.weighted if p.module is not None and self.local(p.path)]
        columns: dict[str, dict[str, list[int]]] = {}
        for which in PROJECTIONS:
            grads = gradients(getattr(attending, which), [p.gives for p in linears])
            columns[which] = {
                p.path: g.flatten(0, -2).abs().sum(0).nonzero().flatten().tolist()
                for p, g in zip(linears, grads) if g is not None
            }  # fmt: skip
            if not columns[which]:
                raise NotFound(f"no linear module gives the {which} of its attention {self.local(attending.path)!r}")
            twice = next((p.path for p in linears if sum(q.path == p.path for q in linears) > 1), None)
            if twice in columns[which]:
                raise NotFound(f"its {self.local(str(twice))} is called twice, for the {which} of two streams")
        paths = {which: max(by_path, key=lambda path: len(by_path[path])) for which, by_path in columns.items()}
        after = [
            c for c in self.calls if is_linear(c.module) and c.start > attending.time and c.path not in paths.values()
        ]
        reads = [c for c in after if reached(c.reads, [attending.gives])[0]]
        if not reads:
            raise NotFound(f"no linear module reads what its attention {self.local(attending.path)!r} gives")
        entry = Attention(
            module=self.local(attending.path), out=self.local(reads[0].path), prefix=attending.dispatched,
            query=self.local(paths["query"]), key=self.local(paths["key"]), value=self.local(paths["value"]),
        )  # fmt: skip
        entry = self.with_order(entry, {which: columns[which][paths[which]] for which in PROJECTIONS}, paths, attending)
        return self.with_shape(entry, attending), reads[0]

    def with_order(self, entry: Attention, columns: dict[str, list[int]], paths: dict[str, str], attending: Attending):
        """How a fused projection is laid out. Raises NotFound where parts share columns or lie in no regular order."""
        shared = next((path for path in paths.values() if list(paths.values()).count(path) > 1), None)
        if shared is None:
            return entry
        outputs = features(self.trace.base.get_submodule(shared))[1]
        labels = ["other"] * outputs
        for which in PROJECTIONS:
            for column in columns[which] if paths[which] == shared else ():
                if labels[column] != "other":
                    raise NotFound(f"{self.local(shared)} gives {labels[column]} and {which} in one column")
                labels[column] = which
        spans = [(label, len(list(alike))) for label, alike in groupby(labels)]
        period = next(
            n for n in range(1, len(spans) + 1) if len(spans) % n == 0 and spans == spans[:n] * (len(spans) // n)
        )
        order, groups = tuple(label for label, _ in spans[:period]), len(spans) // period
        if len(set(order)) < len(order):
            raise NotFound(f"the columns of {self.local(shared)} are in no regular order")
        width = attending.query.node._input_metadata[attending.query.output_nr].shape[-1]  # type: ignore[attr-defined]
        heads = attending.shape[1] if attending.shape else len(columns["key"]) // width
        named: int | str = "heads" if groups > 1 and groups == heads else groups
        return replace(entry, order=order, groups=named)

    def with_shape(self, entry: Attention, attending: Attending) -> Attention:
        """The shape of the heads, where the sizes of the projections do not say it: by name where an attribute has it."""
        if attending.shape is None:
            return entry
        measured = attending.shape[1:]
        config, layer = self.trace.base.config, Layer(0, self.layer.path, self.layer.module)
        module = layer.get(entry.module)
        try:
            if tuple(head_shape(layer, entry, config)) == measured:
                return entry
        except (SiteError, AttributeError):
            pass
        names = (
            ("num_key_value_heads", "num_heads", "num_attention_heads", "n_heads"),
            ("qk_head_dim", "head_dim", "attention_head_size"),
            ("v_head_dim", "head_dim", "attention_head_size"),
        )
        owners = (module, getattr(module, "config", None), config)

        def named(value: int, known: tuple[str, ...]) -> int | str:
            for name in known:
                first = next((n for o in owners if isinstance(n := getattr(o, name, None), int)), None)
                if first == value:
                    return name
            return value

        heads, key, value = (named(value, known) for value, known in zip(measured, names))
        return replace(entry, shape=(heads, key, value))

    def ffn(self, outs: list[Call]) -> tuple[Call, Call]:
        """The module that gives the FFN's output, and the one that reads its input."""
        gives = reached(self.layer.gives, [p.gives for p in self.weighted])
        attended = [a.gives for a in self.attending]
        branches: dict[int, Call] = {}
        for product, hit in zip(self.weighted, gives):
            if hit and not any(any(reached(edge, attended)) for edge in product.reads):
                for call in self.calls:  # outermost first
                    if call.holds(product.time) and self.is_branch(call):
                        branches[id(call)] = call
                        break
        by_size = sorted(branches.values(), key=lambda c: -sum(p.numel() for p in c.module.parameters()))
        why = "nothing but its attention adds to its stream: it has no FFN"
        for call in by_size:
            reader = self.reader(call)
            if reader is None:
                why = f"no module reads the input of its FFN {self.local(call.path)!r}"
            elif not self.keeps_tokens_apart(call):
                why = f"its other branch {self.local(call.path)!r} mixes tokens: it has no FFN"
            else:
                return call, reader
        raise NotFound(why)

    def keeps_tokens_apart(self, branch: Call) -> bool:
        """Whether changing the first token of the module's input changes its output at no other token."""
        if branch.x is None or branch.x.dim() != 3 or branch.x.shape[1] < 2:
            return True
        changed = branch.x.detach().clone()
        changed[:, 0] += 1
        outputs = []
        with frozen_eval(self.trace.base), torch.no_grad():
            for x in (branch.x, changed):
                args = (x if a is branch.x else a for a in branch.args)
                kwargs = {name: x if a is branch.x else a for name, a in branch.kwargs.items()}
                outputs.append(output_tensor(branch.module(*args, **kwargs)))
        before, after = outputs
        if before is None or after is None or before.shape[:2] != branch.x.shape[:2]:
            return True
        return bool((after - before)[:, 1:].abs().max() <= 1e-5 * before.abs().max())

    def is_branch(self, call: Call) -> bool:
        """Whether a module's output is added to the stream, and holds neither the stream itself nor an attention."""
        once = sum(other.module is call.module for other in self.calls) == 1
        apart = not any(call.holds(a.time) for a in self.attending) and once
        return apart and not reached(call.gives, [self.layer.reads])[0] and reached(self.layer.gives, [call.gives])[0]

    def reader(self, ffn: Call) -> Call | None:
        """The first module on the way to an FFN's output that reads what the layer's input reaches."""
        edges: list[GradientEdge | None] = [ffn.reads]
        before = ffn.start
        if not is_linear(ffn.module) and reached(ffn.reads, [self.layer.reads])[0]:
            return ffn
        while edges:
            if any(reached(edge, [self.layer.reads])[0] for edge in edges):
                readers = [c for c in self.calls if c.start <= before and c.reads in edges and is_linear(c.module)]
                return readers[0] if readers else None
            known = [p for p in self.weighted if p.time < before]
            hits = [p for p in known if any(reached(edge, [p.gives])[0] for edge in edges)]
            if not hits:
                return None
            edges, before = [*hits[0].reads], hits[0].time
        return None

    def norm_over(self, branch: Call) -> Call | None:
        """The norm over a branch's output and the stream, if the stream goes on from there."""
        for call in self.calls:
            if call.start > branch.start and is_norm(call.module, self.width):
                over = all(reached(call.reads, [branch.gives, self.layer.reads]))
                if over and reached(self.layer.gives, [call.gives])[0]:
                    return call
        return None

    def residual(self, reader: Call) -> str | None:
        """The module that reads the stream where the FFN branches off: its norm, or the FFN itself."""
        for call in reversed(self.calls):
            before = call is reader or (call.end <= reader.start and reached(reader.reads, [call.gives])[0])
            stream = (
                before and reached(self.layer.gives, [call.reads])[0] and reached(call.reads, [self.layer.reads])[0]
            )
            if (stream and not list(call.module.children())) or (stream and call is reader):
                return self.local(call.path)
        return None

    def norms(self) -> tuple[str, ...]:
        """Every norm of the layer, those of queries and keys apart."""
        parts = [edge for a in self.attending for edge in (a.query, a.key, a.value)]
        norms = [c for c in self.calls if is_norm(c.module, self.width)]
        norms = [c for c in norms if not any(reached(edge, [c.gives])[0] for edge in parts)]
        return tuple(dict.fromkeys(self.local(c.path) for c in norms))

    def positions(self) -> tuple[str, ...]:
        """Modules with parameters that read tensors of no entry of the batch, such as relative positions."""
        entries = len(self.trace.masks[0]) if self.trace.masks else 1
        calls = [
            c for c in self.calls if c.x is not None and len(c.x) == 1 < entries and list(c.module.parameters(False))
        ]
        return tuple(dict.fromkeys(self.local(c.path) for c in calls))


def is_norm(module: nn.Module, width: int) -> bool:
    """Whether a module is blind to the scale of what it reads and has one weight a feature."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.shape != (width,) or list(module.children()):
        return False
    x = torch.linspace(-2, 3, 3 * width).sin().to(weight).view(1, 3, width)
    with torch.no_grad():
        try:
            y, scaled = module(x), module(x * 7)
        except (RuntimeError, TypeError, ValueError):
            return False
    near = 1e-2 if weight.dtype.itemsize > 2 else 0.2
    return y.shape == x.shape and torch.allclose(y, scaled, atol=near) and not torch.allclose(x * 7, scaled, atol=near)
