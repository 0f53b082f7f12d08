"""What leaves as a plain model writes what the run writes; and how answers of mBART's kind begin."""

from pathlib import Path

import pytest
import tiny
import torch
from generation.bases import CHAT_TEMPLATE, save_base, save_chats, save_pairs
from generation.test_generation import METHOD, PROMPT_GATES, config
from generation.toy_text import tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import unipelt
from unipelt import Change, Gate, LowRank, Mixture
from unipelt.cli import main
from unipelt.errors import DataError
from unipelt.tasks import registry
from unipelt.tasks.batches import Part
from unipelt.tasks.language_model import write
from unipelt.tasks.settings import GenerationSettings
from unipelt.train.predictor import Predictor
from unipelt.train.train_run import train_run


@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_model_writes_the_same_texts_with_transformers_alone(tied: bool, tmp_path: Path):
    """Tied embeddings stay tied and untouched; chat template and generation settings come along."""
    save_base(tmp_path / "base", template=CHAT_TEMPLATE)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
        model.save_pretrained(tmp_path / "base")
    asked = config(tmp_path, task=save_chats(tmp_path / "chats.jsonl"), method="lora(r=2, target_modules='all-linear')")
    train_run(asked, tmp_path / "run", log=lambda line: None)
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tmp_path / "run"), "--merged", str(tmp_path / "plain")])
    assert not ended.value.code
    plain, words = (kind.from_pretrained(tmp_path / "plain") for kind in (AutoModelForCausalLM, AutoTokenizer))
    embeddings = model.get_input_embeddings().weight
    assert torch.equal(plain.get_input_embeddings().weight, embeddings), "a merge leaves the embeddings alone"
    assert (plain.get_output_embeddings().weight is plain.get_input_embeddings().weight) == tied
    run = Predictor.load(str(tmp_path / "run"), device="cpu")
    stop = list(run.task.stop)  # type: ignore[attr-defined]
    assert words.chat_template == CHAT_TEMPLATE and plain.generation_config.eos_token_id == stop
    chat = [{"role": "user", "content": "what is 3?"}]
    prompt = words.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    how = GenerationSettings(max_new_tokens=6)
    expected = write(run.model, run.tokenizer, [[prompt]], how, stop=stop)[0][0]
    written = plain.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0, len(prompt) :]
    assert words.decode(written, skip_special_tokens=True).strip() == expected


@pytest.mark.parametrize(
    ("pair", "opening"), [("$A </s> <|start|>", 1), ("<|start|> $A </s>", 2)], ids=["mbart", "mbart-50"]
)
def test_an_answer_of_mbart_begins_with_its_language(pair: str, opening: int, tmp_path: Path):
    """mBART's labels end with the language, which begins the decoder's input; mBART-50's begin with it, after eos."""
    words = tokenizer(pair=pair.replace("<|start|>", "<s>"))
    model = tiny.build("mbart", "generator", vocab_size=len(words), pad_token_id=0, bos_token_id=1, eos_token_id=2)
    task, data = registry.load(save_pairs(tmp_path / "pairs.jsonl", 30))
    task = task.prepare(model, words)
    encoded = task.encode(words, data.train, 64)
    batch = task.collate([Part(task, encoded, [0, 1, 2])], words, torch.device("cpu"))
    labels = batch.targets[0]
    expected = model.prepare_decoder_input_ids_from_labels(labels=labels)
    real = batch.inputs["decoder_attention_mask"].bool()
    assert torch.equal(batch.inputs["decoder_input_ids"][real], expected[real])
    begins = task.opening  # type: ignore[attr-defined]
    assert len(begins) == opening and begins[-1] == words.bos_token_id, "the language stands in for <s> here"
    assert batch.inputs["decoder_input_ids"][:, :opening].tolist() == [[*begins]] * 3


def exported(*arguments: str | Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", *map(str, arguments)])
    assert not ended.value.code


@pytest.mark.parametrize(
    ("arch", "method"), [("llama", METHOD), ("llama", PROMPT_GATES), ("bart", METHOD)], ids=["llama", "prompt", "bart"]
)
def test_gates_of_a_language_model_are_simplified_with_its_answers(
    arch: str, method: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Over the tokens of prompts and answers, with the loss that training selects by."""
    save_base(tmp_path / "base", arch)
    train_run(config(tmp_path, method=method, recipe={"epochs": 1}), tmp_path / "run", log=lambda line: None)
    pairs = tmp_path / "pairs.jsonl"
    run = Predictor.load(str(tmp_path / "run"), device="cpu")
    examples = run.read(str(pairs), text=None, pair=None, labelled=True)
    logits, encoded = run.outputs(examples)
    expected = run.task.score(run.task.decide(logits, encoded), [None] * len(examples))["loss"]
    with pytest.raises(DataError, match=r"no column 'target'; gates are measured with the answers"):
        run.simplify_gates(run.read(str(pairs), text=None, pair=None))
    gates = run.gates(examples)
    report = run.simplify_gates(examples, max_deviation=0)
    assert (report.metric, report.examples) == ("loss", 60)
    assert report.before == pytest.approx(expected, rel=1e-5) == report.after
    if method == PROMPT_GATES:  # a gate has one value per example
        assert {gate.path: gate.mean for gate in report.gates} == pytest.approx(
            {path: values.double().mean().item() for path, values in gates.items()}, rel=1e-5
        )
    exported(tmp_path / "run", "--simplified", tmp_path / "simpler", "--data", pairs)
    assert "60 examples" in (said := capsys.readouterr().out) and f"loss {expected:.4f} → " in said
    simpler = Predictor.load(str(tmp_path / "simpler"), device="cpu")
    assert len(simpler.generate(examples)) == 60


def test_gates_of_a_language_model_are_merged(tmp_path: Path):
    save_base(tmp_path / "base")
    gated = Mixture((Change(form=LowRank(r=2), site="query", reads="input", weight=Gate(pool="prompt")),))
    task, _ = registry.load(save_pairs(tmp_path / "pairs.jsonl"))
    model, words = task.load(str(tmp_path / "base"))
    described = task.prepare(model, words).describe()
    unipelt.save(unipelt.attach(model, gated), tmp_path / "run", base=str(tmp_path / "base"), task=described)
    for flag in ("--merged", "--peft"):
        exported(tmp_path / "run", flag, tmp_path / flag, "--data", tmp_path / "pairs.jsonl")
    AutoModelForCausalLM.from_pretrained(tmp_path / "--merged")
