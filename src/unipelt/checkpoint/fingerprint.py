"""What tells one base from another: its type, its tensors' names and shapes, and sums over every value of each tensor.

Every tensor is cut into blocks of ROWS rows, and of each block X the file keeps two numbers, uᵀ X v, for fixed irregular
u and v. A cast to half precision rounds each value by a relative 2⁻⁸ or less, independently, and so moves such a number by
little more than 2⁻⁹ ‖X‖, but one row of other values moves it by about ‖X‖ / √ROWS, which is 32 times as much. Between
equal dtypes, or from the wider one, nothing is rounded and a change of one value is seen.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from unipelt.checkpoint.description import BaseIdentity, Description
from unipelt.errors import CheckpointError
from unipelt.inject.added_tokens import rows_of_base, token_rows
from unipelt.inject.state import NAME

ROWS = 256
"""rows of a block"""
EXACT = 1e-7
"""tolerance of a sum, as a part of the block's norm, where nothing was rounded: sums are printed with 8 digits"""
ROUNDED = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""the same where one side was rounded to this dtype: about four times what a cast moves a sum by"""
TINY = 2.0**-23
"""by how much a value may move below the smallest normal number of float16, four times"""
ODD = (
    "Hello, World!",
    " déjà  VU\tin 1,234.5 °C\n",
    "naïve Straße, 東京 и Ω 😀",
    "don't un-believ_able <s> http://a.b/c?d=1",
)
"""texts that tokenizers of the same vocabulary cut in their own ways: case, accents, spaces, numbers, scripts, punctuation"""
UNREAD = "unread"
"""in place of the sums of a tensor whose values cannot be compared: quantised, or not in memory"""

Named = tuple[str, Tensor]


def fingerprint(model: PreTrainedModel, head: list[str], name: str = "", tokens: int | None = None) -> BaseIdentity:
    """Identity of a base without its tuned head: type, a hash of names and shapes, and sums over all values.

    `values` has one text for each tensor of the base model: its dtype and the sums of its blocks. `outside` has the same, after
    the tensor's name, for untuned tensors outside the base model, such as output embeddings. tokens: number of tokens of the
    base itself; embedding rows beyond it are left out. 110 million parameters take 0.6 s on one core.
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
    """A hash of every byte of a base without its head, whose training must not resume on another."""
    digest = hashlib.sha256()
    inside, outside = _tensors(model, head)
    for name, parameter in [*inside, *outside]:
        digest.update(f"{name}:{tuple(parameter.shape)}:{parameter.dtype};".encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what a tokenizer makes of texts: its vocabulary, its special tokens, and the tokens of a few odd texts.

    It says nothing of how a version of a library writes the tokenizer down, so that an upgrade does not change it. Padding
    with the end of text is as good as no padding token.
    """
    special = dict(tokenizer.special_tokens_map)
    if special.get("pad_token") == special.get("eos_token"):
        special.pop("pad_token", None)
    contents = {
        "special": {name: str(token) for name, token in special.items()},
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "tokens": [_tokens(tokenizer, text) for text in ODD],
    }
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:16]


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    try:
        return tokenizer(text)["input_ids"]
    except Exception:  # a vocabulary without an unknown token
        return []


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, expected: str, folder: str | Path) -> None:
    """Raise CheckpointError if a tokenizer is not that of the training. expected: its fingerprint; empty: no check."""
    if expected and (actual := tokenizer_fingerprint(tokenizer)) != expected:
        raise CheckpointError(
            f"{folder}: was trained with another tokenizer (fingerprint {expected}; got {actual}): its vocabulary, special tokens or "
            "rules differ, so that tokens mean something else; put back the tokenizer of the training"
        )


def check_base(model: PreTrainedModel, description: Description, folder: Path) -> None:
    """Raise CheckpointError if a model is not the base of a checkpoint; weights cast to another dtype pass."""
    modules, expected = dict(model.named_modules()), description.base
    head = [path for path in description.head["modules"] if path in modules]
    named, outside = _tensors(model, head, expected["tokens"])
    kind = cast(PretrainedConfig, model.base_model.config).model_type
    expected_base, actual_base = (
        f"base {name!r}" if name else "a base without a name" for name in (expected["name"], model.config._name_or_path)
    )
    message = f"{folder}: made for {expected_base}"
    if kind != expected["model_type"] or _shapes(named) != expected["fingerprint"]:
        difference = "parameters differ" if kind == expected["model_type"] else "type differs"
        raise CheckpointError(
            f"{message} ({expected['model_type']}); got {actual_base} ({kind}), whose {difference}; "
            "load that base instead; where tokens were added to it, resize its embeddings alike"
        )
    if len(expected["values"]) != len(named):
        raise CheckpointError(f"{folder}: {len(expected['values'])} sums for {len(named)} tensors of the base: damaged")
    texts = dict(text.split(" ", 1) for text in expected["outside"] if " " in text)
    known = [((name, tensor), texts[name]) for name, tensor in outside if name in texts]
    for (name, tensor), text in [*zip(named, expected["values"]), *known]:
        if problem := _difference(tensor, text):
            raise CheckpointError(
                f"{message}; the weights of {actual_base} differ ({name} {problem}); load that base instead"
            )


def _tensors(model: PreTrainedModel, head: list[str], tokens: int = 0) -> tuple[list[Named], list[Named]]:
    """The parameters and saved buffers of the base model, and those outside of it, such as output embeddings that are not tied;
    without the head's and the tuned ones, and without the rows of more than so many tokens."""
    excluded = {id(p) for path in head for p in model.get_submodule(path).parameters()}
    base_rows, tensors = rows_of_base(model, tokens), []
    for module in (cast(PreTrainedModel, model.base_model), model):
        saved, named = module.state_dict(keep_vars=True), [*module.named_parameters(), *module.named_buffers()]
        tensors.append([
            (name, base_rows.get(id(value), value)) for name, value in named
            if name in saved and not name.startswith(f"{NAME}.") and id(value) not in excluded and value.numel()
        ])  # fmt: skip
        excluded |= {id(value) for _, value in named}
    return tensors[0], tensors[1]


def _shapes(named: list[Named]) -> str:
    return hashlib.sha256(";".join(f"{name}:{tuple(tensor.shape)}" for name, tensor in named).encode()).hexdigest()[:16]


def _text(tensor: Tensor) -> str:
    if not _readable(tensor):
        return UNREAD
    dtype = str(tensor.dtype).removeprefix("torch.")
    return " ".join([dtype, *(f"{value:.8g}" for sums, _ in _blocks(tensor) for value in sums.tolist())])


def _difference(tensor: Tensor, text: str) -> str | None:
    """How a tensor differs from the one that a text of sums is of, by more than a cast explains; None: it does not."""
    if text == UNREAD or not _readable(tensor):
        return None
    kind, *texts = text.split() or [""]
    dtypes = {tensor.dtype, getattr(torch, kind, None)}
    part = max([EXACT, *(ROUNDED.get(dtype, EXACT) for dtype in dtypes if len(dtypes) > 1)])  # type: ignore[arg-type]
    least = TINY if torch.float16 in dtypes and len(dtypes) > 1 else 0.0
    count = -(-len(_rows(tensor)) // ROWS)
    try:
        expected = torch.tensor([float(value) for value in texts], dtype=torch.float64).reshape(count, 2)
    except (ValueError, RuntimeError):
        return f"has the sums {text[:40]!r} in the file, which is damaged"
    for number, (sums, block) in enumerate(_blocks(tensor)):
        most = part * block.norm().item() + least * math.sqrt(block.numel()) + EXACT * expected[number].abs()
        if not bool(((sums - expected[number]).abs() <= most).all()):  # never so where one is NaN
            return f"differs in rows {number * ROWS} to {number * ROWS + len(block) - 1}"
    return None


def _blocks(tensor: Tensor) -> Iterator[tuple[Float[Tensor, "2"], Float[Tensor, "rows columns"]]]:
    """uᵀ X v for two v, and X itself, of each block of rows."""
    rows = _rows(tensor)
    device = rows.device if rows.device.type != "mps" else torch.device("cpu")  # MPS has no float64
    v = torch.stack([_irregular(rows.shape[1], 0.7), _irregular(rows.shape[1], 1.3)], dim=1).to(device)
    u = _irregular(min(ROWS, len(rows)), 2.1).to(device)
    for start in range(0, len(rows), ROWS):
        block = rows[start : start + ROWS].to(device, torch.float64)
        yield (u[: len(block)] @ block @ v).cpu(), block


def _rows(tensor: Tensor) -> Tensor:
    """A tensor as a matrix; a vector is one row."""
    value = tensor.detach()
    return value.reshape(1, -1) if value.dim() < 2 else value.flatten(1)


def _irregular(count: int, step: float) -> Float[Tensor, " count"]:
    """√2 cos(step · i²): of mean square 1, the same on every machine, and no two stretches alike."""
    i = torch.arange(1, count + 1, dtype=torch.float64)
    return math.sqrt(2) * torch.cos(step * i * i)


def _readable(tensor: Tensor) -> bool:
    sharded = hasattr(tensor, "placements")
    return not sharded and not tensor.is_meta and tensor.is_floating_point() and tensor.dtype.itemsize > 1
