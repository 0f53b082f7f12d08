"""Folders that `adapters` itself wrote, with its outputs: run under adapters 1.3.0, transformers 4.57.6, torch 2.13.0.

    python make.py

Each base is random but never stored: `fill` draws a weight from its name, so that any version of transformers has the same.
"""

import zlib
from pathlib import Path

import torch

LAYERS = {"vocab_size": 40, "num_labels": 3}
BERT = LAYERS | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24} | {
    "max_position_embeddings": 24, "pad_token_id": 0,
}  # fmt: skip
DISTILBERT = LAYERS | {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 24}
BART = LAYERS | {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24} | {
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 24, "decoder_start_token_id": 2,
}  # fmt: skip
T5 = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
CASES = {  # base class, its config, and the reference's config and options
    "bert-unipelt": ("BertForSequenceClassification", BERT, "UniPELTConfig", {}),
    "bert-flat": (
        "BertForSequenceClassification",
        BERT,
        "PrefixTuningConfig",
        {"prefix_length": 3, "flat": True, "leave_out": [0]},
    ),
    "bert-sizes": (
        "BertForSequenceClassification",
        BERT,
        "SeqBnConfig",
        {"reduction_factor": {"0": 8, "default": 4}, "non_linearity": "gelu"},
    ),
    "bert-lora": (
        "BertForSequenceClassification",
        BERT,
        "LoRAConfig",
        {"r": 3, "alpha": 7, "attn_matrices": ["q", "k"], "intermediate_lora": True, "output_lora": True},
    ),
    "albert-houlsby": (
        "AlbertForSequenceClassification",
        BERT | {"embedding_size": 8},
        "DoubleSeqBnConfig",
        {"reduction_factor": 4},
    ),
    "distilbert-parallel": (
        "DistilBertForSequenceClassification",
        DISTILBERT,
        "ParBnConfig",
        {"reduction_factor": 4, "scaling": "learned"},
    ),
    "bart-unipelt": ("BartForSequenceClassification", BART, "UniPELTConfig", {}),
    "t5-houlsby": (
        "T5ForConditionalGeneration",
        T5,
        "DoubleSeqBnConfig",
        {"reduction_factor": 4, "cross_adapter": True},
    ),
    "llama-mam": ("LlamaForSequenceClassification", BERT | {"num_key_value_heads": 1}, "MAMConfig", {}),
}


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def make(case: str, folder: Path) -> None:
    import adapters
    import transformers
    from safetensors.torch import save_file

    kind, options, method, settings = CASES[case]
    prefix = adapters.PrefixTuningConfig(prefix_length=3, bottleneck_size=5, use_gating=method == "UniPELTConfig")
    if method == "MAMConfig":
        config = adapters.MAMConfig(prefix, adapters.ParBnConfig(reduction_factor=4))
    elif method == "UniPELTConfig":
        bottleneck = adapters.SeqBnConfig(reduction_factor=4, use_gating=True)
        config = adapters.UniPELTConfig(prefix, bottleneck, adapters.LoRAConfig(r=2, use_gating=True))
    else:
        config = getattr(adapters, method)(**settings)
    base = getattr(transformers, kind)
    model = base(base.config_class(**options, attn_implementation="eager"))
    fill(model)
    adapters.init(model)
    model.add_adapter("theirs", config=config)
    model.set_active_adapters("theirs")
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".theirs." in name or name.startswith(("classif", "score")):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    safe = not method.startswith(("Prefix", "MAM", "UniPELT"))  # `adapters` saves a prefix in pickled files alone
    model.save_adapter(str(folder), "theirs", **({"use_safetensors": True} if safe else {}))

    ids = torch.randint(5, 40, (3, 7), generator=generator)
    mask = (torch.arange(7) < torch.tensor([[7], [5], [3]])).long()
    ids = ids.masked_fill(mask == 0, model.config.pad_token_id)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if kind.startswith("Bart"):
        ids.scatter_(1, mask.sum(1, keepdim=True) - 1, 2)
    if kind.startswith("T5"):
        inputs["decoder_input_ids"] = torch.randint(5, 40, (3, 4), generator=generator)
    with torch.no_grad():
        logits = model.double().eval()(**inputs).logits
    save_file({"logits": logits, **inputs}, folder / "expected.safetensors")


if __name__ == "__main__":
    for case in CASES:
        make(case, Path(__file__).parent / case)
