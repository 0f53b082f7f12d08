"""What tells a base, its weights and its tokenizer from others."""

from pathlib import Path

import pytest
import tiny
import torch
from generation.toy_text import tokenizer
from transformers import PreTrainedModel

import unipelt
from unipelt.checkpoint.fingerprint import ROWS, check_tokenizer, tokenizer_fingerprint, weights_fingerprint
from unipelt.errors import CheckpointError


def test_a_tokenizer_is_its_vocabulary_special_tokens_and_rules():
    plain = tokenizer_fingerprint(tokenizer())
    more = tokenizer()
    more.add_tokens(["zyx"])
    roles = tokenizer(cls_token="<|start|>")
    rules = tokenizer(pair="<s> $A </s>")
    assert len({plain, *map(tokenizer_fingerprint, (more, roles, rules))}) == 4
    assert (
        tokenizer_fingerprint(tokenizer(pad_token=None)) == tokenizer_fingerprint(tokenizer(pad_token="</s>")) != plain
    )
    check_tokenizer(more, "", "folder")
    check_tokenizer(tokenizer(), plain, "folder")
    with pytest.raises(CheckpointError, match="folder: was trained with another tokenizer"):
        check_tokenizer(more, plain, "folder")


def test_a_training_resumes_on_the_same_bytes_alone():
    model = tiny.build("bert")
    before = weights_fingerprint(model, ["classifier"])
    with torch.no_grad():
        model.classifier.weight.add_(1)
        assert weights_fingerprint(model, ["classifier"]) == before != weights_fingerprint(model, [])
        bias = model.bert.encoder.layer[1].output.dense.bias
        bias[3] = torch.nextafter(bias[3], torch.tensor(9.0))
        assert weights_fingerprint(model, ["classifier"]) != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_value_tells_bases_of_one_precision_apart(dtype: torch.dtype, tmp_path: Path):
    """In any block of rows; a value that is no number is no value of the base."""

    def base() -> PreTrainedModel:
        return tiny.build("bert", vocab_size=ROWS + 9, dtype=dtype)

    unipelt.save(unipelt.attach(base(), "lora"), tmp_path)
    unipelt.load(base(), tmp_path)
    for row, factor in ((0, 1.02), (ROWS + 3, 1.02), (5, float("nan"))):
        other = base()
        with torch.no_grad():
            other.bert.embeddings.word_embeddings.weight[row, 3] *= factor
        with pytest.raises(CheckpointError, match=f"word_embeddings.weight differs in rows {row // ROWS * ROWS} to "):
            unipelt.load(other, tmp_path)


def test_output_embeddings_of_their_own_are_part_of_a_base(tmp_path: Path):
    model = tiny.build("llama", "generator", tie_word_embeddings=False)
    unipelt.save(unipelt.attach(model, "lora"), tmp_path)
    other = tiny.build("llama", "generator", tie_word_embeddings=False)
    with torch.no_grad():
        other.lm_head.weight[2] *= 1.1
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs in rows 0 to"):
        unipelt.load(other, tmp_path)
