"""Merging: the plain base computes what the attached one did, or the merge is refused by name and nothing has changed."""

from pathlib import Path

import pytest
import tiny
import torch
import transformers
from torch import nn
from values import logits, randomise, state_of

import unipelt
from unipelt import Bias, Bottleneck, Change, Gate, Kronecker, Learned, LowRank, Mixture, Norm, Prefix
from unipelt.errors import CheckpointError, SpecError
from unipelt.inject.state import mixture_state

NO_BIAS = tuple(
    name
    for name in tiny.ARCHITECTURES
    if not any(n.endswith("bias") for n, _ in tiny.build(name, "base").named_parameters())
)
OUT_BIAS = ("bert", "gpt2", "gpt_neox", "opt", "distilbert", "vit", "bart", "deberta-v2")
"""all linears of attention have biases, which an adapter's bias folds into"""


def change(form, site, reads="input", weight=1.0) -> Change:
    return Change(form=form, site=site, reads=reads, weight=weight)


LINEAR = Bottleneck(size=3, activation="identity")
MERGE = {
    "head": Mixture(()),
    "lora": Mixture((change(LowRank(r=2, alpha=3.0, dropout=0.3), "linear:all-linear"),)),
    "projections": Mixture(
        (
            change(LowRank(r=3), ("query", "value"), weight=0.7),
            change(LowRank(r=2), "key", weight=Learned(start=-2.0)),
        )
    ),
    "bitfit": Mixture((change(Bias(), "biases", "nothing", 0.5),)),
    "norms": Mixture((change(Norm(), "norms", weight=-1.5),)),
    "linear adapters": Mixture(
        (
            change(LINEAR, "value", "output", 0.5),
            change(LowRank(r=2), "value"),
            change(LINEAR, "query"),
            change(Kronecker(size=4, activation="identity"), "attention", "output"),
        )
    ),
}


def prepared(base: str, mixture: Mixture | str, **options) -> nn.Module:
    attention = (tiny.ARCHITECTURES[base].float64 or tiny.ARCHITECTURES[base].attention)[0]
    model = tiny.build(base, dtype=torch.float64, attn=attention)
    return randomise(unipelt.attach(model, mixture, **options))


def mergeable(base: str) -> list[str]:
    """The kinds of MERGE that a base takes."""
    lacking = {"bitfit"} if base in NO_BIAS else set()
    return [kind for kind in MERGE if kind not in lacking and not (kind == "linear adapters" and base not in OUT_BIAS)]


def together(base: str) -> Mixture:
    """All of them in one mixture: one that is merged wrongly makes the whole wrong."""
    return Mixture(tuple(dict.fromkeys(change for kind in mergeable(base) for change in MERGE[kind].changes)))


ALONE = ("bert", "gpt2", "llama", "bart", "t5")
CASES = [(base, kind) for base in ALONE for kind in mergeable(base)]
CASES += [(base, "together") for base in tiny.ARCHITECTURES if base not in ALONE]


@pytest.mark.parametrize(("base", "kind"), CASES)
def test_the_merged_base_computes_the_same(base: str, kind: str, tmp_path: Path):
    model = prepared(base, together(base) if kind == "together" else MERGE[kind])
    names = set(tiny.build(base).state_dict())
    expected = logits(model, base)
    assert unipelt.merge(model) is model

    exact = bool(tiny.ARCHITECTURES[base].float64)
    close = {"rtol": 0, "atol": 1e-12} if exact else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(logits(model, base), expected, **close)
    assert not hasattr(model, "unipelt") and set(model.state_dict()) == names
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    if exact:
        torch.testing.assert_close(logits(loaded, base), expected, **close)


def test_one_run_of_many_is_merged():
    model = prepared("gpt2", MERGE["projections"], runs=3)
    with unipelt.route(model, [1, 1, 1]):
        expected = logits(model, "gpt2")
    torch.testing.assert_close(logits(unipelt.merge(model, run=1), "gpt2"), expected, rtol=0, atol=1e-12)


def test_a_merged_base_can_be_tuned_again():
    model = unipelt.merge(prepared("bert", "lora"))
    expected = logits(model, "bert")
    unipelt.detach(randomise(unipelt.attach(model, "unipelt-apl")))
    assert torch.equal(logits(model, "bert"), expected)
    assert all(p.requires_grad for p in model.parameters())


def test_a_fixed_gate_merges():
    """UniPELT's LoRA cannot merge, its gate being a function of the input; with the gate a constant it can."""
    mixture = Mixture(tuple(change(LowRank(r=2), site, weight=Gate()) for site in ("query", "value")))
    model = prepared("bert", mixture)
    with pytest.raises(
        SpecError, match=r"low_rank_query: its gate .*unipelt.fix_gates\(model, {'low_rank_query': 0.5, .*--data FILE"
    ):
        unipelt.merge(model)
    unipelt.fix_gates(model, {"low_rank_query": 0.3, "low_rank_value": [0.2, 0.9]})
    expected = logits(model, "bert")
    torch.testing.assert_close(logits(unipelt.merge(model), "bert"), expected, rtol=0, atol=1e-12)


NORMED = Bottleneck(size=3, norm=True, activation="identity")
REFUSED = {
    "adapter": ("bert", "adapter", r"bottleneck_ffn: an adapter is not linear \(its activation is relu\)"),
    "prefix": ("bert", "prefix", "prefix_heads: a prefix adds positions to the attention"),
    "relu prefix": ("bert", Mixture((change(Prefix(function="relu"), "heads", "queries"),)), "adds positions"),
    "group": ("bert", "unipelt-central", "low_rank_query_value: its gate "),
    "every one": ("bert", "unipelt-apl", "bottleneck_ffn: an adapter .*; low_rank_query: its gate .*; low_rank_value: its gate [^;]*input$"),
    "norm": ("bert", Mixture((change(NORMED, "query"),)), "its own LayerNorm is not linear"),
    "pfeiffer": ("bert", Mixture((change(LINEAR, "ffn", "normed sum"),)), "it reads 'normed sum', which is neither"),
    "heads": ("bert", Mixture((change(LINEAR, "heads"),)), "it reads 'input', which is neither the input nor"),
    "parallel": ("bert", Mixture((change(LINEAR, "ffn"),)), "it reads 'input', which is neither the input nor"),
    "module": ("llama", Mixture((change(LINEAR, "ffn", "output"),)), r"layers\.0\.mlp' is a LlamaMLP, which is not linear"),
    "no bias": ("llama", Mixture((change(LINEAR, "query"),)), "q_proj' has no bias to which the adapter's could be added"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fold_is_refused_by_name(what: str):
    base, mixture, message = REFUSED[what]
    model = prepared(base, mixture)
    expected, before = logits(model, base), state_of(model)
    with pytest.raises(SpecError, match="merge refused, nothing was changed: .*" + message) as error:
        unipelt.merge(model)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits(model, base), expected)


def test_an_adapter_without_biases_merges_where_there_is_no_bias():
    model = prepared("llama", Mixture((change(LINEAR, "query"),)))
    with torch.no_grad():
        for name, parameter in mixture_state(model).named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    expected = logits(model, "llama")
    torch.testing.assert_close(logits(unipelt.merge(model), "llama"), expected, rtol=1e-5, atol=1e-5)


def test_a_pooled_head_is_refused():
    model = prepared("bert", "lora", pooling="mean")
    with pytest.raises(
        SpecError,
        match=r"the head: it reads pooling='mean'.*train with pooling='model' \(`unipelt train --pooling model`\)",
    ):
        unipelt.merge(model)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(dtype: torch.dtype):
    model = randomise(unipelt.attach(tiny.build("bert"), "lora"))
    linear = model.bert.encoder.layer[1].attention.self.value
    linear.weight = nn.Parameter(linear.weight.data.to(dtype), requires_grad=False)
    with pytest.raises(
        SpecError, match=r"layer\.1\.attention\.self\.value' is quantised or not loaded \(Parameter of "
    ):
        unipelt.merge(model)
    assert mixture_state(model).handles


def test_a_weight_that_two_modules_share_is_refused():
    model = tiny.build("gpt2", "generator")
    model.transformer.h[1].mlp.c_fc.weight = model.transformer.h[0].mlp.c_fc.weight
    randomise(unipelt.attach(model, Mixture((change(LowRank(r=2), "linear:c_fc"),))))
    with pytest.raises(SpecError, match=r"h\.0\.mlp\.c_fc' shares its weight with 'transformer\.h\.1\.mlp\.c_fc'"):
        unipelt.merge(model)


def test_half_precision_is_rounded_once():
    model = tiny.build("bert", dtype=torch.bfloat16)
    query = model.bert.encoder.layer[0].attention.self.query
    before = query.weight.detach().double()
    form = randomise(unipelt.attach(model, "lora")).unipelt.encoder.get_submodule("0.low_rank_query.query")
    change = 2 * form.up.weight[0].double() @ form.down.weight[0].double()
    unipelt.merge(model)
    assert torch.equal(query.weight, (before + change).to(torch.bfloat16))


def test_a_merged_change_cannot_be_dropped():
    """Its layer's weights hold it, so `dropped` would skip nothing."""
    model = prepared("bert", "lora")
    unipelt.merge(model, unmergeable="keep")
    with (
        pytest.raises(SpecError, match=r"layers=1: .* is merged into the weights of layer 0"),
        unipelt.dropped(model, 1),
    ):
        pass
    with unipelt.dropped(model, 0):
        pass
    upper = prepared("bert", "lora(layers=(1,))")
    unipelt.merge(upper, unmergeable="keep")
    with unipelt.dropped(upper, 1):
        pass


def test_export_merged_writes_a_plain_checkpoint(tmp_path: Path):
    model = prepared("bert", MERGE["lora"], runs=2)
    with unipelt.route(model, [1, 1, 1]):
        expected = logits(model, "bert")
    assert unipelt.export_merged(model, tmp_path / "plain", run=1) == tmp_path / "plain"
    assert {path.name for path in (tmp_path / "plain").iterdir()} == {"config.json", "model.safetensors"}
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain", dtype=torch.float64)
    torch.testing.assert_close(logits(loaded.eval(), "bert"), expected, rtol=0, atol=1e-12)
    with unipelt.route(model, [1, 1, 1]):  # the model is attached as before
        assert torch.equal(logits(model, "bert"), expected)


def test_export_merged_takes_the_tokenizer_along(tmp_path: Path):
    class Tokenizer:
        def save_pretrained(self, folder: str) -> None:
            (Path(folder) / "tokenizer.json").write_text("{}")

    unipelt.export_merged(prepared("bert", "lora"), tmp_path, tokenizer=Tokenizer())
    assert (tmp_path / "tokenizer.json").is_file()


def test_export_merged_on_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = prepared("bert", "lora")
    unipelt.export_merged(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    with pytest.raises(CheckpointError, match=r"cannot write \(No space left on device\)"):
        unipelt.export_merged(randomise(model, seed=3), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
