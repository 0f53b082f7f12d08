"""What one optimizer step of a fleet reads, as a flat dictionary of tensors: one forward, or several whose gradients add up."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unipelt.tasks.base import Task
from unipelt.tasks.batches import Batch, Part

INPUT = "input "  # before the names of what the model itself reads
SCORED = ("targets", "weights", "outputs")  # what the loss reads


def step_inputs(
    task: type[Task], parts: Sequence[Sequence[Part]], tokenizer: Any, device: torch.device,
    further: Callable[[Sequence[Part], dict[str, Tensor]], dict[str, Tensor]] = lambda parts, inputs: {},
) -> dict[str, Tensor]:  # fmt: skip
    """The tensors of a step's forwards. parts: each run's, one for each of its forwards. further: what a forward reads
    besides, from its parts and inputs.

    Those of a second forward are called `1 input …`, and so on. `share` is what a run's mean loss of one forward counts in
    its mean over the step: its examples, or answer tokens, divided by the step's. A run that has fewer forwards than others
    takes part in the rest with weight 0.
    """
    batches = []
    for number in range(max(map(len, parts))):
        chosen = [(own[number:] or own)[0] for own in parts]
        batch = task.collate(chosen, tokenizer, device)
        batch.inputs.update(further(chosen, batch.inputs))
        if number:  # every run has a first forward
            idle = torch.tensor([number >= len(own) for own in parts], device=device)
            batch = batch._replace(weights=batch.weights.masked_fill(idle[:, None], 0.0))
        batches.append(batch)
    shares: list[Tensor | None] = [None]
    if len(batches) > 1:
        counts = torch.stack([task.count(batch) for batch in batches]).to(batches[0].weights.dtype)
        shares = [own / counts.sum(dim=0).clamp(min=1) for own in counts]
    found: dict[str, Tensor] = {}
    for number, (batch, share) in enumerate(zip(batches, shares)):
        said = {INPUT + name: value for name, value in batch.inputs.items()}
        said |= {name: getattr(batch, name) for name in SCORED}
        if share is not None:
            said["share"] = share
        found |= {f"{number} {name}" if number else name: value for name, value in said.items()}
    return found


def forwards(step: dict[str, Tensor], smoothing: float) -> Iterator[tuple[Batch, Float[Tensor, " run"] | None]]:
    """Each forward's batch, and its share of the step's loss; None where it is the only one."""
    for number in range(sum(name.endswith("targets") for name in step)):
        which = f"{number} " if number else ""
        start = which + INPUT
        inputs = {name.removeprefix(start): value for name, value in step.items() if name.startswith(start)}
        targets, weights, outputs = (step[which + name] for name in SCORED)
        yield Batch(inputs, targets, weights, outputs, smoothing), step.get(which + "share")
