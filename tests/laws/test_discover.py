"""Rows that running a model gives, and the laws that tell a right row from a wrong one."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import tiny
import torch
import transformers as hf

import unipelt
from laws.lawbook import attached, result, rows
from unipelt import Stack
from unipelt.errors import SiteError
from unipelt.inject.discover import discover, with_keywords
from unipelt.inject.resolve import Layer, projection
from unipelt.inject.trace import Trace, example_inputs
from unipelt.inject.verify import broken_laws


def comparable(row: Stack) -> Stack:
    """Without the fields that say one thing in several ways, or that discovery gives in full."""
    blocks = {
        name: block and replace(block, order=(), groups=1, shape=None)
        for name, block in (("attention", row.attention), ("cross", row.cross))
    }
    return replace(row, positions=(), norms=tuple(sorted(row.norms)), **blocks)


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_running_a_model_gives_the_row_of_the_table(arch: str):
    model = tiny.build(arch)
    found = discover(model)
    assert [comparable(row) for row in found] == [comparable(row) for row in rows(arch)]
    for mine, its in zip(found, rows(arch)):
        layer = Layer(0, "", model.base_model.get_submodule(its.layers.replace("*", "0"))[0])
        for part in ("query", "key", "value"):
            parts = [projection(layer, row.attention, part, model.base_model.config)[3] for row in (mine, its)]
            features = [part and part.rows(torch.arange(sum(part.sizes) * part.groups)) for part in parts]
            assert (features[0] is None) == (features[1] is None)
            assert features[0] is None or torch.equal(*features)


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_every_row_of_the_table_satisfies_the_laws(arch: str):
    assert broken_laws(tiny.build(arch), rows(arch)) == []


MUTATIONS: dict[str, Callable[[Stack], Stack]] = {
    "query and value exchanged": lambda s: _blocks(s, query=s.attention.value, value=s.attention.query),
    "key and value exchanged": lambda s: _blocks(s, key=s.attention.value, value=s.attention.key),
    "query and key exchanged": lambda s: _blocks(s, query=s.attention.key, key=s.attention.query),
    "parts in another order": lambda s: _blocks(s, order=("query", "value", "key")) if _fused(s) else s,
    "other groups": lambda s: _blocks(s, groups=1 if s.attention.groups == "heads" else "heads") if _fused(s) else s,
    "another shape of heads": lambda s: _blocks(s, shape=(1, 3, 5)),
    "out is the query": lambda s: _blocks(s, out=s.attention.query),
    "out is the FFN's output": lambda s: _blocks(s, out=s.ffn_output),
    "no keyword enters": lambda s: _blocks(s, prefix=False),
    "a norm over the attention": lambda s: _blocks(s, norm=None if s.attention.norm else s.norms[0]),
    "causal": lambda s: replace(s, causal=not s.causal),
    "FFN's input is the first norm": lambda s: replace(s, ffn_input=s.norms[0]),
    "FFN's input is the attention": lambda s: replace(s, ffn_input=s.attention.out),
    "FFN's output is the attention's": lambda s: replace(s, ffn_output=s.attention.out),
    "FFN's output is the first norm": lambda s: replace(s, ffn_output=s.norms[0]),
    "the residual is the first norm": lambda s: replace(s, ffn_residual=s.norms[0]) if s.ffn_residual else s,
    "the residual is the attention": lambda s: replace(s, ffn_residual=s.attention.out) if s.ffn_residual else s,
    "the last norm is the first": lambda s: replace(s, ffn_norm=s.norms[0]) if s.ffn_norm else s,
    "last norm left out": lambda s: replace(s, norms=s.norms[:-1]),
    "first norm left out": lambda s: replace(s, norms=s.norms[1:]),
    "another stack module": lambda s: replace(s, module=f"{s.layers}.0"),
    "no cross-attention": lambda s: replace(s, cross=None),
    "the cross-attention is the own": lambda s: replace(s, cross=s.attention) if s.cross else s,
    "no keywords": lambda s: replace(s, keywords=False),
}
BASES = ("llama", "bert", "gpt2", "gpt_neox", "bart")


def _fused(row: Stack) -> bool:
    return row.attention.query == row.attention.key


def _blocks(row: Stack, **changes) -> Stack:
    return replace(row, attention=replace(row.attention, **changes))


def caught(model, given: tuple[Stack, ...]) -> bool:
    try:
        paths = {attending.path for attending in Trace(model.base_model, example_inputs(model.base_model)).attending}
        blocks = [replace(r, attention=replace(r.attention, prefix=True)) for r in given]
        said = with_keywords(model.base_model, example_inputs(model.base_model), tuple(blocks), paths)
        keywords = [(r.keywords, r.attention.prefix) for r in said] != [(r.keywords, r.attention.prefix) for r in given]
        return keywords or bool(broken_laws(model, given))
    except (SiteError, AttributeError, KeyError):
        return True


@pytest.mark.parametrize("base", BASES)
def test_a_wrong_row_breaks_a_law(base: str):
    model, right = tiny.build(base), rows(base)
    assert not caught(model, right)
    wrong = {name: (*right[:-1], mutate(right[-1])) for name, mutate in MUTATIONS.items()}
    wrong = {name: row for name, row in wrong.items() if row != right}
    missed = {name for name, row in wrong.items() if not caught(model, row)}
    assert len(wrong) >= 18 and missed == set()


@pytest.mark.parametrize("arch", ["bert", "roberta"])
def test_an_encoder_run_as_a_decoder_is_found(arch: str):
    model = attached(arch, "unipelt-apl", build={"is_decoder": True})
    given = tiny.inputs(arch, model)
    assert unipelt.detach(model) is model and result(model(**given)).isfinite().all()
    (row,) = discover(model)
    assert row.causal and row.name == "decoder"


def test_the_line_says_what_was_found(caplog):
    model = tiny.build("bert")
    model.config.model_type = "berd"
    unipelt.attach(model, "lora")
    assert caplog.messages == ["berd: found by running it: encoder of encoder.layer.*"]


def unknown(name: str) -> hf.PreTrainedModel:
    model = tiny.build(name)
    model.config.model_type = "unheard-of"
    return model


def remote(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
    base = model.base_model
    base.__class__ = type("Foreign", (type(base),), {"__module__": "transformers_modules.somebody"})
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: unknown("bert").to("meta"), "meta device.*load them first"),
        (lambda: remote(unknown("bert")), "Foreign is code from outside transformers"),
        (lambda: tiny_of(hf.FNetConfig, hf.FNetModel), "nothing in it attends"),
        (lambda: tiny_of(hf.FSMTConfig, hf.FSMTModel), r"not \[batch, seq, d\]"),
        (lambda: tiny_of(hf.XLMConfig, hf.XLMModel), "no residual stream"),
    ],
    ids=["meta", "remote code", "no attention", "sequence first", "no layers"],
)
def test_what_cannot_be_found_is_refused_with_what_was_seen(make, words: str):
    with pytest.raises(SiteError, match=f"(?s){words}.*stacks="):
        unipelt.attach(make(), "lora")


def tiny_of(config: type, model: type) -> hf.PreTrainedModel:
    sizes = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "d_model": 32,
        "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "n_heads": 4, "n_layers": 2,
        "emb_dim": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "vocab_size": 60, "src_vocab_size": 60, "tgt_vocab_size": 60, "n_words": 60, "max_position_embeddings": 64,
    }  # fmt: skip
    fields = config().to_dict()
    return model(config(**{name: value for name, value in sizes.items() if name in fields})).eval()
