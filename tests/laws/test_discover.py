"""Rows that running a model gives, and the laws that tell a right row from a wrong one."""

from dataclasses import replace

import pytest
import shrink
import tiny
import torch
import transformers as hf

import unipelt
from laws.lawbook import attached, result, rows
from unipelt import Stack
from unipelt.errors import SiteError
from unipelt.inject.discover import discover
from unipelt.inject.resolve import Layer, projection
from unipelt.inject.trace import Trace, example_inputs
from unipelt.inject.verify import failed_checks


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
    assert list(failed_checks(tiny.build(arch), rows(arch))) == []


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


def test_an_attention_of_a_tensor_without_gradient_leaves_the_one_before_as_it_was():
    base = tiny.build("bert").base_model
    trace = Trace(base, example_inputs(base))
    before = trace.attending[-1].gives
    x = torch.randn(1, 4, 5, 8, requires_grad=True)
    trace._attend(base.encoder.layer[0].attention.self, x.detach(), x, x, scaling=1.0)
    assert len(trace.attending) == 2 and trace.attending[-1].gives == before


def unknown(name: str) -> hf.PreTrainedModel:
    model = tiny.build(name)
    model.config.model_type = "unheard-of"
    return model


def remote(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
    base = model.base_model
    base.__class__ = type("Foreign", (type(base),), {"__module__": "transformers_modules.somebody"})
    return model


def sharded(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
    next(model.base_model.parameters()).device_mesh = "what DTensor has"  # type: ignore[attr-defined]
    return model


def compiled(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
    model.bert.encoder.layer[0] = torch.compile(model.bert.encoder.layer[0])
    return model


def quantised(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(torch.int8)
    return model


def skipping(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
    """Runs all layers but the last, as models of images skip layers where there is no image."""
    layers = model.bert.encoder.layer
    layers.__class__ = type("Skips", (torch.nn.ModuleList,), {"__iter__": lambda s: iter([*s._modules.values()][:-1])})
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: unknown("bert").to("meta"), "meta device.*load them first"),
        (lambda: sharded(unknown("bert")), "sharded over several devices; attach before sharding"),
        (lambda: compiled(unknown("bert")), "part of it is compiled; attach to the plain model, then compile it"),
        (lambda: quantised(unknown("bert")), "all its weights are quantised"),
        (
            lambda: skipping(unknown("bert")),
            "layer bert.encoder.layer.1 did not run on input_ids and attention_mask alone",
        ),
        (lambda: remote(unknown("bert")), "Foreign is code from outside transformers"),
        (lambda: tiny_of(hf.FNetConfig, hf.FNetModel), "nothing in it attends"),
        (lambda: tiny_of(hf.FSMTConfig, hf.FSMTModel), r"not \[batch, seq, d\]"),
        (lambda: tiny_of(hf.XLMConfig, hf.XLMModel), "no residual stream"),
    ],
    ids=[
        "meta",
        "sharded",
        "compiled",
        "quantised",
        "a layer did not run",
        "remote code",
        "no attention",
        "sequence first",
        "no layers",
    ],
)
def test_what_cannot_be_found_is_refused_with_what_was_seen(make, words: str):
    with pytest.raises(SiteError, match=f"(?s){words}.*stacks=.*full fine-tuning needs no entry"):
        unipelt.attach(make(), "lora")


def test_layers_that_a_text_does_not_reach_are_said(caplog):
    discover(shrink.build("git"))
    assert "; image_encoder.vision_model.encoder.layers, " in caplog.text
    assert "did not run on input_ids and attention_mask alone and stay as they are" in caplog.text


def test_attention_that_no_prefix_enters_is_said_and_takes_other_methods(caplog):
    model = shrink.build("convbert")
    model.config.model_type = "unheard-of"
    with pytest.raises(
        SiteError, match=r"no prefix enters convbert.encoder.layer.0.attention.self .*lora, adapter or bitfit"
    ):
        unipelt.attach(model, "unipelt-apl")
    assert "no prefix can enter its attention" in caplog.text
    for method in ("lora", "adapter", "bitfit"):
        unipelt.detach(unipelt.attach(model, method))


def tiny_of(config: type, model: type) -> hf.PreTrainedModel:
    sizes = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "d_model": 32,
        "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "n_heads": 4, "n_layers": 2,
        "emb_dim": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "vocab_size": 60, "src_vocab_size": 60, "tgt_vocab_size": 60, "n_words": 60, "max_position_embeddings": 64,
    }  # fmt: skip
    fields = config().to_dict()
    return model(config(**{name: value for name, value in sizes.items() if name in fields})).eval()
