"""Tiny random models, one per architecture: no network, no law that holds by accident."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Literal

import torch
import transformers as hf
from torch import Tensor, nn

Kind = Literal["encoder", "decoder", "encoder-decoder", "vision"]
Head = Literal["classifier", "generator", "base"]

VOCABULARY = 60
SPECIAL = 5  # ids below are special in every tokenizer here: words are drawn from the rest
DECODER_LENGTH = 7


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """How to make one architecture small."""

    kind: Kind
    config: Callable[..., hf.PretrainedConfig]
    classifier: type[hf.PreTrainedModel] | None = None
    generator: type[hf.PreTrainedModel] | None = None
    # the attention implementations it has
    attention: tuple[str, ...] = ("eager", "sdpa")
    # those under which a float64 model computes in float64 throughout; elsewhere a norm, a softmax, a router or
    # a rotation of activations passes through float32: two ways to one result agree to about 1e-6 alone, and under eager attention
    # a causal row that sees only padding (left padding) turns the whole float64 model to NaN
    float64: tuple[str, ...] = ()


SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
SPECIALS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = SIZES | SPECIALS | {"num_key_value_heads": 2}
SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}


def _encoder(config: type, classifier: type, **fields) -> Tiny:
    settings = {name: fields.pop(name) for name in ("attention", "float64") if name in fields}
    return Tiny(kind="encoder", config=partial(config, **fields), classifier=classifier, **settings)


def _decoder(config: type, classifier: type, generator: type, **fields) -> Tiny:
    settings = {name: fields.pop(name) for name in ("attention", "float64") if name in fields}
    return Tiny(
        kind="decoder", config=partial(config, **fields), classifier=classifier, generator=generator, **settings
    )


def _seq2seq(config: type, classifier: type, generator: type, **fields) -> Tiny:
    settings = {name: fields.pop(name) for name in ("attention", "float64") if name in fields}
    return Tiny(
        kind="encoder-decoder", config=partial(config, **fields), classifier=classifier, generator=generator, **settings
    )


BOTH = ("eager", "sdpa")

ARCHITECTURES: dict[str, Tiny] = {
    "bert": _encoder(hf.BertConfig, hf.BertForSequenceClassification, **SIZES, float64=BOTH),
    "roberta": _encoder(hf.RobertaConfig, hf.RobertaForSequenceClassification, **SIZES, float64=BOTH),
    "xlm-roberta": _encoder(hf.XLMRobertaConfig, hf.XLMRobertaForSequenceClassification, **SIZES, float64=BOTH),
    "camembert": _encoder(hf.CamembertConfig, hf.CamembertForSequenceClassification, **SIZES, float64=BOTH),
    "distilbert": _encoder(
        hf.DistilBertConfig,
        hf.DistilBertForSequenceClassification,
        vocab_size=VOCABULARY,
        dim=32,
        hidden_dim=64,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=64,
        float64=BOTH,
    ),
    "electra": _encoder(
        hf.ElectraConfig, hf.ElectraForSequenceClassification, **SIZES, embedding_size=16, float64=BOTH
    ),
    "albert": _encoder(hf.AlbertConfig, hf.AlbertForSequenceClassification, **SIZES, embedding_size=16, float64=BOTH),
    "mpnet": _encoder(
        hf.MPNetConfig, hf.MPNetForSequenceClassification, **SIZES, attention=("eager",), float64=("eager",)
    ),
    "deberta-v2": _encoder(  # the relative attention of the v3 checkpoints
        hf.DebertaV2Config,
        hf.DebertaV2ForSequenceClassification,
        **SIZES,
        relative_attention=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        attention=("eager",),
        float64=("eager",),
    ),
    "modernbert": _encoder(
        hf.ModernBertConfig,
        hf.ModernBertForSequenceClassification,
        **SIZES,
        **SPECIALS,
        cls_token_id=1,
        sep_token_id=2,
        layer_types=["full_attention", "sliding_attention"],
    ),
    "gpt2": _decoder(
        hf.GPT2Config,
        hf.GPT2ForSequenceClassification,
        hf.GPT2LMHeadModel,
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        **SPECIALS,
        float64=BOTH,
    ),
    "gpt_neox": _decoder(
        hf.GPTNeoXConfig,
        hf.GPTNeoXForSequenceClassification,
        hf.GPTNeoXForCausalLM,
        **SIZES | SPECIALS,
        float64=("sdpa",),
    ),
    "opt": _decoder(
        hf.OPTConfig,
        hf.OPTForSequenceClassification,
        hf.OPTForCausalLM,
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        float64=("sdpa",),
    ),
    "llama": _decoder(hf.LlamaConfig, hf.LlamaForSequenceClassification, hf.LlamaForCausalLM, **GROUPED),
    "mistral": _decoder(hf.MistralConfig, hf.MistralForSequenceClassification, hf.MistralForCausalLM, **GROUPED),
    "mixtral": _decoder(
        hf.MixtralConfig,
        hf.MixtralForSequenceClassification,
        hf.MixtralForCausalLM,
        **GROUPED,
        num_local_experts=3,
        num_experts_per_tok=2,
        experts_implementation="eager",  # the default, grouped_mm, has no float64
    ),
    "qwen2": _decoder(hf.Qwen2Config, hf.Qwen2ForSequenceClassification, hf.Qwen2ForCausalLM, **GROUPED),
    "qwen3": _decoder(  # as in its checkpoints, the heads together are wider than the hidden states
        hf.Qwen3Config, hf.Qwen3ForSequenceClassification, hf.Qwen3ForCausalLM, **GROUPED, head_dim=16
    ),
    "gemma2": _decoder(
        hf.Gemma2Config,
        hf.Gemma2ForSequenceClassification,
        hf.Gemma2ForCausalLM,
        **GROUPED,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=64,
        attention=("eager",),
    ),
    "gemma3_text": _decoder(
        hf.Gemma3TextConfig,
        hf.Gemma3TextForSequenceClassification,
        hf.Gemma3ForCausalLM,
        **GROUPED,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=64,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi3": _decoder(hf.Phi3Config, hf.Phi3ForSequenceClassification, hf.Phi3ForCausalLM, **GROUPED),
    "olmo2": _decoder(hf.Olmo2Config, hf.Olmo2ForSequenceClassification, hf.Olmo2ForCausalLM, **GROUPED),
    "bart": _seq2seq(
        hf.BartConfig, hf.BartForSequenceClassification, hf.BartForConditionalGeneration, **SEQ2SEQ, float64=BOTH
    ),
    "mbart": _seq2seq(
        hf.MBartConfig, hf.MBartForSequenceClassification, hf.MBartForConditionalGeneration, **SEQ2SEQ, float64=BOTH
    ),
    "t5": _seq2seq(
        hf.T5Config,
        hf.T5ForSequenceClassification,
        hf.T5ForConditionalGeneration,
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    ),
    "vit": Tiny(
        kind="vision",
        config=partial(
            hf.ViTConfig,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=12,
            patch_size=4,
        ),
        classifier=hf.ViTForImageClassification,
        float64=("sdpa",),
    ),
}


def build(
    name: str,
    head: Head = "classifier",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attn: str = "eager",
    **config_overrides,
) -> hf.PreTrainedModel:
    """The same weights for the same seed, whatever the dtype; the global random state is left alone."""
    tiny = ARCHITECTURES[name]
    config = tiny.config(**{"num_labels": 3, "attn_implementation": attn} | config_overrides)
    constructor = {
        "classifier": tiny.classifier,
        "generator": tiny.generator,
        "base": hf.AutoModel._model_mapping[type(config)],
    }[head]
    if constructor is None:
        raise ValueError(f"{name} has no {head}")
    with torch.random.fork_rng(devices=[]):
        model = constructor(config)
    randomise(model, seed)
    return model.to(dtype).eval()


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """No weight is zero, one or symmetric, and each tied weight is drawn once."""
    generator = torch.Generator().manual_seed(seed)
    drawn = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in drawn:
                continue
            drawn.add(parameter)
            noise = torch.randn(parameter.shape, generator=generator)
            if "Norm" in type(module).__name__ and name == "weight":
                # a norm starts at the identity: weight 1, or 0 where it multiplies by 1 + weight (Gemma)
                parameter.copy_(parameter.mean().round() + 0.1 * noise)
            elif isinstance(module, nn.Embedding):
                parameter.copy_(0.5 * noise)
            elif parameter.ndim >= 2:
                parameter.copy_(0.15 * noise)  # with 32 to 64 inputs: a gain of about one
            else:
                parameter.copy_(0.1 * noise)


def inputs(
    name: str,
    model: nn.Module,
    batch: int = 3,
    length: int = 9,
    pads: tuple[int, ...] = (0, 3, 5),
    side: Literal["right", "left"] = "right",
    seed: int = 0,
) -> dict[str, Tensor]:
    """What `model(**inputs)` takes, without labels; `pads` are repeated over the batch.

    A classifier with an encoder and a decoder makes its own decoder_input_ids and reads the state at each row's one eos.
    """
    tiny = ARCHITECTURES[name]
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    if tiny.kind == "vision":
        shape = (batch, config.num_channels, config.image_size, config.image_size)
        dtype = next(model.parameters()).dtype
        return {"pixel_values": torch.randn(shape, generator=generator).to(dtype)}

    padding = torch.tensor(list(islice(cycle(pads or (0,)), batch)))[:, None]
    if padding.max() >= length:
        raise ValueError(f"pads {pads} leave a row of length {length} without tokens")
    position = torch.arange(length)[None]
    mask = position >= padding if side == "left" else position < length - padding
    words = torch.randint(SPECIAL, config.vocab_size, (batch, length), generator=generator)
    ids = words.masked_fill(~mask, config.pad_token_id)
    made = {"input_ids": ids, "attention_mask": mask.long()}
    if tiny.kind == "encoder-decoder":
        last = torch.full_like(padding, length) - 1 if side == "left" else length - 1 - padding
        ids.scatter_(1, last, config.eos_token_id)
        if not isinstance(model, tiny.classifier):
            decoder = torch.randint(SPECIAL, config.vocab_size, (batch, DECODER_LENGTH), generator=generator)
            decoder[:, 0] = config.decoder_start_token_id
            made["decoder_input_ids"] = decoder
    return made
