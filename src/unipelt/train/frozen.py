"""Hidden states below the lowest change of a mixture: computed once for each example, in evaluation mode, and kept.

Where nothing in the layers 0 to n - 1 is tuned, what enters layer n depends on the example alone. A forward of the training
loop then begins there: the layers below give what was kept. Dropout below layer n is off. Sets of examples are computed whole
and in one order, so that a training that is resumed reads the same bits.
"""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unipelt.errors import SiteError
from unipelt.inject.frozen import FrozenLayers, frozen_layers
from unipelt.inject.state import NAME, MixtureState, disabled
from unipelt.tasks.base import Task
from unipelt.tasks.batches import Encoded, Part, fill
from unipelt.train.forward import STATES, logits_of, longest_first, uses_bf16
from unipelt.train.runs import Plan

SHARE = 0.25  # of the free memory or disk that one set of examples may take
TOLERANCE = {False: 1e-4, True: 2e-2}  # of the largest logit; True: in bf16


@dataclass
class KeptStates:
    """The states of one set of examples."""

    encoded: Encoded
    """kept, so that its identity is taken by no other"""
    values: Float[Tensor, "tokens hidden"]
    """of all examples, one behind another"""
    starts: list[int]
    """where each example begins, and where the last one ends"""

    def rows(self, indices: Sequence[int], width: int) -> Float[Tensor, "example seq hidden"]:
        """The states of some examples, 0 where there is no token."""
        found = self.values.new_zeros(len(indices), width, self.values.shape[-1])
        for row, index in enumerate(indices):
            start, end = self.starts[index], self.starts[index + 1]
            found[row, : end - start] = self.values[start:end]
        return found


class StateCache:
    """Kept states of sets of examples, by base, number of layers, precision and set; shared by the fleets of a process."""

    def __init__(self, folder: Path | None = None):
        self.kept: dict[tuple, KeptStates] = {}
        self.folder = folder or Path(tempfile.gettempdir())
        self.warned = False

    def keep_only(self, wanted: set[tuple]) -> None:
        """Drop all sets but these."""
        self.kept = {key: states for key, states in self.kept.items() if key in wanted}

    def allocate(self, tokens: int, hidden: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """A tensor for the states of so many tokens, in memory or else in an unnamed file; None, with one warning, if neither
        has enough space."""
        size = tokens * hidden * dtype.itemsize
        if size <= SHARE * free_memory(device):
            return torch.empty(tokens, hidden, dtype=dtype, device=device)
        with suppress(OSError, RuntimeError):
            if size <= SHARE * shutil.disk_usage(self.folder).free:
                with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".unipelt-states.") as file:
                    if hasattr(os, "posix_fallocate"):  # or a disk that fills up later would end the process
                        os.posix_fallocate(file.fileno(), 0, max(1, size))
                    return torch.from_file(file.name, shared=True, size=tokens * hidden, dtype=dtype).view(
                        tokens, hidden
                    )
        if not self.warned:
            warnings.warn(
                f"hidden states of {size / 2**30:.1f} GiB fit neither into a quarter of the free memory nor of the disk of "
                f"{self.folder}: the layers below the lowest change are computed again in each step",
                stacklevel=2,
            )
        self.warned = True
        return None


class FrozenStates:
    """What a fleet's forwards begin with: states by example, computed when a set is first read."""

    def __init__(
        self, model: PreTrainedModel, layers: FrozenLayers, tokenizer: PreTrainedTokenizerBase, task: type[Task], precision: str,
        cache: StateCache | None = None, base: str = "",
    ):  # fmt: skip
        """base: what tells the base from others, of which the cache may hold states too."""
        self.model, self.layers, self.tokenizer, self.task = model, layers, tokenizer, task
        self.cache, self.precision = cache or StateCache(), precision
        self.device = next(model.parameters()).device
        self.name = base or str(id(model)), len(layers.layers), precision

    def forget_others(self, sets: Sequence[Encoded]) -> None:
        """Drop what a cache holds of other bases, and of other sets of examples than these."""
        self.cache.keep_only({(*self.name, id(encoded)) for encoded in sets})

    def states(
        self, parts: Sequence[Part], inputs: dict[str, Tensor], on_batch: Callable[[int], None] = lambda rows: None
    ) -> Float[Tensor, "batch seq hidden"]:
        """The states that enter the first tuned layer, for a batch made of these parts. on_batch: called with the number of examples
        of each forward that computes states."""
        filled, _ = fill(parts)
        found = []
        for part in filled:
            kept = self._kept(part.encoded, on_batch)
            if kept is None:
                return self._compute(inputs)
            found.append(kept.rows(part.indices, inputs["input_ids"].shape[1]))
        return torch.cat(found).to(self.device)

    @torch.no_grad()
    def _compute(self, inputs: dict[str, Tensor]) -> Float[Tensor, "batch seq hidden"]:
        training = self.model.training
        self.model.eval()
        with disabled(self.model), self.layers.stopped() as states:
            logits_of(self.model, inputs, self.precision)
        self.model.train(training)
        return states[0]

    def _kept(self, encoded: Encoded, on_batch: Callable[[int], None]) -> KeptStates | None:
        key = *self.name, id(encoded)
        if key in self.cache.kept:
            return self.cache.kept[key]
        lengths = encoded.lengths()
        values, starts = None, [0, *accumulate(lengths)]
        for batch in longest_first([lengths], self.device):
            parts = [Part(None, encoded, batch[0])]
            inputs, _ = self.task.evaluation_inputs(parts, self.tokenizer, self.device)
            states = self._compute(inputs)
            if values is None:
                values = self.cache.allocate(sum(lengths), states.shape[-1], states.dtype, self.device)
                if values is None:
                    return None
            for row, index in enumerate(batch[0]):
                values[starts[index] : starts[index] + lengths[index]] = states[row, : lengths[index]].to(values.device)
            on_batch(len(batch[0]))
        assert values is not None
        self.cache.kept[key] = KeptStates(encoded, values, starts)
        return self.cache.kept[key]

    @torch.no_grad()
    def agrees(self, encoded: Encoded, runs: int) -> bool:
        """Whether the logits of a few examples are the same with kept states; some layers have side effects that the states lack."""
        parts = [Part(None, encoded, [*range(min(2, len(encoded)))])] * runs
        inputs, _ = self.task.evaluation_inputs(parts, self.tokenizer, self.device)
        training = self.model.training
        self.model.eval()
        try:
            plain = logits_of(self.model, inputs, self.precision)
            states = self._compute(inputs)
            self._compute(
                {name: values.flip(0) for name, values in inputs.items()}
            )  # what a layer notes is of other rows
            kept = logits_of(self.model, {**inputs, STATES: states}, self.precision, self.layers)
        except (SiteError, RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return False
        finally:
            self.model.train(training)
        tolerance = TOLERANCE[uses_bf16(self.device, self.precision)]
        return bool((plain - kept).abs().max() <= tolerance * plain.abs().max())


def free_memory(device: torch.device) -> float:
    """Bytes that a device has free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


def find_frozen(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: Plan, cache: StateCache, base: str
) -> FrozenStates | None:
    """What the fleets of an attached model need not compute again; None where its lowest layer is tuned."""
    tuned = getattr(model, NAME, None)
    if not isinstance(tuned, MixtureState) or not (layers := frozen_layers(model)):
        return None
    found = FrozenStates(
        model, FrozenLayers(model, layers), tokenizer, type(plan.task), plan.recipe.precision, cache, base
    )
    return found if found.agrees(plan.train, tuned.runs) else None
