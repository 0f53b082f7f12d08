"""What tells one base from another: its type, its tensors' names and shapes, and checksums of every tensor's values.

The file keeps a checksum of the values as they are and one of the values rounded to each narrower dtype, so that a base in
half precision is known too. Where both sides are rounded otherwise, to bfloat16 and to float16, values are not compared.
"""

import hashlib
import json
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from unipelt.checkpoint.description import BaseIdentity, Description
from unipelt.errors import CheckpointError
from unipelt.inject.added_tokens import own_rows, token_rows
from unipelt.inject.state import NAME

ROUNDED = {
    torch.float64: (torch.float64, torch.float32, torch.bfloat16, torch.float16),
    torch.float32: (torch.float32, torch.bfloat16, torch.float16),
    torch.bfloat16: (torch.bfloat16,),
    torch.float16: (torch.float16,),
}
"""by the dtype of values: itself, and those that they can be rounded to, the widest first"""
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
BLOCK = 2**18  # values that are summed at once
FACTOR = 0x9E3779B97F4A7C15  # odd, and without a pattern in its bits: 2⁶⁴ divided by the golden ratio
ODD = (
    "Hello, World!",
    " déjà  VU\tin 1,234.5 °C\n",
    "naïve Straße, 東京 и Ω 😀",
    "don't un-believ_able <s> http://a.b/c?d=1",
)
"""texts that tokenizers of the same vocabulary cut in their own ways: case, accents, spaces, numbers, scripts, punctuation"""
UNREAD = "unread"
"""in place of the checksums of a tensor whose values cannot be compared: quantised, or not in memory"""

Named = tuple[str, Tensor]


def fingerprint(model: PreTrainedModel, head: list[str], name: str = "", tokens: int | None = None) -> BaseIdentity:
    """Identity of a base without its tuned head: type, a hash of names and shapes, and checksums of all values.

    `values` has one text for each tensor of the base model: `dtype:checksum` for its own dtype and each narrower one. `outside`
    has the same, with its name first, of each that stands between the base model and the logits and is not tuned, such as output
    embeddings. tokens: how many tokens the base itself has; rows for more are no part of it. 110 million parameters take
    1.3 s on one core.
    """
    rows = token_rows(model)
    tokens = min(len(rows["input"]), tokens or len(rows["input"])) if rows else 0
    named, outside = _tensors(model, head, tokens)
    return {
        "name": name,
        "model_type": cast(PretrainedConfig, model.base_model.config).model_type,
        "fingerprint": _shapes(named),
        "tokens": tokens,
        "values": [_text(tensor) for _, tensor in named],
        "outside": [f"{name} {_text(tensor)}" for name, tensor in outside],
    }


def weights_fingerprint(model: PreTrainedModel, head: list[str]) -> str:
    """A hash of all values of a base without its head, whose training must not resume on another."""
    return _hash(";".join(f"{name}:{_text(tensor)}" for named in _tensors(model, head) for name, tensor in named))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what a tokenizer makes of texts: its vocabulary, its special tokens, and the tokens of a few odd texts.

    It says nothing of how a version of a library writes the tokenizer down, so that an upgrade does not change it. Padding
    with the end of text is as good as no padding token.
    """
    special = dict(tokenizer.special_tokens_map)
    if special.get("pad_token") == special.get("eos_token"):
        special.pop("pad_token", None)
    said = {
        "special": {name: str(token) for name, token in special.items()},
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "tokens": [_tokens(tokenizer, text) for text in ODD],
    }
    return _hash(json.dumps(said, sort_keys=True))


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    try:
        return tokenizer(text)["input_ids"]
    except Exception:  # a vocabulary without an unknown token
        return []


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, expected: str, where: str | Path) -> None:
    """Raise CheckpointError where a tokenizer is not the one that a run was trained with; nothing is expected: none is known."""
    if expected and (found := tokenizer_fingerprint(tokenizer)) != expected:
        raise CheckpointError(
            f"{where}: was trained with another tokenizer (fingerprint {expected}; got {found}): its vocabulary, special tokens or "
            "rules differ, so that tokens mean something else; put back the tokenizer of the training"
        )


def check_base(model: PreTrainedModel, description: Description, folder: Path) -> None:
    """Raise CheckpointError where a model is not the base that a checkpoint was made for; a cast of its weights is."""
    modules, expected = dict(model.named_modules()), description.base
    head = [path for path in description.head["modules"] if path in modules]
    named, outside = _tensors(model, head, expected["tokens"])
    kind = cast(PretrainedConfig, model.base_model.config).model_type
    made, given = (
        f"base {name!r}" if name else "a base without a name" for name in (expected["name"], model.config._name_or_path)
    )
    made = f"{folder}: made for {made}"
    if kind != expected["model_type"] or _shapes(named) != expected["fingerprint"]:
        what = "parameters differ" if kind == expected["model_type"] else "type differs"
        raise CheckpointError(
            f"{made} ({expected['model_type']}); got {given} ({kind}), whose {what}; "
            "load that base instead; where tokens were added to it, resize its embeddings alike"
        )
    if len(expected["values"]) != len(named):
        raise CheckpointError(
            f"{folder}: {len(expected['values'])} checksums for {len(named)} tensors of the base: damaged"
        )
    texts = dict(text.split(" ", 1) for text in expected["outside"] if " " in text)
    known = [((name, tensor), texts[name]) for name, tensor in outside if name in texts]
    for (name, tensor), text in [*zip(named, expected["values"]), *known]:
        if _differs(tensor, text):
            raise CheckpointError(f"{made}; the weights of {given} differ ({name}); load that base instead")


def _tensors(model: PreTrainedModel, head: list[str], tokens: int = 0) -> tuple[list[Named], list[Named]]:
    """The parameters and saved buffers of the base model, and those outside of it, such as output embeddings that are not tied;
    without the head's and the tuned ones, and without the rows of more than so many tokens."""
    others = {id(p) for path in head for p in model.get_submodule(path).parameters()}
    own, found = own_rows(model, tokens), []
    for module in (cast(PreTrainedModel, model.base_model), model):
        saved, named = module.state_dict(keep_vars=True), [*module.named_parameters(), *module.named_buffers()]
        found.append([
            (name, own.get(id(value), value)) for name, value in named
            if name in saved and not name.startswith(f"{NAME}.") and id(value) not in others and value.numel()
        ])  # fmt: skip
        others |= {id(value) for _, value in named}
    return found[0], found[1]


def _shapes(named: list[Named]) -> str:
    return _hash(";".join(f"{name}:{tuple(tensor.shape)}" for name, tensor in named))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _text(tensor: Tensor) -> str:
    if not _readable(tensor):
        return UNREAD
    return " ".join(f"{_name(dtype)}:{_checksum(tensor, dtype)}" for dtype in ROUNDED[tensor.dtype])


def _differs(tensor: Tensor, text: str) -> bool:
    """Whether a tensor has other values than the one that a text of checksums is of, in the widest dtype that both have."""
    if text == UNREAD or not _readable(tensor):
        return False
    expected = dict(one.split(":", 1) for one in text.split() if ":" in one)
    common = next((dtype for dtype in ROUNDED[tensor.dtype] if _name(dtype) in expected), None)
    return not expected if common is None else _checksum(tensor, common) != expected[_name(common)]


def _checksum(tensor: Tensor, dtype: torch.dtype) -> str:
    """Σ bᵢ wᵢ mod 2⁶⁴ over the bits bᵢ of the values in a dtype, with odd weights wᵢ: the same on every device, in any order."""
    values, total = tensor.detach().reshape(-1), 0
    i = torch.arange(1, min(BLOCK, len(values)) + 1, device=values.device)
    weights = 2 * i * i * (FACTOR % 2**62) + 1  # int64 products wrap around
    for block in values.split(BLOCK):
        bits = block.to(dtype).view(INTEGERS[dtype.itemsize]).long()
        total = (total * FACTOR + int((bits * weights[: len(bits)]).sum())) % 2**64
    return f"{total:016x}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _readable(tensor: Tensor) -> bool:
    sharded = hasattr(tensor, "placements")
    return not sharded and not tensor.is_meta and tensor.dtype in ROUNDED
