"""Logits and gate values of examples, for all runs of a model in one pass over batches of similar length."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unipelt.forms.gate import GroupGate
from unipelt.inject.attention import prefixes_computed_once
from unipelt.inject.record import gate_location, record_gates
from unipelt.inject.state import MixtureState, attached_state
from unipelt.tasks.base import Task
from unipelt.tasks.batches import Encoded, Part
from unipelt.train.forward import STATES, logits_of, longest_first
from unipelt.train.frozen import FrozenStates


@torch.no_grad()
def predict(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: list[Encoded], on_batch: Callable[[int], None] = lambda rows: None,
    gates: list[dict[str, Tensor]] | None = None, precision: str = "auto", task: type[Task] = Task,
    frozen: FrozenStates | None = None,
) -> list[Tensor]:  # fmt: skip
    """Logits `[example, …]` of every run for its own examples, in their order; batches of like length, longest first.

    frozen: what the layers below the lowest change give, which are then not computed. gates: one dictionary for each run, which
    gets each gate's value for each row, `[rows]`, by the location of the change that it weighs, as text. A gate with a value for
    each token is averaged over the row's tokens.
    """
    model.eval()
    layers = None if frozen is None else frozen.layers
    device = next(model.parameters()).device
    results: list[dict[str, Tensor]] = [{} for _ in data]
    with prefixes_computed_once(model):
        for batch in longest_first([encoded.lengths() for encoded in data], device):
            parts = [Part(None, encoded, indices) for encoded, indices in zip(data, batch)]
            inputs, kept_of = task.evaluation_inputs(parts, tokenizer, device)
            if frozen is not None:
                inputs[STATES] = frozen.states(parts, inputs, on_batch)
            with nullcontext() if gates is None else record_gates(model) as recorded:
                said = {"": kept_of(logits_of(model, inputs, precision, layers)).cpu()}
            if recorded is not None:
                said |= _by_row(model, recorded, inputs)
            for name, values in said.items():
                for run, (part, mine) in enumerate(zip(parts, values.unflatten(0, (len(data), -1)))):
                    if name not in results[run]:
                        results[run][name] = mine.new_zeros(len(part.encoded), *mine.shape[1:])
                    kept = results[run][name]
                    widths = [slice(width) for width in mine.shape[1:]]  # the first batch has the longest sequences
                    kept[(torch.tensor(part.indices), *widths)] = mine[: len(part.indices)]  # type: ignore[index]
            on_batch(sum(len(part.indices) for part in parts))
    logits = [result.pop("") for result in results]
    for mine, result in zip(gates or (), results):
        mine.update(result)
    return logits


def _by_row(model: PreTrainedModel, recorded: dict[str, list[Tensor]], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """One value per gated change and row, `[batch]`, by the change's location."""
    tuned, said = attached_state(model).active(), {}
    assert isinstance(tuned, MixtureState), "the runs of one mixture are evaluated at once"
    for path, (value, *_) in recorded.items():
        decoder = gate_location(tuned, path, 0).stack == "decoder"
        mask = inputs.get("decoder_attention_mask" if decoder else "attention_mask", inputs["attention_mask"])
        central = isinstance(tuned.get_submodule(path), GroupGate)
        value = value.float() if central else value.float()[..., None]
        if value.dim() == 3:
            real = mask.float()[..., None]
            value = (value * real).sum(dim=1) / real.sum(dim=1)
        for member in range(value.shape[-1]):
            said[str(gate_location(tuned, path, member))] = value[:, member].cpu()
    return said
