"""What tells one base from another: its type, its parameters' names and shapes, and a few values of each of them."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unipelt.checkpoint.description import Description
from unipelt.errors import CheckpointError
from unipelt.inject.state import NAME

PLACES = 4
"""values taken of each parameter, evenly spread"""
STEP = 2**-7
"""a cast to bfloat16 moves a value by at most half of this part of it"""
LEAST = 2**-24
"""the smallest number above 0 in float16"""


def fingerprint(model: PreTrainedModel, head: list[str]) -> dict[str, str]:
    """Of a base without its tuned head: its type, a hash of names and shapes, and values as text."""
    named = _named(model, head)
    shapes = ";".join(f"{name}:{tuple(p.shape)}" for name, p in named)
    config: Any = model.base_model.config
    return {
        "model_type": config.model_type,
        "fingerprint": hashlib.sha256(shapes.encode()).hexdigest()[:16],
        "values": " ".join(f"{value:.4g}" for _, p in named for value in _values(p)),
    }


def weights_fingerprint(model: PreTrainedModel, head: list[str]) -> str:
    """A hash of every byte of a base without its head, whose training must not resume on another."""
    digest = hashlib.sha256()
    for name, parameter in _named(model, head):
        digest.update(f"{name}:{tuple(parameter.shape)}:{parameter.dtype};".encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of what a tokenizer makes of any text: its vocabulary, rules and special tokens."""
    said: dict[str, Any] = {"type": type(tokenizer).__name__, "special": tokenizer.special_tokens_map}
    if getattr(tokenizer, "is_fast", False):
        said |= json.loads(tokenizer.backend_tokenizer.to_str())
        said.pop("truncation"), said.pop("padding")  # set by each call
    else:
        said["vocabulary"] = tokenizer.get_vocab()
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


def check_base(model: PreTrainedModel, description: Description, folder: Path) -> None:
    """Raise CheckpointError where a model is not the base that a checkpoint was made for; a cast of its weights is."""
    modules = dict(model.named_modules())
    head = [path for path in description.head["modules"] if path in modules]
    got, expected = fingerprint(model, head), description.base
    made, mine = (
        f"base {name!r}" if name else "a base without a name" for name in (expected["name"], model.config._name_or_path)
    )
    made = f"{folder}: made for {made}"
    for key, what in (("model_type", "type differs"), ("fingerprint", "parameters differ")):
        if got[key] != expected[key]:
            raise CheckpointError(
                f"{made} ({expected['model_type']}); got {mine} ({got['model_type']}), whose {what}; load that base instead"
            )
    names = [name for name, _ in _named(model, head) for _ in range(PLACES)]
    for name, value, other in zip(names, *(map(float, facts["values"].split()) for facts in (got, expected))):
        if abs(value - other) > STEP * abs(other) + LEAST:  # never so where one is NaN: a weight that cannot be read
            raise CheckpointError(
                f"{made}; the weights of {mine} differ ({name} is {value:g}, expected {other:g}); load that base instead"
            )


def _named(model: PreTrainedModel, head: list[str]) -> list[tuple[str, Tensor]]:
    """The base's parameters by name, its head's and the tuned ones apart."""
    outside = {id(p) for path in head for p in model.get_submodule(path).parameters()}
    named = model.base_model.named_parameters()
    return [(name, p) for name, p in named if not name.startswith(NAME + ".") and id(p) not in outside]


def _values(parameter: Tensor) -> list[float]:
    """NaN where a parameter holds none that a cast would keep: not loaded yet, or quantised."""
    if parameter.is_meta or not parameter.is_floating_point() or parameter.dtype.itemsize < 2 or not parameter.numel():
        return [math.nan] * PLACES
    places = torch.arange(1, 2 * PLACES, 2, device=parameter.device) * parameter.numel() // (2 * PLACES)
    return parameter.detach().flatten()[places].double().tolist()
