"""Hidden states below the lowest change of a mixture: computed once for each example, in evaluation mode, and kept.

Where nothing in the layers 0 to n - 1 is tuned, what enters layer n depends on the example alone. A forward of the training
loop then begins there: the layers below give what was kept. Dropout below layer n is off. Sets that share examples, as the folds
of a cross-validation do, are one group, which has each example once. A group is computed whole and in one order, so that a
training that is resumed reads the same bits.
"""

import hashlib
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
from unipelt.train.forward import STATES, evaluating, logits_of, longest_first, uses_bf16
from unipelt.train.runs import Plan

SHARE = 0.25  # of the free memory or disk that one set of examples may take
MIN_OVERLAP = 0.1  # fraction of the smaller of two sets that is also in the other, for both to be one group
TOLERANCE = {False: 1e-4, True: 2e-2}  # of the largest logit; True: in bf16


@dataclass
class Group:
    """Sets that share examples, and each of their examples once."""

    sets: list[tuple[Encoded, list[bytes]]]
    """each with the tokens of its examples"""
    examples: dict[bytes, tuple[Encoded, int]]
    """by its tokens: a set that has it, and its index there"""

    def join(self, other: "Group") -> "Group":
        """Both as one; the examples of this one come first."""
        further = {tokens: example for tokens, example in other.examples.items() if tokens not in self.examples}
        return Group([*self.sets, *other.sets], self.examples | further)


def group_sets(sets: Sequence[Encoded]) -> list[Group]:
    """Put sets of examples of which a tenth is the same into one group."""
    groups: list[Group] = []
    for encoded in sets:
        tokens = [tokens_of(encoded, index) for index in range(len(encoded))]
        merged, apart = Group([(encoded, tokens)], {}), []
        for index, example in enumerate(tokens):
            merged.examples.setdefault(example, (encoded, index))
        for group in groups:
            shared = len(group.examples.keys() & merged.examples.keys())
            if shared >= MIN_OVERLAP * min(len(group.examples), len(merged.examples)):
                merged = group.join(merged)
            else:
                apart.append(group)
        groups = [*apart, merged]
    return groups


def tokens_of(encoded: Encoded, index: int) -> bytes:
    """What the model reads of one example."""
    return b"".join(values[index].tobytes() for values in encoded.features.values())


@dataclass
class KeptStates:
    """The states of one group of examples."""

    values: Float[Tensor, "tokens hidden"]
    """of all examples, one after another"""
    starts: list[int]
    """where each example begins, and where the last one ends"""

    def padded(self, indices: Sequence[int], length: int) -> Float[Tensor, "example seq hidden"]:
        """The states of some examples of the group, 0 where there is no token."""
        states = self.values.new_zeros(len(indices), length, self.values.shape[-1])
        for row, index in enumerate(indices):
            start, end = self.starts[index], self.starts[index + 1]
            states[row, : end - start] = self.values[start:end]
        return states


class StateCache:
    """Kept states of the last fleet's groups of examples; the next fleet of the process that reads the same groups on the same base uses
    them again."""

    def __init__(self, folder: Path | None = None):
        self.states: dict[tuple, KeptStates] = {}
        self.folder = folder or Path(tempfile.gettempdir())
        self.warned = False

    def keep_only(self, keys: set[tuple]) -> None:
        """Drop all groups but these."""
        self.states = {key: states for key, states in self.states.items() if key in keys}

    def allocate(self, tokens: int, hidden: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """A tensor for the states of this many tokens, in memory or else in an unnamed file; None, with one warning, if neither
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
    """What a fleet's forwards begin with: states by example, computed for a whole group when one of its examples is first read."""

    def __init__(
        self, model: PreTrainedModel, layers: FrozenLayers, tokenizer: PreTrainedTokenizerBase, task_type: type[Task],
        precision: str, sets: Sequence[Encoded], cache: StateCache, base_fingerprint: str,
    ):  # fmt: skip
        """sets: all that will be read; whatever else the cache holds is dropped. base_fingerprint: of its weights."""
        self.model, self.layers, self.tokenizer, self.task_type = model, layers, tokenizer, task_type
        self.cache, self.precision = cache, precision
        self.device = next(model.parameters()).device
        self.groups: dict[tuple, Group] = {}
        self.no_space: set[tuple] = set()
        """keys of the groups that are computed again in each step"""
        self.group_of: dict[int, tuple[tuple, list[int]]] = {}
        """by identity of a set: the key of its group, and the index of each of its examples there"""
        for group in group_sets([*{id(encoded): encoded for encoded in sets}.values()]):
            key = base_fingerprint, len(layers.layers), precision, hashlib.sha256(b"".join(group.examples)).digest()
            self.groups[key] = group
            index_of = {tokens: index for index, tokens in enumerate(group.examples)}
            for encoded, example_tokens in group.sets:
                self.group_of[id(encoded)] = key, [index_of[tokens] for tokens in example_tokens]
        cache.keep_only({*self.groups})

    def states(
        self, parts: Sequence[Part], inputs: dict[str, Tensor], on_batch: Callable[[], None] = lambda: None
    ) -> Float[Tensor, "batch seq hidden"]:
        """The states that enter the first tuned layer, for a batch made of these parts.

        on_batch: called after each forward that computes states of a whole group.
        """
        filled, _ = fill(parts)
        part_states = []
        for part in filled:
            key, index_of = self.group_of.get(id(part.encoded), ((), []))
            states = self._group_states(key, on_batch) if key else None
            if states is None:  # no space for them, or examples that are none of the plans', as in a trial
                return self._compute(inputs)
            part_states.append(states.padded([index_of[index] for index in part.indices], inputs["input_ids"].shape[1]))
        return torch.cat(part_states).to(self.device)

    @torch.no_grad()
    def _compute(self, inputs: dict[str, Tensor]) -> Float[Tensor, "batch seq hidden"]:
        with evaluating(self.model), disabled(self.model), self.layers.stopped() as states:
            logits_of(self.model, inputs, self.precision)
        return states[0]

    def _group_states(self, key: tuple, on_batch: Callable[[], None]) -> KeptStates | None:
        if key in self.cache.states or key in self.no_space:
            return self.cache.states.get(key)
        examples = [*self.groups[key].examples.values()]
        lengths = [len(encoded.features["input_ids"][index]) for encoded, index in examples]
        values, starts = None, [0, *accumulate(lengths)]
        for (batch,) in longest_first([lengths], self.device):
            parts = [Part(None, encoded, [index]) for encoded, index in (examples[of_group] for of_group in batch)]
            inputs, _ = self.task_type.evaluation_inputs(parts, self.tokenizer, self.device)
            states = self._compute(inputs)
            if values is None:
                values = self.cache.allocate(sum(lengths), states.shape[-1], states.dtype, self.device)
                if values is None:
                    self.no_space.add(key)
                    return None
            for row, index in enumerate(batch):
                values[starts[index] : starts[index] + lengths[index]] = states[row, : lengths[index]].to(values.device)
            on_batch()
        assert values is not None
        self.cache.states[key] = KeptStates(values, starts)
        return self.cache.states[key]

    @torch.no_grad()
    def matches_full_forward(self, encoded: Encoded, runs: int) -> bool:
        """Whether the logits of a few examples are the same with kept states; some layers have side effects that the states lack."""
        parts = [Part(None, encoded, [*range(min(2, len(encoded)))])] * runs
        inputs, _ = self.task_type.evaluation_inputs(parts, self.tokenizer, self.device)
        try:
            with evaluating(self.model):
                full_logits = logits_of(self.model, inputs, self.precision)
                states = self._compute(inputs)
                others = {name: values.flip(0) for name, values in inputs.items()}
                self._compute(others)  # so that nothing a layer remembers is of these inputs
                kept_logits = logits_of(self.model, {**inputs, STATES: states}, self.precision, self.layers)
        except (SiteError, RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return False
        tolerance = TOLERANCE[uses_bf16(self.device, self.precision)]
        return bool((full_logits - kept_logits).abs().max() <= tolerance * full_logits.abs().max())


def free_memory(device: torch.device) -> float:
    """Bytes that a device has free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


def reusable_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plans: Sequence[Plan], cache: StateCache, base: str
) -> FrozenStates | None:
    """The hidden states that a fleet with these plans need not compute again. base: fingerprint of its weights.

    None if nothing is attached (full fine-tuning), if no layer lies below the lowest change, or if logits with kept states differ.
    """
    attached = getattr(model, NAME, None)
    if not isinstance(attached, MixtureState) or not (layers := frozen_layers(model)):
        return None
    first = plans[0]
    sets = [encoded for plan in plans for encoded in (plan.train, plan.validation, plan.test) if encoded]
    states = FrozenStates(
        model, FrozenLayers(model, layers), tokenizer, type(first.task), first.recipe.precision, sets, cache, base
    )
    return states if states.matches_full_forward(first.train, attached.runs) else None
