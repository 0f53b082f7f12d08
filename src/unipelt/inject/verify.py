"""Check an entry of `architectures.json` against a model: four kinds of checks, on single layers.

- complete: the entry has every field that it needs, and names no norm twice.
- sites: what is added to query, key or value alone changes that tensor alone.
- ffn: the layer depends on the FFN's input only through the FFN's output, token by token.
- positions: the attention's output, the norms and the residual are where the entry says, and later tokens change earlier ones
  only in an entry that is not causal.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unipelt.inject.architectures import Attention, Stack
from unipelt.inject.layer_entry import PROJECTIONS, is_norm
from unipelt.inject.layer_run import LayerForward, last_token_shaken, layer_forwards
from unipelt.inject.resolve import features, head_shape
from unipelt.inject.trace import frozen_eval


def failed_checks(model: PreTrainedModel, entries: tuple[Stack, ...]) -> Iterator[str]:
    """Each check that these entries fail on a model, in words. Raises SiteError if an entry does not fit."""
    base: Any = model.base_model
    with frozen_eval(base), torch.no_grad():
        for run in layer_forwards(model, entries):
            for failures in (complete(run.entry), sites(run), ffn(run), positions(run)):
                yield from (f"{run.layer.path}: {failure}" for failure in failures)


def complete(entry: Stack) -> Iterator[str]:
    """An entry has every field that it needs, once."""
    if (entry.ffn_norm is None) == (entry.ffn_residual is None):
        has = "neither" if entry.ffn_norm is None else "both"
        yield f"expected exactly one of ffn_norm (post-LN) and ffn_residual (pre-LN); the entry has {has}"
    if len({*entry.norms}) < len(entry.norms):
        yield "a norm is named twice"
    if (entry.name == "decoder") != (entry.causal or entry.cross is not None):
        expected = "decoder" if entry.causal or entry.cross else "encoder"
        found = f"causal={entry.causal} and {'a' if entry.cross else 'no'} cross-attention"
        yield f"name={entry.name!r}: expected {expected!r} for {found}"


def sites(run: LayerForward) -> Iterator[str]:
    """What is added to one of query, key and value moves that one alone."""
    for kind, attention in run.entry.attentions():
        block = run.layer.get(attention.module)
        plain = run.plain.attends.get(block)
        if plain is None:
            yield from sites_by_effect(run, kind, attention)
            continue
        for which in PROJECTIONS:
            moved = run.again(after=run.noise(attention, which)).attends[block]
            affected = [name for name, a, b in zip(PROJECTIONS, plain, moved) if run.moved(a, b)]
            if affected != [which]:
                yield f"a change of the {kind}-attention's {which} moves {' and '.join(affected) or 'nothing'}"
        if attention.softmax and attention.softmax != run.softmax_of(attention):
            yield f"the {kind}-attention's scores are not {attention.softmax!r}"
        shape = (plain[1].shape[1], plain[1].shape[-1], plain[2].shape[-1])
        if attention.prefix and tuple(head_shape(run.layer, attention, run.base.config)) != shape:
            yield f"the {kind}-attention has the shape {shape} of heads, not the entry's"
    inside = [m for m in run.layer.module.modules() if m in run.plain.attends]
    others = [m for m in inside if all(m is not run.layer.get(a.module) for _, a in run.entry.attentions())]
    if others:
        yield f"{type(others[0]).__name__} attends too, and the entry does not name it"


def sites_by_effect(run: LayerForward, kind: str, attention: Attention) -> Iterator[str]:
    """Failures judged by the effect on the heads: adding noise to the value acts linearly, to the query or key not; noise on one
    token's query reaches no other token."""
    heads = run.plain.reads[attention.out]
    for which in PROJECTIONS:
        once, twice = (run.again(after=run.noise(attention, which, n)).reads[attention.out] - heads for n in (1, 2))
        if not once.abs().max() > run.near:
            yield f"a change of the {kind}-attention's {which} does not reach {attention.out!r}"
            continue
        linear = bool((twice - 2 * once).abs().max() < 1e-3 * once.abs().max())
        if linear != (which == "value"):
            yield f"the effect of a change of the {kind}-attention's {which} is {'linear' if linear else 'not linear'}"
        query = run.plain.gives[attention.query]
        if heads.dim() == 3 and query.shape[:2] == heads.shape[:2] and which == "query":
            effect = run.again(after=run.noise(attention, which, 1.0, token=0)).reads[attention.out] - heads
            if effect[:, 1:].abs().max() > run.near:
                yield f"a change of one token's {kind}-attention's query reaches other tokens"


def ffn(run: LayerForward) -> Iterator[str]:
    """The FFN's input matters through its output alone, token by token."""
    shaken_input, output = {run.entry.ffn_input: _shaken}, {run.entry.ffn_output: _zero}
    plain, shaken = run.plain.gives[""], run.again(before=shaken_input)
    blank, both = run.again(after=output), run.again(before=shaken_input, after=output)
    if not run.moved(shaken.gives[""], plain):
        yield "the FFN's input moves nothing"
    if run.moved(blank.gives[""], both.gives[""]):
        yield f"the input of {run.entry.ffn_input!r} matters besides the output of {run.entry.ffn_output!r}"
    if not run.moved(blank.gives[""], plain):
        yield "the FFN's output moves nothing"
    if not run.moved(run.again(before={"": _shaken}, after=output).gives[""], blank.gives[""]):
        yield f"{run.entry.ffn_output!r} gives the stream too"
    for path, tensors in ((run.entry.ffn_input, run.plain.reads), (run.entry.ffn_output, run.plain.gives)):
        if path in tensors and tensors[path].shape[-1] != run.plain.reads[""].shape[-1]:
            yield f"{path!r} is inside the FFN: it has {tensors[path].shape[-1]} features"
    last = run.again(before={run.entry.ffn_input: last_token_shaken}).gives.get(run.entry.ffn_output)
    before = run.plain.gives.get(run.entry.ffn_output)
    if last is not None and before is not None and run.moved(run.but_last(last), run.but_last(before)):
        yield "one token's FFN reads other tokens"


def positions(run: LayerForward) -> Iterator[str]:
    """The attention's output, the norms, the residual and the order of tokens are as the entry says."""
    entry, plain, layer = run.entry, run.plain, run.layer
    width = plain.reads[""].shape[-1]
    outs = [*(attention.out for _, attention in run.entry.attentions()), entry.ffn_output]
    for kind, attention in run.entry.attentions():
        out, value = {attention.out: _zero}, run.noise(attention, "value")
        if features(layer.get(attention.out))[1] != width or plain.reads[attention.module].shape[-1] != width:
            yield f"the {kind}-attention does not read or give the {width} features of the stream"
        if not run.moved(run.again(after=value).reads[attention.out], plain.reads[attention.out]):
            yield f"{attention.out!r} does not read what comes of the {kind}-attention's value"
        blank = run.again(after=out).gives[""]
        if not run.moved(blank, plain.gives[""]):
            yield f"{attention.out!r} moves nothing"
        if attention.out not in value and run.moved(run.again(after={**value, **out}).gives[""], blank):
            yield f"the {kind}-attention's value has another way to the layer's output than {attention.out!r}"
        if attention.norm is None:
            yield from unnamed_norm(run, attention.out, outs[outs.index(attention.out) + 1 :])
        if attention.norm and plain.gives[attention.out].numel() == plain.reads[attention.norm].numel():
            rest = plain.reads[attention.norm] - plain.gives[attention.out].view_as(plain.reads[attention.norm])
            if not any(_proportional(rest, plain.reads[path]) for path in ("", attention.module)):
                yield f"{attention.norm!r} does not normalise the stream and the {kind}-attention's output"
    if run.sees_later_tokens() == entry.causal:
        yield f"a later token {'moves' if entry.causal else 'does not move'} earlier ones"
    if run.base.main_input_name != "pixel_values" and not run.has_mask and entry.module:
        yield f"{entry.module!r} is not given the attention mask"
    yield from ffn_place(run)
    yield from norm_places(run, width)


def unnamed_norm(run: LayerForward, output: str, later: Sequence[str]) -> Iterator[str]:
    """A norm over the stream and a sub-layer's output, from which the stream goes on. later: outputs of the sub-layers after it."""
    added, blank = run.plain.gives[output], run.again(after={output: _zero})
    still = dict.fromkeys(later, _zero)
    for path in run.entry.norms:
        reads, stream = run.plain.reads.get(path), blank.reads.get(path)
        if reads is None or stream is None or path == run.entry.ffn_residual or reads.numel() != added.numel():
            continue
        over = run.moved(reads, stream) and run.moved(stream, _zero(stream)) and _proportional(reads - stream, added)
        shaken, plain = (run.again(after=still | more).gives[""] for more in ({path: _shaken}, {}))
        goes_on = run.moved(shaken, plain) if later else not run.moved(run.plain.gives[path], run.plain.gives[""])
        if over and goes_on:
            yield f"{path!r} normalises the stream and the output of {output!r}, and the entry does not say so"


def ffn_place(run: LayerForward) -> Iterator[str]:
    entry, plain = run.entry, run.plain
    blank = run.again(after={entry.ffn_output: _zero})
    if entry.ffn_norm is None:
        yield from unnamed_norm(run, entry.ffn_output, ())
    if entry.ffn_norm:
        last = entry.cross.norm if entry.cross else entry.attention.norm
        if not last and run.moved(plain.gives[entry.ffn_norm], plain.gives[""]):
            yield f"the output of {entry.ffn_norm!r} is not the layer's"
        if last and not _proportional(blank.reads[entry.ffn_norm], blank.gives[last]):
            yield f"{entry.ffn_norm!r} does not read the stream and the FFN's output"
    if entry.ffn_residual:
        without = run.again(after={entry.attention.out: _zero})
        serial = run.moved(without.gives.get(entry.ffn_output), plain.gives.get(entry.ffn_output))
        outs = {attention.out: _zero for _, attention in entry.attentions()}
        # branches other than these are small beside a large input
        large = run.again(before={"": lambda x: 1000 * x}, after=outs)
        grows = _proportional(large.reads[entry.ffn_residual], large.reads[""], near=0.02)
        if not grows and not _proportional(blank.gives[""], blank.reads[entry.ffn_residual]):  # MiniMax normalises it
            yield f"{entry.ffn_residual!r} does not read the stream: it does not grow with the layer's input"
        shaken = run.again(before={entry.ffn_residual: _shaken})
        if not run.moved(shaken.gives.get(entry.ffn_output), plain.gives.get(entry.ffn_output)):
            yield f"what {entry.ffn_residual!r} reads does not reach the FFN"
        if serial and run.moved(shaken.gives[entry.attention.out], plain.gives[entry.attention.out]):
            yield f"what {entry.ffn_residual!r} reads goes into the attention too"


def norm_places(run: LayerForward, width: int) -> Iterator[str]:
    """Every norm of the layer is named, those between the projections and the attention's output apart."""
    out = {a.out: _zero for _, a in run.entry.attentions()}
    noises = [run.noise(a, which) for _, a in run.entry.attentions() for which in PROJECTIONS]
    inner = [run.again(after={**noise, **out}) for noise in noises]
    still = run.again(after=out)
    for path, module in run.layer.module.named_modules():
        if path not in run.plain.reads or not is_norm(module, width):
            continue
        inside = any(run.moved(noisy.reads.get(path), still.reads.get(path)) for noisy in inner)
        if not inside and path not in run.entry.norms:
            yield f"the norm {path!r} is not named"
    for path in run.entry.norms:
        norm: Any = run.layer.get(path) if run.layer.has(path) and path in run.plain.reads else None
        if hasattr(norm, "weight") and not is_norm(norm, width):  # else it has none to tune, in this layer
            yield f"{path!r} is not a norm of {width} features"


def _zero(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def _shaken(x: Tensor) -> Tensor:
    return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(5)).to(x)


def _proportional(a: Tensor, b: Tensor, near: float | None = None) -> bool:
    """Whether two tensors are equal up to a factor and a shift of each feature, as a scaled residual and a norm's bias give."""
    if a.numel() != b.numel():
        return False
    x, y = (t.reshape(-1, t.shape[-1]).double() for t in (a, b))
    x, y = x - x.mean(0), y - y.mean(0)
    factor = (x * y).sum(0) / (y * y).sum(0).clamp_min(1e-30)
    near = near or {torch.float64: 1e-9, torch.float32: 1e-4}.get(a.dtype, 5e-2)
    return bool((x - factor * y).abs().max() <= near * x.abs().max().clamp_min(1e-6))
