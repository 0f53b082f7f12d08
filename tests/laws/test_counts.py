"""Rule 14: the papers' parameter counts on the shapes of the papers' bases, and exactly which tensors receive a gradient."""

from dataclasses import replace
from functools import cache

import pytest
import tiny
import torch
import transformers as hf

import unipelt
from laws.lawbook import attached, cases, on_each, result, scalar
from unipelt import PRESETS, Change, LowRank, Mixture
from unipelt.inject.state import mixture_state

D, LAYERS = 768, 12
BERT_TABLES = 2 * 10 * D * LAYERS  # a prefix of ten positions without its MLP
BART = {"d_model": 1024, "encoder_layers": 12, "decoder_layers": 12, "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096}
BART |= {"encoder_attention_heads": 16, "decoder_attention_heads": 16}
T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
T5_XXL |= {"vocab_size": 32128, "tie_word_embeddings": False}
CONSTRUCTORS = {
    "bert-base": lambda: hf.BertForSequenceClassification(hf.BertConfig()),
    "roberta-base": lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig()),
    "bart-large": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART)),
    "t5-xxl": lambda: hf.MT5ForConditionalGeneration(hf.MT5Config(**T5_XXL)),  # of T5 1.1, with its gated FFN
    "llama-7b": lambda: hf.LlamaForCausalLM(hf.LlamaConfig()),  # the defaults are its
}


def counts(base: str, what: str | Mixture, **options) -> dict[str, int]:
    with torch.device("meta"):
        model = CONSTRUCTORS[base]()
    return unipelt.trainable_parameters(unipelt.attach(model, what, **options))


@cache
def without_head(base: str, what: str) -> int:
    return sum(number for name, number in counts(base, what).items() if name != "head")


@pytest.mark.parametrize(
    ("preset", "number"),
    [
        ("prefix(mlp=0)", 184_320),
        ("prefix", 9_857_024),
        ("lora", 294_912),
        ("dora", 294_912 + 2 * D * LAYERS),
        ("ia3", (D + D + 4 * D) * LAYERS),
        ("adapter", 894_528),
        ("unipelt-ap(mlp=0)", 1_097_304),
        ("unipelt-apl(mlp=0)", 1_410_672),
        ("bitfit", 102_912),
        ("head", 0),
    ],
)
def test_unipelts_counts_on_bert_base(preset: str, number: int):
    assert without_head("bert-base", preset) == number


def test_without_the_mlp_it_is_the_papers_count():
    """9,857,024 train; 184,320 are kept."""
    mlp = 10 * D + (D + 1) * 512 + (512 + 1) * 2 * LAYERS * D
    for preset in ("prefix", "unipelt-ap", "unipelt-apl"):
        stored = without_head("bert-base", f"{preset}(mlp=0)")
        assert without_head("bert-base", preset) - mlp + BERT_TABLES == stored


def test_the_papers_own_count_of_apl_has_one_gate_for_query_and_value():
    low_rank = Change(form=LowRank(), site=("query", "value"), reads="input", weight=unipelt.Gate())
    apl = Mixture((*unipelt.mixture("unipelt-ap(mlp=0)").changes, low_rank))
    assert sum(n for name, n in counts("bert-base", apl).items() if name != "head") == 1_401_444


def test_the_head_is_counted_by_itself():
    assert counts("bert-base", "lora")["head"] == 1_538
    assert sum(counts("bert-base", "bitfit", head="paper").values()) == 102_914
    assert counts("bert-base", "bitfit", head="paper")["head"] == 2
    for preset, head in {"lora": 0, "prefix": 0, "adapter": 1_538, "unipelt-apl": 1_538, "head": 1_538}.items():
        assert counts("bert-base", preset, head="paper").get("head", 0) == head


def test_mam_on_roberta_base():
    biases = LAYERS * (16 + D)
    assert without_head("roberta-base", "mam(mlp=0)") - biases == 589_824


def test_mam_on_bart_large():
    biases = 24 * (512 + 1024)
    assert without_head("bart-large", "mam(prefix=30, bottleneck=512, s=4.0, mlp=0)") - biases == 27_377_664


def fraction(base: str, what: str) -> float:
    """Of all parameters, the tuned ones included, in per cent."""
    with torch.device("meta"):
        model = CONSTRUCTORS[base]()
    tuned = sum(unipelt.trainable_parameters(unipelt.attach(model, what)).values())
    return 100 * tuned / sum(p.numel() for p in model.parameters())


def test_ia3_on_t5_xxl():
    """L(dk + dv + dff) in the encoder, L(2dk + 2dv + dff) in the decoder; "0.01 %" of T0          Liu et al. 2022, §3.3, §1"""
    d = 64 * 64
    assert sum(counts("t5-xxl", "ia3").values()) == 24 * (d + d + 10240) + 24 * (2 * d + 2 * d + 10240)
    assert f"{fraction('t5-xxl', 'ia3'):.2f}" == "0.01"


@pytest.mark.parametrize(
    ("method", "stated"), [("lora(r=32, {})", "0.83"), ("dora(r=32, {})", "0.84"), ("dora(r=16, {})", "0.43")]
)
def test_dora_on_llama_7b(method: str, stated: str):
    """Liu et al. 2024, table 1, in per cent"""
    targets = "target_modules=['q_proj', 'k_proj', 'v_proj', 'up_proj', 'down_proj']"
    assert f"{fraction('llama-7b', method.format(targets)):.2f}" == stated


def test_a_prompt_on_t5_xxl():
    """20,480 parameters a task, of a prompt of 5 vectors          Lester et al. 2021, §1"""
    assert counts("t5-xxl", "prompt(length=5)") == {"prompt_embeddings": 20_480}


@pytest.mark.parametrize("runs", [1, 5])
def test_counts_are_those_of_one_run(runs: int):
    assert counts("bert-base", "unipelt-apl", runs=runs) == counts("bert-base", "unipelt-apl")


def may_be_zero(name: str) -> bool:
    """Softmax does not see a bias that all keys share, and the ReLU of a group's gate may be off at every token."""
    keys = any(end in name for end in ("key.bias", "k_proj.bias", "k_lin.bias", "key_proj.bias", ".k.bias"))
    return keys or ".central.gate." in name or ".g.gate." in name


def smooth(mixture: Mixture) -> Mixture:
    """The mixture with GELU for ReLU, which may be off at every token."""
    changes = [
        replace(c, form=replace(c.form, activation="gelu")) if getattr(c.form, "activation", "") == "relu" else c
        for c in mixture.changes
    ]
    return Mixture(tuple(changes), mixture.name)


@pytest.mark.parametrize(("arch", "mixture"), cases())
def test_exactly_the_tuned_tensors_receive_a_gradient(arch: str, mixture: Mixture):
    model = attached(arch, smooth(mixture))
    scalar(result(model(**tiny.inputs(arch, model, batch=6, pads=(0, 1))))).backward()
    for name, parameter in model.named_parameters():
        tuned = name.startswith("unipelt.")
        assert parameter.requires_grad == tuned
        assert (parameter.grad is not None) == tuned, name
        assert not tuned or may_be_zero(name) or parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_a_frozen_head_receives_none(arch: str):
    model = attached(arch, "adapter", head="frozen")
    result(model(**tiny.inputs(arch, model))).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and "bottleneck" not in name]
    assert "head" not in unipelt.trainable_parameters(model)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("arch", ["bert", "deberta-v2"])
def test_the_head_trains_for_every_method_whatever_its_name(arch: str, preset: str):
    if arch in on_each(preset):
        model = attached(arch, preset)
        head = {name for name, _ in mixture_state(model).named_parameters() if name.startswith("head.")}
        assert head and unipelt.trainable_parameters(model)["head"] == sum(
            p.numel() for n, p in mixture_state(model).named_parameters() if n in head
        )


@pytest.mark.parametrize("arch", [arch for arch, known in tiny.ARCHITECTURES.items() if known.generator])
@pytest.mark.parametrize("tied", [True, False])
def test_a_language_models_outputs_are_no_head(arch: str, tied: bool):
    model = tiny.build(arch, "generator", tie_word_embeddings=tied)
    tuned = mixture_state(unipelt.attach(model, "lora"))
    assert not tuned.head_modules
    assert not any(p.requires_grad for n, p in model.named_parameters() if not n.startswith("unipelt."))
