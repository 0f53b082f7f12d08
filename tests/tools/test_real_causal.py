"""A real pretrained Llama, stories260K, learns text that it has not seen: the standard library's docstrings."""

import os
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

import unipelt
from unipelt.data import causal_texts

MODELS = Path(os.environ.get("MODELS_DIR", Path(__file__).parents[2] / "../shared/models"))
STORIES = MODELS / "stories260K"
BLOCK, BATCH = 128, 8
TRAIN, HELD_OUT = 240, 128  # blocks
RATE, STEPS = 1e-2, 30

pytestmark = pytest.mark.skipif(
    not STORIES.is_dir(), reason=f"{STORIES} is not there: set MODELS_DIR to the folder that holds stories260K"
)


@cache
def blocks() -> dict[str, Tensor]:
    """Token ids `[block, seq]` of the training and held-out parts."""
    pieces = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(STORIES / "tokenizer.model"))

    def first(texts: list[str], count: int) -> Tensor:
        ids: list[int] = []
        for text in texts:
            ids += [pieces.bos_id(), *pieces.encode(text)]
            if len(ids) >= count * BLOCK:
                return torch.tensor(ids[: count * BLOCK]).view(count, BLOCK)
        raise AssertionError(f"fewer than {count} blocks of text")

    texts, held_out = causal_texts()
    return {"train": first(texts, TRAIN), "held out": first(held_out, HELD_OUT)}


def base() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(STORIES)


@torch.no_grad()
def loss_per_token(model: nn.Module, part: str) -> float:
    """Nats a token."""
    model.eval()
    losses = [model(input_ids=ids, labels=ids).loss for ids in blocks()[part].split(32)]
    return torch.stack(losses).mean().item()  # every block has as many tokens


def tuned(method: str, folder: Path) -> nn.Module:
    model = unipelt.attach(base(), method)
    given = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        warmup_steps=5,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
    )
    rows = [{"input_ids": ids, "labels": ids} for ids in blocks()["train"]]
    Trainer(model=model, args=given, train_dataset=rows).train()
    return model


@pytest.fixture(scope="module", params=["unipelt-apl", "lora"])
def model(request, tmp_path_factory) -> nn.Module:
    return tuned(request.param, tmp_path_factory.mktemp("causal"))


def test_held_out_loss_ends_below_the_base(model: nn.Module):
    after = loss_per_token(model, "held out")
    with unipelt.disabled(model):
        before = loss_per_token(model, "held out")
    count = sum(unipelt.trainable_parameters(model).values())
    print(f"held-out nats a token: base {before:.3f}, tuned {after:.3f} ({count:,} parameters, {STEPS} steps)")
    assert before == loss_per_token(base(), "held out")
    assert after < before - 0.5  # about e^0.5 = 1.6 times fewer guesses a token


def test_cached_generation_equals_uncached(model: nn.Module):
    prompts = blocks()["held out"][:4, :16]
    how = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": 40, "pad_token_id": 0, "do_sample": False}
    how |= {"output_logits": True, "return_dict_in_generate": True}
    model.eval()
    cached, uncached = (model.generate(prompts, use_cache=use_cache, **how) for use_cache in (True, False))
    assert torch.equal(cached.sequences, uncached.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(uncached.logits), atol=1e-4, rtol=1e-4)
    with unipelt.disabled(model):
        assert not torch.equal(cached.sequences, model.generate(prompts, **how).sequences)
