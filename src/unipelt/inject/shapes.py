"""Lengths to which batches are padded, so that few shapes are compiled or captured; and the longest input of a base."""

from torch import nn

LEAST = 16  # tokens: below, a step takes as long


def bucket(length: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, …: never more than half as much again."""
    power = 1 << (max(length, LEAST) - 1).bit_length()
    between = power // 4 * 3
    return between if max(length, LEAST) <= between else power


def most_tokens(model: nn.Module, limit: int) -> int:
    """`limit`, or the number of positions that the base has for an input, beside a soft prompt, where that is less."""
    positions = getattr(model.config, "max_position_embeddings", None)
    for path, module in model.named_modules():
        if path.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions = module.num_embeddings - module.padding_idx - 1  # RoBERTa counts from there
    prompt = getattr(getattr(model, "unipelt", None), "prompt_length", 0)
    return min(limit, positions - prompt) if positions else limit
