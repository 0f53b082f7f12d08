"""An attached model compiled in place: batches of any length are padded to a few lengths, and what comes out is cut back.

Padding has no vote in our gates, so that compiled is equal to eager, and few graphs are made. What cannot be padded exactly
takes the plain path: a cache, packed sequences, `inputs_embeds`, attention weights, hidden states of every layer, positions
of an answer; and so does a model that other hooks watch, such as those of `record_gates`: compiled code would not call them.
"""

import inspect
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
from unipelt.inject.context import checkpoints
from unipelt.inject.shapes import bucket, most_tokens
from unipelt.inject.state import attached_state

PADDING = {"attention_mask": 0, "token_type_ids": 0, "position_ids": 0, "labels": -100, "decoder_attention_mask": 0}
"""what an argument `[batch, seq]` is filled with; ids with the base's own padding"""
IDS = ("input_ids", "decoder_input_ids")
AS_THEY_ARE = ("pixel_values", "num_items_in_batch")
UNSAID = {"use_cache": False, "output_attentions": False, "output_hidden_states": False, "return_dict": True}
"""options that a compiled call has anyway; any other value of them is for the plain path"""
WHOLE = ("loss", "pooler_output")
ALONG = ("logits", "start_logits", "end_logits", "last_hidden_state")
"""outputs `[batch, seq, …]`; the logits of a classifier have no such dimension, and keep their shape"""
GRAPHS = 256  # dynamo's own limit counts the shapes of one module, of which there are few here, in four modes


def compile(model: PreTrainedModel, *, lengths: Sequence[int] = (), backend: str | Callable = "inductor"):
    """Compile an attached model in place, forward and backward; it stays the PreTrainedModel it is.

    Sequences are padded to the next of `lengths`, none given: to 16, 24, 32, 48, 64, 96, …, and a graph is made for each
    length and number of rows when it is first met. Where nothing compiles, a warning says so once and the model runs as
    it is. On a GPU inductor's graphs are CUDA graphs. detach, merge and fix_gates take the compiled code away.

    Raises SiteError where nothing is attached, or the model is compiled already, SpecError for lengths that are none, for a
    backend that torch does not know, and for a gate that averages over padding.
    """
    changes = [change for part in attached_state(model).parts for change in part.mixture.changes]
    if model._compiled_call_impl is not None:
        raise SiteError("the model is compiled already; expected one that is not")
    if not all(isinstance(length, int) and length > 0 for length in lengths):
        raise SpecError(f"lengths={lengths!r}: expected whole numbers from 1, such as (32, 64, 128)")
    if any(isinstance(change.weight, spec.Gate) and change.weight.pool == "reference" for change in changes):
        raise SpecError(
            "Gate(pool='reference') averages over padding, which compile adds: call model.compile() instead"
        )
    if any(isinstance(change.weight, spec.Gate) and change.weight.pool == "prompt" for change in changes):
        raise SpecError(
            "Gate(pool='prompt') asks which tokens are the prompt, which compiled code does not see: expected pool='token'"
        )
    if isinstance(backend, str) and backend not in (known := torch.compiler.list_backends(exclude_tags=())):
        raise SpecError(f"backend={backend!r}: {did_you_mean(backend, known)}")
    model._compiled_call_impl = Compiled(model, sorted(lengths), backend)
    return model


def uncompile(model: nn.Module) -> None:
    """The model runs as it is again, where `compile` has compiled it."""
    if isinstance(model._compiled_call_impl, Compiled):
        model._compiled_call_impl = None


def refuse_compiled(model: nn.Module) -> None:
    """Raise SiteError for a model that torch.compile has compiled in place. Ours looks at each call whether hooks came or went."""
    for path, module in model.named_modules():
        if not isinstance(getattr(module, "_compiled_call_impl", None), Compiled | None):
            what = f"its {path!r} is" if path else "the model is"
            raise SiteError(
                f"{what} compiled in place, and compiled code ignores new hooks: attach or detach before model.compile()"
            )


class Compiled:
    """What a compiled model's call is: nn.Module keeps it in the place that its own `compile` has, and copies without it."""

    def __init__(self, model: PreTrainedModel, lengths: list[int], backend: str | Callable):
        from torch._dynamo import config, exc  # who does not compile does not wait for its import

        self.limits, self.failure = config, exc.TorchDynamoException
        self.model, self.lengths, self.works = model, lengths, True
        self.most = most_tokens(model, sys.maxsize)
        self.names = [name for name in inspect.signature(type(model).forward).parameters if name != "self"]
        self.on_gpu = next(model.parameters()).device.type == "cuda"
        mode: dict[str, Any] = {"mode": "reduce-overhead"} if self.on_gpu and backend == "inductor" else {}
        call = model._call_impl
        # a function of ours: dynamo does not look into torch's own frame, and what hangs at the model itself hangs there
        self.compiled = torch.compile(lambda **given: call(**given), backend=backend, dynamic=False, **mode)
        self.watchers = [hooks for m in model.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self.watched = self._watching()
        self.decided = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = {n: v for n, v in {**dict(zip(self.names, args)), **kwargs}.items() if v is not None}
        lengths = self._lengths(given) if self.works else None
        if lengths is None:
            return self._plainly(*args, **kwargs)
        try:
            with self.limits.patch(recompile_limit=GRAPHS):
                output = self.compiled(**self._padded(given, lengths))
        except self.failure as error:
            self._give_up(" ".join(str(error).split("\n")[:2]))
            return self._plainly(*args, **kwargs)
        unknown = {
            name for name in output if name.removeprefix("encoder_").removeprefix("decoder_") not in WHOLE + ALONG
        }
        if unknown:
            self._give_up(f"it gives {', '.join(sorted(unknown))}, of which nothing is known")
            return self._plainly(*args, **kwargs)
        return self._cut(output, lengths)

    def _plainly(self, *args: Any, **kwargs: Any) -> Any:
        watched = self._watching()
        output = self.model._call_impl(*args, **kwargs)
        if watched == self.watched:  # hooks that the base itself has registered meanwhile watch nothing in other calls
            self.watched = self._watching()
        return output

    def _watching(self) -> int:
        return sum(map(len, self.watchers))

    def _give_up(self, why: str) -> None:
        self.works = False
        warnings.warn(f"{type(self.model).__name__} runs as it is, it cannot be compiled here: {why}", stacklevel=4)

    def _lengths(self, given: dict[str, Any]) -> dict[str, tuple[int, int]] | None:
        """Of the encoder's or only sequence, "", and the decoder's: (its length, the one that it is padded to).

        None where the plain path is to be taken.
        """
        config, ids, mask = self.model.config, given.get("input_ids"), given.get("attention_mask")
        if not all(_is_known(name, value) for name, value in given.items()):
            return None
        if config.output_attentions or config.output_hidden_states or not config.return_dict:
            return None
        thread = attached_state(self.model).forwards.thread
        if self._watching() != self.watched or checkpoints(self.model) or thread.off or thread.dropped:
            return None
        if "labels" in given and config.problem_type is None and not self.decided:
            self.decided = True  # by the model, which writes into its config: compiled code would be made twice
            return None
        if "pixel_values" in given:
            return {} if ids is None else None
        if ids is None or ids.dim() != 2 or config.pad_token_id is None or ("position_ids" in given and mask is None):
            return None
        found = {"": ids.shape[1]}
        if config.is_encoder_decoder:
            labels, inner = given.get("labels"), given.get("decoder_input_ids")
            inner = labels if inner is None and labels is not None and labels.dim() == 2 else inner
            found["decoder"] = found[""] if inner is None else inner.shape[-1]
        lengths = {side: (length, self._bucket(length)) for side, length in found.items()}
        sequences = {n: v for n, v in given.items() if n in (*PADDING, *IDS) and not _is_whole_row_label(n, v)}
        if any(v.dim() != 2 or v.shape[1] != lengths[self._side(name)][0] for name, v in sequences.items()):
            return None
        return lengths if all(padded for _, padded in lengths.values()) else None

    def _bucket(self, length: int) -> int:
        """0 where there is none."""
        padded = next((one for one in self.lengths if one >= length), 0) if self.lengths else bucket(length)
        return min(padded, self.most) if length <= self.most else 0

    def _side(self, name: str) -> str:
        inner = name == "labels" or name.startswith("decoder_") or name in ALONG
        return "decoder" if inner and self.model.config.is_encoder_decoder else ""

    def _padded(self, given: dict[str, Any], lengths: dict[str, tuple[int, int]]) -> dict[str, Any]:
        padded = {name: value for name, value in given.items() if name not in UNSAID}
        padded |= {name: value for name, value in UNSAID.items() if name in self.names}
        if lengths and "attention_mask" not in padded:
            padded["attention_mask"] = torch.ones_like(given["input_ids"])
        for name, value in padded.items():
            if name in (*PADDING, *IDS) and not _is_whole_row_label(name, value):
                length, wanted = lengths[self._side(name)]
                filling = PADDING.get(name, self.model.config.pad_token_id)
                padded[name] = F.pad(value, (0, wanted - length), value=filling)
        return padded

    def _cut(self, output: ModelOutput, lengths: dict[str, tuple[int, int]]) -> ModelOutput:
        cut = {}
        for name, value in output.items():
            length, padded = lengths.get("" if name.startswith("encoder_") else self._side(name), (0, 0))
            classes = name == "logits" and value.dim() == 2
            along = name.removeprefix("encoder_").removeprefix("decoder_") in ALONG and length < padded and not classes
            value = value[:, :length] if along else value
            cut[name] = value.clone() if self.on_gpu else value  # a CUDA graph writes there again when it runs again
        return type(output)(**cut)


def _is_whole_row_label(name: str, value: Tensor) -> bool:
    """A class, or a number, or a set of classes for the whole row."""
    return name == "labels" and (value.dim() != 2 or value.is_floating_point())


def _is_known(name: str, value: Any) -> bool:
    if name in UNSAID:
        return value == UNSAID[name]
    return isinstance(value, Tensor) and name in (*PADDING, *IDS, *AS_THEY_ARE)
