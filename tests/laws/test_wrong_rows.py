"""Rows that are wrong in one thing: each kind of mistake breaks a law."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import tiny

from laws.lawbook import rows
from unipelt import Stack
from unipelt.errors import SiteError
from unipelt.inject.discover import with_keywords
from unipelt.inject.trace import example_inputs
from unipelt.inject.verify import failed_checks

Mistake = Callable[[Stack], Stack]


def _own(row: Stack, **changes) -> Stack:
    return replace(row, attention=replace(row.attention, **changes))


def _cross(row: Stack, **changes) -> Stack:
    assert row.cross is not None
    return replace(row, cross=replace(row.cross, **changes))


PROJECTIONS: dict[str, Mistake] = {
    "query and value exchanged": lambda s: _own(s, query=s.attention.value, value=s.attention.query),
    "key and value exchanged": lambda s: _own(s, key=s.attention.value, value=s.attention.key),
    "query and key exchanged": lambda s: _own(s, query=s.attention.key, key=s.attention.query),
    "the value's linear for the query": lambda s: _own(s, query=s.attention.value),
    "the query's linear for the key": lambda s: _own(s, key=s.attention.query),
    "the key's linear for the value": lambda s: _own(s, value=s.attention.key),
    "the value is the output projection": lambda s: _own(s, value=s.attention.out),
    "the query is the FFN": lambda s: _own(s, query=s.ffn_input),
    "out is the query": lambda s: _own(s, out=s.attention.query),
    "out is the FFN's output": lambda s: _own(s, out=s.ffn_output),
    "the block is the layer": lambda s: _own(s, module=""),
    "the block is the output projection": lambda s: _own(s, module=s.attention.out),
    "other heads": lambda s: _own(s, shape=(1, 3, 5)),
    "half as many heads of twice the width": lambda s: _own(s, shape=(2, 16, 16)),
    "wider values": lambda s: _own(s, shape=(4, 8, 16)),
    "no keyword enters": lambda s: _own(s, prefix=False),
    "scores as they are": lambda s: _own(s, softmax="plain"),
    "scores of one fused call": lambda s: _own(s, softmax="fused"),
}
FUSED: dict[str, Mistake] = {
    "the value second": lambda s: _own(s, order=("query", "value", "key")),
    "the key first": lambda s: _own(s, order=("key", "query", "value")),
    "twice the groups": lambda s: _own(s, groups=2 if s.attention.groups == 1 else 8),
    "one group, or one for each head": lambda s: _own(s, groups=1 if s.attention.groups == "heads" else "heads"),
}
CROSS: dict[str, Mistake] = {
    "no cross-attention": lambda s: replace(s, cross=None),
    "the cross-attention is the own": lambda s: replace(s, cross=s.attention),
    "the own attention is the cross": lambda s: replace(s, attention=s.cross),
    "own and cross-attention exchanged": lambda s: replace(s, attention=s.cross, cross=s.attention),
    "its key and value exchanged": lambda s: _cross(s, key=s.cross.value, value=s.cross.key),
    "its query and key exchanged": lambda s: _cross(s, query=s.cross.key, key=s.cross.query),
    "its key is the own": lambda s: _cross(s, key=s.attention.key),
    "its output is the own": lambda s: _cross(s, out=s.attention.out),
    "its norm": lambda s: _cross(s, norm=None if s.cross.norm else s.norms[0]),
}
FFN: dict[str, Mistake] = {
    "its input is the first norm": lambda s: replace(s, ffn_input=s.norms[0]),
    "its input is the attention's output": lambda s: replace(s, ffn_input=s.attention.out),
    "its input is the attention block": lambda s: replace(s, ffn_input=s.attention.module),
    "its input is its output": lambda s: replace(s, ffn_input=s.ffn_output),
    "its output is its input": lambda s: replace(s, ffn_output=s.ffn_input),
    "its output is the attention's": lambda s: replace(s, ffn_output=s.attention.out),
    "its output is the first norm": lambda s: replace(s, ffn_output=s.norms[0]),
    "its output is the last norm": lambda s: replace(s, ffn_output=s.norms[-1]),
    "its output is the layer's": lambda s: replace(s, ffn_output=""),
}
PLACES: dict[str, Mistake] = {
    "a norm over the attention": lambda s: _own(s, norm=None if s.attention.norm else s.norms[0]),
    "causal": lambda s: replace(s, causal=not s.causal),
    "its name": lambda s: replace(s, name="encoder" if s.name == "decoder" else "decoder"),
    "the last norm left out": lambda s: replace(s, norms=s.norms[:-1]),
    "the first norm left out": lambda s: replace(s, norms=s.norms[1:]),
    "a norm named twice": lambda s: replace(s, norms=(*s.norms, s.norms[0])),
    "a projection named as a norm": lambda s: replace(s, norms=(*s.norms, s.attention.out)),
    "the stack is a layer": lambda s: replace(s, module=f"{s.layers}.0"),
    "the stack is the list of layers": lambda s: replace(s, module=s.layers),
    "the layers are one": lambda s: replace(s, layers=f"{s.layers}.0"),
    "no keywords": lambda s: replace(s, keywords=False),
}
PRE_NORM: dict[str, Mistake] = {
    "a norm over the FFN": lambda s: replace(s, ffn_norm=s.norms[-1], ffn_residual=None),
    "no residual": lambda s: replace(s, ffn_residual=None),
    "the residual is the first norm": lambda s: replace(s, ffn_residual=s.norms[0]),
    "the residual is the attention": lambda s: replace(s, ffn_residual=s.attention.out),
    "the residual is the FFN's output": lambda s: replace(s, ffn_residual=s.ffn_output),
    "the residual is the query": lambda s: replace(s, ffn_residual=s.attention.query),
}
POST_NORM: dict[str, Mistake] = {
    "no norm over the FFN": lambda s: replace(s, ffn_norm=None),
    "its norm is the residual": lambda s: replace(s, ffn_norm=None, ffn_residual=s.ffn_norm),
    "the FFN's norm is the first": lambda s: replace(s, ffn_norm=s.norms[0]),
    "the attention's norm is the last": lambda s: _own(s, norm=s.ffn_norm),
    "the two norms exchanged": lambda s: replace(_own(s, norm=s.ffn_norm), ffn_norm=s.attention.norm),
}
KINDS = {
    f"{group}: {name}": (applies, mistake)
    for group, applies, mistakes in (
        ("projections", lambda s: True, PROJECTIONS),
        ("fused", lambda s: s.attention.query == s.attention.key, FUSED),
        ("cross", lambda s: s.cross is not None, CROSS),
        ("ffn", lambda s: True, FFN),
        ("places", lambda s: True, PLACES),
        ("pre-LN", lambda s: s.ffn_norm is None, PRE_NORM),
        ("post-LN", lambda s: s.ffn_norm is not None, POST_NORM),
    )
    for name, mistake in mistakes.items()
}
BASES = ("llama", "bert", "gpt2", "gpt_neox", "bart")


def wrong_rows(base: str) -> dict[str, tuple[Stack, ...]]:
    """The kinds that this base has a turn at, each on the last of its stacks; what changes nothing is another base's."""
    found: dict[str, tuple[Stack, ...]] = {}
    for number, (kind, (applies, mistake)) in enumerate(KINDS.items()):
        able = [b for b in BASES if applies(rows(b)[-1]) and mistake(rows(b)[-1]) != rows(b)[-1]]
        assert able, f"{kind} is never a mistake"
        if able[number % len(able)] == base:
            found[kind] = (*rows(base)[:-1], mistake(rows(base)[-1]))
    return found


def caught(model, given: tuple[Stack, ...]) -> bool:
    """Whether a row breaks a law, has no such module, or says otherwise than its keywords do."""
    try:
        open_ = tuple(_own(row, prefix=True) for row in given)
        said = with_keywords(model, example_inputs(model.base_model), open_)
        keywords = [(r.keywords, r.attention.prefix) for r in said] != [(r.keywords, r.attention.prefix) for r in given]
        return keywords or any(failed_checks(model, given))
    except (SiteError, AttributeError, KeyError):
        return True


@pytest.mark.parametrize("base", BASES)
def test_a_wrong_row_breaks_a_law(base: str):
    model = tiny.build(base)
    assert not caught(model, rows(base))
    missed = [kind for kind, wrong in wrong_rows(base).items() if not caught(model, wrong)]
    assert missed == []


def test_there_are_sixty_kinds_of_mistakes():
    assert len(KINDS) >= 60
