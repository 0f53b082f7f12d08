"""A tiny random model of any model type of transformers: its config class with small sizes, by the names of its fields."""

import re
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TASKS = {  # in the order in which a type is tried
    "encoder-decoder": (modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, hf.AutoModelForSeq2SeqLM),
    "masked": (modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, hf.AutoModelForMaskedLM),
    "causal": (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, hf.AutoModelForCausalLM),
    "text classifier": (
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        hf.AutoModelForSequenceClassification,
    ),
    "image classifier": (
        modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        hf.AutoModelForImageClassification,
    ),
}

SIZES: tuple[tuple[str, int], ...] = (  # the first pattern that the whole name of a field matches gives its size
    (r"(.*_)?vocab_size(_per_layer_input)?", 120),
    (r"num_(nextn_predict|kv_shared)_layers", 0),
    (r"(n|num|encoder|decoder|num_hidden|num_encoder|num_decoder)_layers?|depth|max_window_layers", 2),
    (r"(num_key_value|num_kv|n_head|num_global_key_value|swa_num_key_value)_heads?(_kv)?|n_head_kv|multi_query_group_num", 2),
    (r"(num_attention|n|num|(num_)?(en|de)coder_attention|num_global_attention)_heads?|n_head", 4),
    (r"(global_|swa_)?head_dim|attention_head_(dim|size)|d_kv|d_head|kv_channels", 16),
    (r"hidden_size_per_layer_input|laurel_rank|o_lora_rank|index_head_dim|query_pre_attn_scalar|v_head_dim", 16),
    (r"(en|de)coder_hidden_size|hidden_size|d_model|n_embd|dim|emb_dim|emb_size|embed_dim|embedding_size|text_hidden_size", 64),
    (r"word_embed_proj_dim|projection_dim|attention_dim|lru_width|attention_hidden_size|spout_size|hidden_dim_size", 64),
    (r".*intermediate_size(_mlp)?|.*ffn_dim|d_ff|n_inner|ffn_hidden_size|hidden_dim|feed_forward_size|mlp_dim", 96),
    (r"expert_ffn_hidden_size|expert_dim|block_ff_dim", 96),
    (r"(num|num_local|n_routed|moe_num|num_routed)_experts|routed_experts", 4),
    (r"(num_experts_per_(tok|token)|moe_k|top_k_experts|num_selected_experts|moe_top_?k|n_activated_experts)", 2),
    (r"n_group|topk_group|n_shared_experts|num_shared_experts|first_k_dense_replace|zero_expert_num|num_expert_group", 1),
    (r"q_lora_rank", 24), (r"kv_lora_rank", 20), (r"qk_nope_head_dim", 16), (r"qk_rope_head_dim", 8),
    (r"o_groups|index_n_heads", 2), (r"index_topk|sliding_window|local_attention", 64), (r"attention_window", 8),
    (r"max_(position_embeddings|source_positions|target_positions|seq_len)|n_positions|n_ctx", 128),
    (r"mamba_d_state|state_size|ssm_state_size|(mamba_)?chunk_size|(mamba_)?dt_rank|time_step_rank", 8),
    (r"mamba_(n|num)_heads", 8), (r"mamba_(d_head|head_dim)", 16), (r"mamba_d_ssm", 128), (r"mamba_n_groups|n_groups", 1),
    (r"n_mamba_heads|linear_num_key_heads", 2), (r"linear_num_value_heads", 4), (r"linear_(key|value)_head_dim", 16),
    (r"image_size", 32), (r"patch_size", 8), (r"num_feature_levels", 1), (r"type_vocab_size", 2),
)  # fmt: skip
SPECIAL_TOKENS = {
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "sep_token_id": 2,
    "cls_token_id": 1, "mask_token_id": 3,
}  # fmt: skip
LATENT = {"head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2}
WINDOWS = {"embed_dim": 32, "depths": [1, 1], "num_heads": [2, 4], "window_size": 2, "image_size": 32, "patch_size": 4}
PYRAMID = {"num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [32, 32], "num_attention_heads": [2, 2],
           "mlp_ratios": [2, 2]}  # fmt: skip
PARTICULAR: dict[str, dict[str, Any]] = {  # what the name of no field tells
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3"), LATENT),
    "youtu": {"head_dim": 8}, "glm4_moe_lite": {"head_dim": 8}, "mistral4": {"head_dim": 8},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
    **dict.fromkeys(("swin", "swinv2", "donut-swin"), WINDOWS),
    "bailing_hybrid": {"num_experts": 8}, "bamba": {"attn_layer_indices": [1]},
    "big_bird": {"attention_type": "original_full"}, "bigbird_pegasus": {"attention_type": "original_full"},
    "canine": {"num_hash_buckets": 50, "num_hash_functions": 4, "local_transformer_stride": 16},
    "codegen": {"rotary_dim": 8}, "gptj": {"rotary_dim": 8}, "cpmant": {"dim_head": 16, "dim_ff": 96, "prompt_length": 4},
    "convnext": {"hidden_sizes": [16] * 4, "depths": [1] * 4, "num_stages": 4}, "ctrl": {"dff": 96},
    "deberta-v2": {  # as in the checkpoints of its third version
        "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "max_relative_positions": -1,
    },
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2}, "esm": {"vocab_size": 120, "mask_token_id": 3}, "esmc": {"num_key_value_heads": 4},
    "flaubert": {"n_layers": 2}, "funnel": {"block_sizes": [1, 1], "num_decoder_layers": 1, "d_inner": 96},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hiera": {
        "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "image_size": [32, 32], "patch_size": [7, 7],
        "patch_stride": [4, 4], "patch_padding": [3, 3], "query_stride": [2, 2], "num_query_pool": 1,
        "masked_unit_size": [4, 4],
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": {"num_experts": 8}, "layoutlmv2": {"has_relative_attention_bias": False},
    "layoutlmv3": {"visual_embed": False, "coordinate_size": 10, "shape_size": 12}, "led": {"attention_window": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lilt": {"hidden_size": 96, "channel_shrink_ratio": 4}, "longcat_flash": {"head_dim": 8, "moe_topk": 2},
    "longformer": {"attention_window": [8, 8]}, "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2},
    "mobilebert": {"intra_bottleneck_size": 32, "intermediate_size": 64, "embedding_size": 32},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"], "num_hidden_layers": 4},
    "perceiver": {
        "d_latents": 64, "d_model": 64, "num_latents": 8, "num_self_attends_per_block": 2, "num_blocks": 1,
        "num_self_attention_heads": 4, "num_cross_attention_heads": 4,
    },
    "prophetnet": {"num_encoder_layers": 2, "num_decoder_layers": 2},
    "pvt": PYRAMID | {"image_size": 64, "patch_sizes": [4, 2], "strides": [4, 2], "sequence_reduction_ratios": [4, 1]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 32},
    "segformer": PYRAMID | {"sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2]},
    "squeezebert": dict.fromkeys(
        ("q_groups", "k_groups", "v_groups", "post_attention_groups", "intermediate_groups", "output_groups"), 1
    ),
    "xlm": {"n_layers": 2}, "xlnet": {"d_inner": 96}, "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
KINDS_OF_LAYERS = ("layer_types", "layers_block_type", "mlp_layer_types", "block_types")
MAY_BE_NONE = ("num_key_value_heads", "head_dim", "n_inner")
MOST_PARAMETERS = 30_000_000


class CannotBuild(Exception):
    """Why a type has no tiny model here."""


def types() -> list[str]:
    """Every model type that has one of these heads."""
    return sorted({name for names, _ in TASKS.values() for name in names} & set(CONFIG_MAPPING))


def task_of(model_type: str) -> str:
    return next(task for task, (names, _) in TASKS.items() if model_type in names)


def fields(config: type, depth: int = 0) -> dict[str, Any]:
    """What to give to a config class: its fields with small sizes."""
    default = config()
    known = {name: value for name, value in vars(default).items() if not name.startswith("_")}
    small: dict[str, Any] = {}
    for name, value in known.items():
        number = (isinstance(value, int) and not isinstance(value, bool)) or (value is None and name in MAY_BE_NONE)
        size = next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)
        if number and size is not None:
            small[name] = size
        elif name in SPECIAL_TOKENS and (value is None or isinstance(value, int)):
            small[name] = SPECIAL_TOKENS[name]
    if "num_key_value_heads" in small and "kv_lora_rank" in known:
        small["num_key_value_heads"] = small["num_attention_heads"]
    shorten(known, small)
    for name, value in known.items():
        if isinstance(value, dict) and "mrope_section" in value:
            small[name] = value | {"mrope_section": [4, 2, 2]}
    for name in getattr(config, "sub_configs", None) or {}:
        inner = known.get(name)
        if inner is not None and depth < 3:
            named = {"model_type": inner.model_type} if inner.model_type else {}
            small[name] = named | fields(type(inner), depth + 1)
    small |= PARTICULAR.get(config.model_type, {})
    if depth:
        small.pop("decoder_start_token_id", None)
    return small


def shorten(known: dict[str, Any], small: dict[str, Any]) -> None:
    """Lists with one entry per layer, cut to as many layers as there are kinds of them, two at least."""
    counts = [name for name in ("num_hidden_layers", "n_layer", "num_layers") if name in known]
    if not counts:
        return
    layers, before = small.get(counts[0], 2), known[counts[0]]
    for name in KINDS_OF_LAYERS:
        kinds = list(dict.fromkeys(known.get(name) or ()))
        if all(isinstance(kind, str) for kind in kinds):
            layers = max(layers, len(kinds))
    small |= dict.fromkeys(counts, layers)
    for name, value in known.items():
        if not isinstance(value, list | tuple) or not value:
            continue
        if name in KINDS_OF_LAYERS and isinstance(value[0], str):
            small[name] = (list(dict.fromkeys(value)) * layers)[:layers]
        elif len(value) == before > 2:
            small[name] = list(value[:layers])


def build(model_type: str, seed: int = 0, **options: Any) -> hf.PreTrainedModel:
    """A random model of a type. Raises CannotBuild where its config or model does not come into being."""
    _, auto = TASKS[task_of(model_type)]
    kind = CONFIG_MAPPING[model_type]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = kind(**fields(kind) | options)
            config.architectures = []
            try:
                model = auto.from_config(config, experts_implementation="eager")
            except (TypeError, ValueError, AttributeError):
                model = auto.from_config(kind(**fields(kind) | options))
    except Exception as error:
        raise CannotBuild(f"{type(error).__name__}: {str(error)[:160]}") from error
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "_experts_implementation", None) not in (None, "eager"):
            config._experts_implementation_internal = "eager"
    if (size := sum(p.numel() for p in model.parameters())) > MOST_PARAMETERS:
        raise CannotBuild(f"not tiny: {size / 1e6:.0f} million parameters")
    noise(model, seed)
    return model.eval()


@torch.no_grad()
def noise(model: hf.PreTrainedModel, seed: int) -> None:
    """No weight is zero, one or symmetric."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter)


def inputs(model: hf.PreTrainedModel, batch: int = 2, length: int = 8) -> dict[str, Tensor]:
    """What `model(**inputs)` takes."""
    from unipelt.inject.trace import example_inputs

    return example_inputs(model.base_model, batch, length)


def double(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
    """In float64 where it runs so, else in float32."""
    given = inputs(model)
    try:
        with torch.no_grad():
            output = model.double()(**{n: t.double() if t.is_floating_point() else t for n, t in given.items()})
        if not output[0].isfinite().all():
            model.float()
    except (RuntimeError, TypeError, ValueError):
        model.float()
    return model


def other_heads(model_type: str) -> dict[str, Any]:
    """Options for a model of twice as many heads of half the width."""
    small = fields(CONFIG_MAPPING[model_type])
    names = [name for pattern in HEADS for name in small if re.fullmatch(pattern, name)]
    if "kv_lora_rank" in small:  # whose heads are as wide as other fields say
        names = [name for name in names if name != "head_dim"]
    return {name: small[name] * 2 if "dim" not in name and "size" not in name else small[name] // 2 for name in names}


HEADS = (
    r"(num_attention|n|num)_heads?|n_head",
    r"head_dim|attention_head_(dim|size)",
    r"num_key_value_heads|n_head_kv",
)
