"""generate, Seq2SeqTrainer and pipelines on attached models."""

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from laws.lawbook import attached, small
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from toy import keys, tuned_keys
from transformers import PreTrainedTokenizerFast, Seq2SeqTrainer, Seq2SeqTrainingArguments, pipeline

import unipelt

GENERATORS = ("llama", "gpt2", "bart", "t5")
LENGTHS = {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}


def generator(arch: str, preset: str = "unipelt-apl") -> nn.Module:
    return attached(arch, preset, top="generator", attn="sdpa", dtype=torch.float32)


def prompts(arch: str, model: nn.Module) -> dict[str, torch.Tensor]:
    given = tiny.inputs(arch, model, side="left")
    given.pop("decoder_input_ids", None)
    return given


def written(model: nn.Module, given: dict[str, torch.Tensor], **how: Any) -> torch.Tensor:
    torch.manual_seed(0)
    return model.generate(**given, **LENGTHS, **({"do_sample": False} | how))


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2, "top_k": 0},
    ],
    ids=["greedy", "beams", "several beams", "samples"],
)
@pytest.mark.parametrize("arch", GENERATORS)
def test_every_cache_writes_what_no_cache_writes(arch: str, how: dict[str, Any], cache: str | None):
    model = generator(arch)
    given = prompts(arch, model)
    cached = written(model, given, cache_implementation=cache, **how)
    assert len(cached) == 3 * how.get("num_return_sequences", 1)
    assert torch.equal(cached, written(model, given, use_cache=False, **how))


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_an_assistant_changes_nothing(arch: str):
    """Prompt lookup proposes tokens that one forward checks together: decoding with several queries over a cache."""
    model = generator(arch)
    given = {name: value[:1] for name, value in prompts(arch, model).items()}
    assert torch.equal(written(model, given, prompt_lookup_num_tokens=2), written(model, given))


WORDS = [f"w{i}" for i in range(tiny.SPECIAL, tiny.VOCABULARY)]


def tokenizer(side: str = "right") -> PreTrainedTokenizerFast:
    """One id a word, with the special ids of the tiny models."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names + WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        padding_side=side,
        model_input_names=["input_ids", "attention_mask"],
    )


TEXTS = ["w7 w9 w12 w30 w41", "w50", "w8 w8 w59"]


@pytest.mark.parametrize("arch", ["bert", "distilbert", "llama"])
def test_classification_pipeline(arch: str):
    """Labels and scores are the model's own, one by one and padded in a batch."""
    model = attached(arch, "unipelt-apl", dtype=torch.float32, build={"pad_token_id": 0})
    words = tokenizer()
    classify = pipeline("text-classification", model=model, tokenizer=words, device="cpu", top_k=None)
    for batch_size in (1, 3):
        answers = classify(TEXTS, batch_size=batch_size)
        for text, answer in zip(TEXTS, answers):
            expected = model(**words(text, return_tensors="pt")).logits.softmax(dim=-1)[0]
            got = {entry["label"]: entry["score"] for entry in answer}
            torch.testing.assert_close(
                torch.tensor([got[model.config.id2label[i]] for i in range(3)]), expected.detach(), atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("how", [{"do_sample": False}, {"do_sample": False, "num_beams": 3}], ids=["greedy", "beams"])
def test_generation_pipeline(how: dict[str, Any]):
    model, words = generator("llama"), tokenizer("left")
    write = pipeline("text-generation", model=model, tokenizer=words, device="cpu")
    answers = write(TEXTS, batch_size=3, return_full_text=False, **LENGTHS, **how)
    for text, answer in zip(TEXTS, answers):
        alone = words(text, return_tensors="pt")
        expected = written(model, alone, **how)[0, alone["input_ids"].shape[1] :]
        assert answer[0]["generated_text"].split() == words.decode(expected, skip_special_tokens=True).split()


def test_seq2seq_trainer_generates_its_predictions(tmp_path: Path):
    model = unipelt.attach(tiny.build("bart", "generator"), small("unipelt-apl"))
    words = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(32):
        ids = torch.randint(tiny.SPECIAL, tiny.VOCABULARY, (6,), generator=words)
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:1].expand(3)})
    evaluations = count()
    given = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        num_train_epochs=6,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        predict_with_generate=True,
        generation_max_length=5,
        generation_num_beams=2,
        save_strategy="epoch",
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = Seq2SeqTrainer(
        model=model,
        args=given,
        train_dataset=rows,
        eval_dataset=rows[:8],
        compute_metrics=lambda prediction: {"evaluation": next(evaluations)},
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert (before["eval_evaluation"], after["eval_evaluation"]) == (0, 1)
    predictions = torch.from_numpy(trainer.predict(rows[:8]).predictions)
    ids = torch.stack([row["input_ids"] for row in rows[:8]])
    alone = model.eval().generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_length=5, num_beams=2)
    assert torch.equal(predictions[:, : alone.shape[1]], alone)
    assert (predictions[:, alone.shape[1] :] == model.config.pad_token_id).all()
    assert keys(tmp_path / "checkpoint-24") == tuned_keys(model)


@pytest.mark.parametrize("arch", ["bert", "roberta", *GENERATORS])
def test_torch_export_takes_an_attached_model(arch: str):
    """What exporters to other formats, such as ONNX's, begin with."""
    model = attached(arch, "unipelt-apl", dtype=torch.float32).eval()
    given = tiny.inputs(arch, model) | ({"use_cache": False} if arch in GENERATORS else {})
    with torch.no_grad():
        exported = torch.export.export(model, (), given).module()
        torch.testing.assert_close(exported(**given).logits, model(**given).logits)
