"""Where each architecture keeps its parts: one row of paths per `config.model_type`, for transformers 5.17 to 5.23.

A table and no behaviour: it imports neither torch nor transformers, and knows nothing of changes.
"""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Where one attention block of a layer keeps its parts; paths are relative to the layer."""

    # the module whose forward calls the attention function (gets hidden_states first, or as keyword hidden_states)
    module: str
    # linears; equal paths are one fused projection
    query: str
    key: str
    value: str
    # the output projection: its input is the concatenated heads, its output the attention output
    out: str
    # post-LN models: the LayerNorm applied to (attention output + residual); None for pre-LN
    norm: str | None = None
    # fused projections: how their output features are laid out, the parts (query, key, value, other) in each group
    order: tuple[str, ...] = ("query", "key", "value")
    # fused projections: how many such groups: a number, or "heads" for one per key/value head (GPT-NeoX, Falcon)
    groups: int | str = 1
    # key/value heads, width of a key, width of a value, each a number or the name of an attribute of the module or the
    # config; None where the projections' sizes and the usual names of the number of heads say it
    shape: tuple[int | str, int | str, int | str] | None = None
    # the module dispatches through AttentionInterface and hands keywords on to it
    prefix: bool = True


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One encoder or decoder: a list of equal layers over one stream of hidden states."""

    # "encoder" or "decoder"
    name: str
    # path, from the base model (model.base_model), of the module that receives the 2D attention_mask; "" is the base
    module: str
    # path of the layers from the base model: a ModuleList; each * stands for every child, in order, so that shared
    # layers are listed once
    layers: str
    # a token sees only what comes before it
    causal: bool
    attention: Attention
    # over the encoder's output
    cross: Attention | None = None
    # module (relative to the layer) whose first argument is the FFN's direct input (after the pre-norm in pre-LN models)
    ffn_input: str
    # module whose output is the FFN's output before residual (and before any post-norm); equals ffn_input where the FFN
    # is one module
    ffn_output: str
    # post-LN models: LayerNorm over (FFN output + residual), the layer's last norm
    ffn_norm: str | None = None
    # pre-LN models: the module whose first argument is the residual stream entering the FFN block; None for post-LN
    ffn_residual: str | None = None
    # every LayerNorm or RMSNorm of a layer, those of queries and keys apart
    norms: tuple[str, ...]
    # ends of the paths of modules that relative positions pass through too, where config.relative_attention is set
    positions: tuple[str, ...] = ()
    # the stack's module and its layers hand keywords on to the attention blocks
    keywords: bool = True


def _projections(module: str, query: str, key: str, value: str, out: str, **rest: Any) -> Attention:
    """The usual case: all four projections are children of the attention module."""
    query, key, value, out = (f"{module}.{name}" for name in (query, key, value, out))
    return Attention(module=module, query=query, key=key, value=value, out=out, **rest)


_BERT = Stack(
    name="encoder",
    module="",
    layers="encoder.layer",
    causal=False,
    attention=Attention(
        module="attention.self",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        out="attention.output.dense",
        norm="attention.output.LayerNorm",
    ),
    ffn_input="intermediate.dense",
    ffn_output="output.dense",
    ffn_norm="output.LayerNorm",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
)

_LLAMA = Stack(
    name="decoder",
    module="",
    layers="layers",
    causal=True,
    attention=_projections("self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),
    ffn_input="mlp",
    ffn_output="mlp",
    ffn_residual="post_attention_layernorm",
    norms=("input_layernorm", "post_attention_layernorm"),
)

_GEMMA = replace(  # a norm before and one after each sub-layer, inside the residual: no post-LN
    _LLAMA,
    ffn_residual="pre_feedforward_layernorm",
    norms=(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
)

_OPT = Stack(  # the FFN and the norm before it see [batch·seq, d]
    name="decoder",
    module="decoder",
    layers="decoder.layers",
    causal=True,
    attention=_projections("self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
    ffn_input="fc1",
    ffn_output="fc2",
    ffn_residual="final_layer_norm",
    norms=("self_attn_layer_norm", "final_layer_norm"),
)

_BART_ENCODER = Stack(
    name="encoder",
    module="encoder",
    layers="encoder.layers",
    causal=False,
    attention=_projections("self_attn", "q_proj", "k_proj", "v_proj", "out_proj", norm="self_attn_layer_norm"),
    ffn_input="fc1",
    ffn_output="fc2",
    ffn_norm="final_layer_norm",
    norms=("self_attn_layer_norm", "final_layer_norm"),
)
_BART_DECODER = replace(
    _BART_ENCODER,
    name="decoder",
    module="decoder",
    layers="decoder.layers",
    causal=True,
    cross=_projections("encoder_attn", "q_proj", "k_proj", "v_proj", "out_proj", norm="encoder_attn_layer_norm"),
    norms=("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
)


def _before(stack: Stack) -> Stack:
    """BART's paths with each norm before its sub-layer instead of after."""
    return replace(
        stack,
        attention=replace(stack.attention, norm=None),
        cross=stack.cross and replace(stack.cross, norm=None),
        ffn_norm=None,
        ffn_residual=stack.ffn_norm,
    )


_T5_ENCODER = Stack(
    name="encoder",
    module="encoder",
    layers="encoder.block",
    causal=False,
    attention=_projections("layer.0.SelfAttention", "q", "k", "v", "o"),
    ffn_input="layer.1.DenseReluDense",
    ffn_output="layer.1.DenseReluDense",
    ffn_residual="layer.1.layer_norm",
    norms=("layer.0.layer_norm", "layer.1.layer_norm"),
)
_T5_DECODER = replace(
    _T5_ENCODER,
    name="decoder",
    module="decoder",
    layers="decoder.block",
    causal=True,
    cross=_projections("layer.1.EncDecAttention", "q", "k", "v", "o"),
    ffn_input="layer.2.DenseReluDense",
    ffn_output="layer.2.DenseReluDense",
    ffn_residual="layer.2.layer_norm",
    norms=("layer.0.layer_norm", "layer.1.layer_norm", "layer.2.layer_norm"),
)

ARCHITECTURES: dict[str, tuple[Stack, ...]] = {
    "bert": (_BERT,),
    "roberta": (_BERT,),
    "xlm-roberta": (_BERT,),
    "camembert": (_BERT,),
    "electra": (_BERT,),
    "distilbert": (
        Stack(
            name="encoder",
            module="",
            layers="transformer.layer",
            causal=False,
            attention=_projections("attention", "q_lin", "k_lin", "v_lin", "out_lin", norm="sa_layer_norm"),
            ffn_input="ffn",
            ffn_output="ffn",
            ffn_norm="output_layer_norm",
            norms=("sa_layer_norm", "output_layer_norm"),
        ),
    ),
    "albert": (
        Stack(
            name="encoder",
            module="",
            layers="encoder.albert_layer_groups.*.albert_layers",
            causal=False,
            attention=_projections("attention", "query", "key", "value", "dense", norm="attention.LayerNorm"),
            ffn_input="ffn",
            ffn_output="ffn_output",
            ffn_norm="full_layer_layer_norm",
            norms=("attention.LayerNorm", "full_layer_layer_norm"),
        ),
    ),
    "mpnet": (
        replace(
            _BERT,
            attention=_projections("attention.attn", "q", "k", "v", "o", norm="attention.LayerNorm", prefix=False),
            norms=("attention.LayerNorm", "output.LayerNorm"),
        ),
    ),
    "deberta-v2": (
        replace(
            _BERT,
            attention=replace(
                _BERT.attention,
                query="attention.self.query_proj",
                key="attention.self.key_proj",
                value="attention.self.value_proj",
                prefix=False,
            ),
            positions=("query_proj", "key_proj", "pos_query_proj", "pos_key_proj", "encoder.LayerNorm"),
        ),
    ),
    "modernbert": (
        Stack(
            name="encoder",
            module="",
            layers="layers",
            causal=False,
            attention=_projections("attn", "Wqkv", "Wqkv", "Wqkv", "Wo"),
            ffn_input="mlp",
            ffn_output="mlp",
            ffn_residual="mlp_norm",
            norms=("attn_norm", "mlp_norm"),  # the first layer's attn_norm is an Identity
        ),
    ),
    "vit": (
        Stack(
            name="encoder",
            module="",
            layers="layers",
            causal=False,
            attention=_projections("attention", "q_proj", "k_proj", "v_proj", "o_proj"),
            ffn_input="mlp",
            ffn_output="mlp",
            ffn_residual="layernorm_after",
            norms=("layernorm_before", "layernorm_after"),
        ),
    ),
    "gpt2": (
        Stack(
            name="decoder",
            module="",
            layers="h",
            causal=True,
            attention=_projections("attn", "c_attn", "c_attn", "c_attn", "c_proj"),
            ffn_input="mlp",
            ffn_output="mlp",
            ffn_residual="ln_2",
            norms=("ln_1", "ln_2"),
        ),
    ),
    "gpt_neox": (  # parallel residual or not, the paths are the same
        replace(
            _LLAMA,
            attention=_projections(
                "attention", "query_key_value", "query_key_value", "query_key_value", "dense", groups="heads"
            ),
        ),
    ),
    "opt": (_OPT,),
    "opt-post-norm": (
        replace(
            _OPT,
            attention=replace(_OPT.attention, norm="self_attn_layer_norm"),
            ffn_norm="final_layer_norm",
            ffn_residual=None,
        ),
    ),
    "llama": (_LLAMA,),
    "mistral": (_LLAMA,),
    "mixtral": (_LLAMA,),  # mlp is the sparse block: its experts are no modules, its sum over them is the FFN's output
    "qwen2": (_LLAMA,),
    "qwen3": (_LLAMA,),
    "phi3": (replace(_LLAMA, attention=_projections("self_attn", "qkv_proj", "qkv_proj", "qkv_proj", "o_proj")),),
    "gemma2": (_GEMMA,),
    "gemma3_text": (_GEMMA,),
    "gemma3_text-bidirectional": (replace(_GEMMA, name="encoder", causal=False),),
    "olmo2": (  # norms after each sub-layer but inside the residual, none before: the FFN reads the stream itself
        replace(_LLAMA, ffn_residual="mlp", norms=("post_attention_layernorm", "post_feedforward_layernorm")),
    ),
    "bart": (_BART_ENCODER, _BART_DECODER),
    "mbart": (_before(_BART_ENCODER), _before(_BART_DECODER)),
    "t5": (_T5_ENCODER, _T5_DECODER),
}


def row_name(config: Any) -> str:
    """The key of a model's row: its model_type, and what its config changes about order or causality.

    A name that the table lacks (bert-decoder, llama-bidirectional) is a model that is not supported.
    """
    name = config.model_type
    kind = ARCHITECTURES[name][0].name if name in ARCHITECTURES else None
    if name == "opt" and not config.do_layer_norm_before:
        return "opt-post-norm"
    if kind == "encoder" and getattr(config, "is_decoder", False):
        return f"{name}-decoder"
    if kind == "decoder" and (
        not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False)
    ):
        return f"{name}-bidirectional"
    return name
