"""An attached model compiled in place: batches are padded to a few lengths, and outputs are cut back.

Gates ignore padding, so compiled and eager outputs are equal, and few graphs are needed. Calls that cannot be padded exactly
run uncompiled: a cache, packed sequences, `inputs_embeds`, attention weights, hidden states of every layer, positions of an
answer. So do calls while other hooks are registered, such as those of `record_gates`: compiled code would not call them.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from unipelt import spec
from unipelt.errors import SiteError, SpecError, did_you_mean
from unipelt.inject.context import checkpointable, parameters_of, uses_gradient_checkpointing
from unipelt.inject.shapes import bucket, most_tokens
from unipelt.inject.state import attached_state

PADDING: dict[str, int | None] = {
    "input_ids": None, "decoder_input_ids": None, "attention_mask": 0, "decoder_attention_mask": 0, "token_type_ids": 0,
    "position_ids": 0, "labels": -100,
}  # fmt: skip
"""padding value of each argument `[batch, seq]`; None: the base's padding token"""
UNPADDED_INPUTS = ("pixel_values", "num_items_in_batch")
FIXED_OPTIONS = {"use_cache": False, "output_attentions": False, "output_hidden_states": False, "return_dict": True}
"""options of a compiled call; a call with another value runs uncompiled"""
UNSLICED_OUTPUTS = ("loss", "pooler_output")
SEQUENCE_OUTPUTS = ("logits", "start_logits", "end_logits", "last_hidden_state")
"""outputs `[batch, seq, …]`; the logits of a classifier have no such dimension, and keep their shape"""
MAX_GRAPHS = 256  # dynamo's own limit counts the shapes of one module, of which there are few here, in four modes
PaddedLengths = dict[str, tuple[int, int]]
"""(length, padded length) of the encoder's or only sequence, key "", and of the decoder's, key "decoder"; none of images"""


def compile(model: PreTrainedModel, *, lengths: Sequence[int] = (), backend: str | Callable = "inductor"):
    """Compile an attached model in place, forward and backward. It stays the same PreTrainedModel.

    Sequences are padded to the next of `lengths` (default: 16, 24, 32, 48, 64, 96, …). A graph is compiled when a length and
    batch size first occur. If compilation fails, one warning says so and the model runs uncompiled. On a GPU inductor's graphs
    are CUDA graphs. detach, merge and fix_gates remove the compiled code.

    Raises SiteError if nothing is attached, or if the model is already compiled. Raises SpecError for invalid lengths, a
    backend that torch does not know, and gates with pool='reference' or 'prompt'.
    """
    if model._compiled_call_impl is not None:
        raise SiteError("the model is already compiled; call unipelt.detach or use the compiled model")
    if not all(isinstance(length, int) and length > 0 for length in lengths):
        raise SpecError(f"lengths={lengths!r}: expected whole numbers from 1, such as (32, 64, 128)")
    weights = [change.change.weight for change in attached_state(model).all_changes()]
    pools = {weight.pool for weight in weights if isinstance(weight, spec.Gate)}
    if "reference" in pools:
        raise SpecError(
            "Gate(pool='reference') averages over padding, which compile adds: call model.compile() instead"
        )
    if "prompt" in pools:
        raise SpecError(
            "Gate(pool='prompt') asks which tokens are the prompt, which compiled code does not see: expected pool='token'"
        )
    if isinstance(backend, str) and backend not in (known := torch.compiler.list_backends(exclude_tags=())):
        raise SpecError(f"backend={backend!r}: {did_you_mean(backend, known)}")
    model._compiled_call_impl = Compiled(model, sorted(lengths), backend)
    return model


def uncompile(model: nn.Module) -> None:
    """Remove the compiled code of `compile`, if there is any."""
    if isinstance(model._compiled_call_impl, Compiled):
        model._compiled_call_impl = None


def refuse_compiled(model: nn.Module) -> None:
    """Raise SiteError for a model that torch.compile has compiled in place; `compile` checks for new hooks at each call, and is allowed."""
    for path, module in model.named_modules():
        if not isinstance(getattr(module, "_compiled_call_impl", None), Compiled | None):
            subject = f"its {path!r} is" if path else "the model is"
            raise SiteError(
                f"{subject} compiled in place, and compiled code ignores new hooks: "
                "attach or detach before model.compile()"
            )


class Compiled:
    """The compiled call of a model, kept in `_compiled_call_impl` as nn.Module.compile does; copies of the model lack it."""

    def __init__(self, model: PreTrainedModel, lengths: list[int], backend: str | Callable):
        from torch._dynamo import config, exc  # imported here because the import is slow

        self.dynamo_config, self.compile_error = config, exc.TorchDynamoException
        self.model, self.lengths, self.works = model, lengths, True
        self.max_positions = most_tokens(model, sys.maxsize)
        self.names = parameters_of(model)
        self.on_gpu = next(model.parameters()).device.type == "cuda"
        mode: dict[str, Any] = {"mode": "reduce-overhead"} if self.on_gpu and backend == "inductor" else {}
        call = model._call_impl
        # compile a wrapper: dynamo skips torch's own frames, and hooks on the model itself are called there
        self.compiled = torch.compile(lambda **kwargs: call(**kwargs), backend=backend, dynamic=False, **mode)
        self.checkpointable = checkpointable(model)
        self.hook_dicts = [hooks for m in model.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self.hook_count = self._count_hooks()
        self.problem_type_set = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = {n: v for n, v in {**dict(zip(self.names, args)), **kwargs}.items() if v is not None}
        lengths = self._lengths(arguments) if self.works and self._compiles(arguments) else None
        if lengths is None:
            return self._call_uncompiled(*args, **kwargs)
        thread = attached_state(self.model).forwards.thread
        thread.compiled = thread.switches  # those of this task of an event loop
        why, output = "", ModelOutput()
        try:
            with self.dynamo_config.patch(recompile_limit=MAX_GRAPHS):
                output = self.compiled(**self._padded(arguments, lengths))
        except self.compile_error as error:
            why = " ".join(str(error).split("\n")[:2])
        else:
            unknown = [name for name in output if _stem(name) not in UNSLICED_OUTPUTS + SEQUENCE_OUTPUTS]
            why = f"unknown outputs: {', '.join(sorted(unknown))}" if unknown else ""
        if not why:
            return self._cut(output, lengths)
        self.works = False
        warnings.warn(f"{type(self.model).__name__} runs uncompiled: {why}", stacklevel=3)
        return self._call_uncompiled(*args, **kwargs)

    def _call_uncompiled(self, *args: Any, **kwargs: Any) -> Any:
        hook_count = self._count_hooks()
        output = self.model._call_impl(*args, **kwargs)
        if hook_count == self.hook_count:  # hooks that the base registered in this call are its own
            self.hook_count = self._count_hooks()
        return output

    def _count_hooks(self) -> int:
        return sum(map(len, self.hook_dicts))

    def _compiles(self, arguments: dict[str, Any]) -> bool:
        """Whether compiled code computes all that this call asks for."""
        config, thread = self.model.config, attached_state(self.model).forwards.thread
        if any(arguments.get(name, value) != value for name, value in FIXED_OPTIONS.items()):
            return False
        if config.output_attentions or config.output_hidden_states or not config.return_dict:
            return False
        if self._count_hooks() != self.hook_count or uses_gradient_checkpointing(self.checkpointable):
            return False
        if "labels" in arguments and config.problem_type is None and not self.problem_type_set:
            self.problem_type_set = True  # the model sets it in its first call, which would cause a recompilation
            return False
        return not (thread.disabled or thread.dropped)

    def _lengths(self, arguments: dict[str, Any]) -> PaddedLengths | None:
        """The lengths of a call's sequences; None where it cannot be padded exactly."""
        tensors = {name: value for name, value in arguments.items() if name not in FIXED_OPTIONS}
        known = {*PADDING, *UNPADDED_INPUTS}
        if not all(isinstance(value, Tensor) and name in known for name, value in tensors.items()):
            return None
        if "pixel_values" in arguments:
            return None if "input_ids" in arguments else {}
        side_lengths: dict[str, int] = {}
        for name, value in tensors.items():
            if _is_sequence(name, value) and (
                value.dim() != 2 or side_lengths.setdefault(self._side(name), value.shape[1]) != value.shape[1]
            ):
                return None
        counted = "position_ids" in arguments and "attention_mask" not in arguments  # packed sequences
        if "input_ids" not in arguments or counted or self.model.config.pad_token_id is None:
            return None
        if self.model.config.is_encoder_decoder:
            side_lengths.setdefault("decoder", side_lengths[""])
        lengths = {side: (length, self._bucket(length)) for side, length in side_lengths.items()}
        return lengths if all(padded for _, padded in lengths.values()) else None

    def _bucket(self, length: int) -> int:
        """The padded length; 0 if there is none."""
        padded = next((limit for limit in self.lengths if limit >= length), 0) if self.lengths else bucket(length)
        return min(padded, self.max_positions) if length <= self.max_positions else 0

    def _side(self, name: str) -> str:
        """Which lengths an argument or an output has."""
        of_decoder = name == "labels" or name.startswith("decoder_") or name in SEQUENCE_OUTPUTS
        return "decoder" if of_decoder and self.model.config.is_encoder_decoder else ""

    def _padded(self, arguments: dict[str, Any], lengths: PaddedLengths) -> dict[str, Any]:
        padded = arguments | {name: value for name, value in FIXED_OPTIONS.items() if name in self.names}
        if lengths:
            padded.setdefault("attention_mask", torch.ones_like(arguments["input_ids"]))
        for name, value in padded.items():
            if _is_sequence(name, value):
                (length, padded_length), filling = lengths[self._side(name)], PADDING[name]
                filling = self.model.config.pad_token_id if filling is None else filling
                padded[name] = F.pad(value, (0, padded_length - length), value=filling)
        return padded

    def _cut(self, output: ModelOutput, lengths: PaddedLengths) -> ModelOutput:
        cut = {}
        for name, value in output.items():
            classes = name == "logits" and value.dim() == 2
            if lengths and _stem(name) in SEQUENCE_OUTPUTS and not classes:
                value = value[:, : lengths["" if name.startswith("encoder_") else self._side(name)][0]]
            cut[name] = value.clone() if self.on_gpu else value  # the next replay of the CUDA graph overwrites it
        return type(output)(**cut)


def _stem(name: str) -> str:
    return name.removeprefix("encoder_").removeprefix("decoder_")


def _is_sequence(name: str, value: Any) -> bool:
    """Whether an argument has a value for each token: labels may be a class, a number, or a set of classes, of a whole text."""
    return name in PADDING and not (name == "labels" and (value.dim() != 2 or value.is_floating_point()))
