"""Multi-head latent attention (DeepSeek) through `stacks=`: keys and values of unlike widths, and not those of the projections."""

from dataclasses import replace

import pytest
import torch
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM
from values import randomise

import unipelt
from unipelt import Stack
from unipelt.errors import SiteError
from unipelt.inject.architectures import ARCHITECTURES

SHAPE = (4, 12, 6)
ROW = ARCHITECTURES["deepseek_v2"][0]
METHODS = ("lora(r=2)", "unipelt-apl(bottleneck=4, prefix=2, mlp=0, r=2)", "prefix(length=2, mlp=0)")


def base() -> DeepseekV2ForCausalLM:
    torch.manual_seed(0)
    heads, key, value = SHAPE
    config = DeepseekV2Config(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=heads, kv_lora_rank=16, q_lora_rank=12, qk_rope_head_dim=4, qk_nope_head_dim=key - 4,
        v_head_dim=value, first_k_dense_replace=2, max_position_embeddings=64,
    )  # fmt: skip
    return DeepseekV2ForCausalLM(config).eval()


def row(**attention) -> tuple[Stack]:
    return (replace(ROW, attention=replace(ROW.attention, **attention)),)


@torch.no_grad()
def answers(model: torch.nn.Module) -> torch.Tensor:
    return model(torch.arange(3, 19).view(2, 8)).logits


@pytest.mark.parametrize("method", METHODS)
def test_a_right_row_computes_what_the_table_does(method: str):
    known, given = (randomise(unipelt.attach(base(), method, stacks=stacks)) for stacks in (None, row(shape=SHAPE)))
    torch.testing.assert_close(answers(given), answers(known), rtol=0, atol=0)
    with unipelt.disabled(given):
        assert torch.equal(answers(given), answers(base()))
    assert not torch.equal(answers(given), answers(base()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": None}, {"shape": (2, 12, 6)}, {"shape": (4, 12, 4)}, {"shape": (4, 8, 6)},
        {"key": "self_attn.kv_a_proj_with_mqa", "order": ("query", "key", "value"), "groups": 1, "shape": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_row_is_one_clear_line(wrong: dict):
    for method in METHODS[1:]:
        with pytest.raises(SiteError, match=r"shape=\(4, 12, 6\)|expected .* groups") as caught:
            answers(unipelt.attach(base(), method, stacks=row(**wrong)))
        assert "\n" not in str(caught.value)
    with pytest.raises(SiteError, match=r"no layer has 'self_attn\.k_proj'"):
        unipelt.attach(base(), METHODS[0], stacks=row(key="self_attn.k_proj"))
