"""Rows for tokens that were added to a base: of its input embeddings, and of its output embeddings where these are not tied.

They are frozen like the rest of the base, but no file of the base has them: they are kept with the run.
"""

from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from unipelt.inject.resolve import embedding_module
from unipelt.inject.state import NAME

PREFIX = "added."
"""begins the names under which rows are saved: `added.input`, `added.output`, `added.output_bias`, `added.logits_bias`"""


def token_rows(model: PreTrainedModel) -> dict[str, Shaped[Tensor, "token ..."]]:
    """Views of what has one row for each token, by name; empty for a base without token embeddings."""
    embeddings = embedding_module(model, "input")
    if not isinstance(embeddings, nn.Embedding):
        return {}
    rows, output = {"input": embeddings.weight}, embedding_module(model, "output")
    size = len(embeddings.weight)
    weight, bias = (getattr(output, name, None) for name in ("weight", "bias"))
    logits_bias = getattr(model, "final_logits_bias", None)
    if isinstance(weight, Tensor) and weight is not embeddings.weight and len(weight) == size:
        rows["output"] = weight
    if isinstance(bias, Tensor) and len(bias) == size:
        rows["output_bias"] = bias
    if isinstance(logits_bias, Tensor) and logits_bias.shape == (1, size):  # BART
        rows["logits_bias"] = logits_bias.T
    return rows


def rows_of_base(model: PreTrainedModel, tokens: int) -> dict[int, Tensor]:
    """What the base itself has of each tensor with a row for each token, by the tensor's id."""
    if not tokens:
        return {}
    rows = token_rows(model)
    logits_bias = rows.pop("logits_bias", None)
    base_rows = {id(value): value[:tokens] for value in rows.values()}
    return base_rows if logits_bias is None else base_rows | {id(model.final_logits_bias): logits_bias[:tokens]}


def added_rows(model: PreTrainedModel, tokens: int) -> dict[str, Tensor]:
    """The rows after the base's own `tokens`, by the name under which they are saved."""
    rows = token_rows(model)
    if not tokens or not rows or len(rows["input"]) <= tokens:
        return {}
    return {PREFIX + name: value[tokens:].detach().clone().contiguous() for name, value in rows.items()}


def take_added(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the rows of added tokens out of a run's tensors."""
    return {name: tensors.pop(name) for name in [*tensors] if name.startswith(PREFIX)}


def rows_problem(model: PreTrainedModel, tokens: int, added: dict[str, Tensor]) -> str | None:
    """Why saved rows cannot follow the base's own `tokens` rows; None: they can."""
    base = {PREFIX + name: rows for name, rows in token_rows(model).items()}
    if base.keys() != added.keys():
        return f"rows of added tokens for {sorted(added)}; this base has {sorted(base) or 'no token embeddings'}"
    if not 0 < tokens <= len(base[PREFIX + "input"]):
        return f"added tokens after {tokens} tokens of the base; this base has {len(base[PREFIX + 'input'])}"
    count = len(added[PREFIX + "input"]) if added[PREFIX + "input"].dim() else 0
    for name, rows in added.items():
        if rows.shape != (count, *base[name].shape[1:]) or not rows.is_floating_point() or not rows.isfinite().all():
            return f"{name!r} is {tuple(rows.shape)} of {rows.dtype}, expected {(count, *base[name].shape[1:])}, finite"
    return None


@torch.no_grad()
def put_added(model: PreTrainedModel, tokens: int, added: dict[str, Tensor]) -> dict[str, Any]:
    """Give a base the rows of added tokens after its own `tokens`, and more rows where it has too few.

    Returns what `put_back` needs.
    """
    before, end = len(token_rows(model)["input"]), tokens + len(added[PREFIX + "input"])
    old_rows = {name: rows[tokens:end].clone() for name, rows in token_rows(model).items()}
    if before < end:
        model.resize_token_embeddings(end, mean_resizing=False)
    for name, rows in token_rows(model).items():
        rows[tokens:end] = added[PREFIX + name].to(rows)
    return {"size": before, "from": tokens, "rows": old_rows}


@torch.no_grad()
def put_back(model: PreTrainedModel, before: dict[str, Any]) -> None:
    """Undo `put_added`."""
    if len(token_rows(model)["input"]) != before["size"]:
        model.resize_token_embeddings(before["size"], mean_resizing=False)
    for name, rows in token_rows(model).items():
        rows[before["from"] : before["from"] + len(before["rows"][name])] = before["rows"][name]


def load_added_rows(model: PreTrainedModel, state: dict[str, Tensor], *_: Any) -> None:
    """Pre-hook of `load_state_dict`: a Trainer that resumes gets the rows of added tokens back too."""
    added = {name: state.pop(f"{NAME}.{name}") for name in [*_saved(model)] if f"{NAME}.{name}" in state}
    with torch.no_grad():
        for name, rows in added.items():
            _saved(model)[name][-rows.shape[1] :] = rows[0].to(_saved(model)[name])


def _saved(model: PreTrainedModel) -> dict[str, Tensor]:
    return {PREFIX + name: rows for name, rows in token_rows(model).items()}
