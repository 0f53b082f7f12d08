"""peft's other methods, both ways: DoRA, IA³, prompt tuning and prefix tuning give peft's own outputs, or are refused by name."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from values import assert_plain, randomise, state_of

import unipelt
from unipelt import Change, Mixture, Prefix, Prompt
from unipelt.errors import CheckpointError, SpecError
from unipelt.inject.state import mixture_state
from unipelt.spec import Dora, Scaling

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
]

DORA = {"use_dora": True, "r": 3, "lora_alpha": 5}
CASES: dict[str, tuple[str, str, Any]] = {
    "DoRA, encoder": ("bert", "SEQ_CLS", lambda task: peft.LoraConfig(task_type=task, use_rslora=True, **DORA)),
    "DoRA, decoder": ("llama", "CAUSAL_LM", lambda task: peft.LoraConfig(task_type=task, rank_pattern={"q_proj": 2}, **DORA)),
    "DoRA, transposed": ("gpt2", "CAUSAL_LM", lambda task: peft.LoraConfig(task_type=task, fan_in_fan_out=True, **DORA)),
    "DoRA, encoder-decoder": ("t5", "SEQ_2_SEQ_LM", lambda task: peft.LoraConfig(task_type=task, **DORA)),
    "IA³, encoder": ("bert", "SEQ_CLS", lambda task: peft.IA3Config(task_type=task)),
    "IA³, decoder": ("llama", "SEQ_CLS", lambda task: peft.IA3Config(task_type=task)),
    "IA³, transposed": ("gpt2", "CAUSAL_LM", lambda task: peft.IA3Config(task_type=task)),
    "IA³, encoder-decoder": ("bart", "SEQ_2_SEQ_LM", lambda task: peft.IA3Config(task_type=task)),
    "prompt, encoder": ("bert", "SEQ_CLS", lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=4)),
    "prompt, decoder": ("gpt2", "CAUSAL_LM", lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=4)),
    "prompt, rotary": ("llama", "CAUSAL_LM", lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=4)),
    "prompt, encoder-decoder": ("t5", "SEQ_2_SEQ_LM", lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=4)),
    "prompt, BART": ("bart", "SEQ_2_SEQ_LM", lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=4)),
    "prefix, decoder": ("llama", "CAUSAL_LM", lambda task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=4)),
    "prefix, its MLP": ("qwen2", "CAUSAL_LM",
        lambda task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=4, prefix_projection=True)),
    "prefix, partly rotated": ("gpt_neox", "CAUSAL_LM", lambda task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=4)),
    "prefix, normed keys": ("olmo2", "CAUSAL_LM", lambda task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=4)),
    "prefix, classifier": ("llama", "SEQ_CLS", lambda task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=4)),
}  # fmt: skip


def base_of(kind: str) -> nn.Module:
    name, task, _ = CASES[kind]
    return tiny.build(name, "classifier" if task == "SEQ_CLS" else "generator", dtype=torch.float64, attn="eager")


def made_by_peft(kind: str, folder: Path) -> nn.Module:
    _, task, config = CASES[kind]
    model = peft.get_peft_model(base_of(kind), config(task)).double()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(noise * 0.3 + 1 if "ia3" in name or "magnitude" in name else noise * 0.3)
    model.save_pretrained(folder)
    return model.eval()


@torch.no_grad()
def outputs(model: nn.Module, kind: str, **how: Any) -> Tensor:
    """Of the input's tokens: peft's logits have the prompt's in front."""
    name, _, _ = CASES[kind]
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    given = tiny.inputs(name, plain, **how)
    logits = model(**given).logits
    length = given.get("decoder_input_ids", given["input_ids"]).shape[1]
    return logits if logits.dim() == 2 else logits[:, -length:]


def same(one: Tensor, other: Tensor) -> None:
    """Up to what passes through float32 in the base, as rotary positions and T5's norms do."""
    torch.testing.assert_close(one, other, rtol=0, atol=3e-6 * max(1.0, other.abs().max().item()))


@pytest.mark.parametrize("kind", CASES)
def test_peft_reads_and_writes_what_we_write_and_read(kind: str, tmp_path: Path):
    theirs = made_by_peft(kind, tmp_path / "theirs")
    ours = unipelt.load_peft(base_of(kind), tmp_path / "theirs")
    for pads in ((), (0, 3, 5)):
        expected, got = outputs(theirs, kind, pads=pads), outputs(ours, kind, pads=pads)
        if CASES[kind][1] == "CAUSAL_LM":  # at padding peft gives other numbers, of no use to anyone
            real = tiny.inputs(CASES[kind][0], ours, pads=pads)["attention_mask"].bool()
            expected, got = expected[real], got[real]
        same(got, expected)
    assert (outputs(base_of(kind), kind) - outputs(theirs, kind)).abs().max() > 1e-3
    randomise(ours)
    unipelt.export_peft(ours, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(base_of(kind), tmp_path / "ours").double().eval()
    same(outputs(again, kind, pads=()), outputs(ours, kind, pads=()))
    same(outputs(unipelt.load_peft(base_of(kind), tmp_path / "ours"), kind), outputs(ours, kind))
    files = [load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("theirs", "ours")]
    if kind not in ("prompt, encoder-decoder", "prompt, BART"):  # peft keeps vectors of a decoder that it does not use
        assert {n: v.shape for n, v in files[0].items()} == {n: v.shape for n, v in files[1].items()}


FORMS = {
    "DoRA": ("DoRA, decoder", Change(form=Dora(r=2, alpha=3.0), site="query", reads="input")),
    "IA³": ("IA³, decoder", Change(form=Scaling(), site="value", reads="output", weight=0.5)),
    "prompt": ("prompt, rotary", Change(form=Prompt(length=3), site="embeddings", reads="nothing", weight=0.5)),
    "prefix": ("prefix, decoder", Change(form=Prefix(length=3, mlp=0), site="heads", reads="queries", weight=0.5)),
}


@pytest.mark.parametrize("name", FORMS)
def test_one_run_of_several_is_written_with_its_weight(name: str, tmp_path: Path):
    kind, change = FORMS[name]
    model = randomise(unipelt.attach(base_of(kind), Mixture((change,)), runs=3))
    unipelt.export_peft(model, tmp_path, run=1)
    theirs = peft.PeftModel.from_pretrained(base_of(kind), tmp_path).double().eval()
    rows = len(tiny.inputs("llama", model, pads=())["input_ids"])
    with unipelt.route(model, [1] * rows):
        same(outputs(theirs, kind, pads=()), outputs(model, kind, pads=()))


REFUSED = {
    "bert": r"'bert', which is an encoder: there it moves the positions of its tokens; peft itself can use it",
    "t5": r"'t5', which is an encoder-decoder: there it reaches only its decoder's self-attention",
    "gpt2": r"moves the positions of all tokens by its length, and 'gpt2' has no rotary positions",
    "opt": r"'opt' has no rotary positions",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_prefix_that_moves_positions_is_refused(name: str, tmp_path: Path):
    task = {"bert": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}.get(name, "CAUSAL_LM")
    head = "classifier" if name == "bert" else "generator"
    peft.get_peft_model(
        tiny.build(name, head), peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=3)
    ).save_pretrained(tmp_path)
    model = tiny.build(name, head)
    before = state_of(model)
    with pytest.raises(CheckpointError, match=REFUSED[name]) as error:
        unipelt.load_peft(model, tmp_path)
    assert "\n" not in str(error.value)
    assert_plain(model, before)
    with pytest.raises(SpecError, match=REFUSED[name]):
        unipelt.export_peft(unipelt.attach(model, "prefix(length=2, mlp=0)"), tmp_path / "ours")


DAMAGED = {
    "another length": ({"num_virtual_tokens": 3}, {}, r"'prompt_embeddings' is \(4, 32\), expected \(3, 32\)"),
    "no length": ({"num_virtual_tokens": "x"}, {}, "num_virtual_tokens='x', expected a whole number from 1"),
    "nothing": ({}, {"prompt_embeddings": None}, "has no 'prompt_embeddings'"),
    "P-tuning": ({"peft_type": "P_TUNING"}, {}, "peft_type='P_TUNING' cannot be read; expected IA3, LORA, PREFIX_TUNING, PROMPT_"),
    "of the future": ({"prompt_twist": 1}, {}, "prompt_twist=1 is a variant of PROMPT_TUNING that cannot be read"),
}  # fmt: skip


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made_by_peft("prompt, encoder", folder := tmp_path_factory.mktemp("prompt"))
    return folder


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_prompt_is_refused(what: str, prompt: Path, tmp_path: Path):
    config, tensors, message = DAMAGED[what]
    (tmp_path / "adapter_config.json").write_text(
        json.dumps(json.loads((prompt / "adapter_config.json").read_text()) | config)
    )
    values = load_file(prompt / "adapter_model.safetensors") | tensors
    torch.save({name: v for name, v in values.items() if v is not None}, tmp_path / "adapter_model.bin")
    model = base_of("prompt, encoder")
    before = state_of(model)
    with pytest.raises(CheckpointError, match=message) as error:
        unipelt.load_peft(model, tmp_path)
    assert "\n" not in str(error.value)
    assert_plain(model, before)


def test_what_peft_computes_in_another_way_is_not_written(tmp_path: Path):
    """Its classifier reads a prompt's first vector; it has no gates, and no weight of a DoRA."""
    first = Change(form=Prompt(length=3), site="embeddings", reads="nothing")
    with pytest.raises(SpecError, match=r"train with Prompt\(first='prompt'\)"):
        unipelt.export_peft(unipelt.attach(tiny.build("bert"), Mixture((first,))), tmp_path)
    with pytest.raises(SpecError, match="scaling_key: its gate depends on the input"):
        unipelt.export_peft(unipelt.attach(tiny.build("bert"), "ia3(gated=True)"), tmp_path)
    dora = unipelt.mixture("dora").changes[0]
    with pytest.raises(SpecError, match=r"its weight is 0\.5, and peft's DoRA has none"):
        half = Change(form=dora.form, site=dora.site, reads="input", weight=0.5)
        unipelt.export_peft(unipelt.attach(tiny.build("bert"), Mixture((half,))), tmp_path)
    with pytest.raises(SpecError, match="peft has no prefix with function='relu'"):
        unipelt.export_peft(unipelt.attach(tiny.build("llama"), "multi-head-parallel-adapter"), tmp_path)
    with pytest.raises(SpecError, match="peft has one prefix, in every layer"):
        unipelt.export_peft(unipelt.attach(tiny.build("llama"), "prefix-first-layer"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_ia3_on_the_input_of_any_linear_merges(tmp_path: Path):
    """peft's default for BERT scales what the attention's output projection reads too."""
    made_by_peft("IA³, encoder", tmp_path)
    model = unipelt.load_peft(base_of("IA³, encoder"), tmp_path)
    changes = mixture_state(model).mixture.changes
    assert sorted(c.reads for c in changes) == ["input", "output", "output"]
    expected = outputs(model, "IA³, encoder")
    same(outputs(unipelt.merge(model), "IA³, encoder"), expected)
