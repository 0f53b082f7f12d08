"""Soft prompts in front of a base's input: its embeddings, mask and positions grow by the prompt, its outputs do not.

The base runs on the longer input [P; E(x)], as if that had been given as `inputs_embeds`, so every layer, position and cache
treats the prompt as tokens. Padding on the left stays in front of the prompt, so it moves nothing. An encoder that a decoder
reads keeps the prompt in its output, to which the decoder attends.
"""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers.utils import ModelOutput

from unipelt import spec
from unipelt.errors import SiteError
from unipelt.inject.context import Context, ForwardState, argument, parameters_of
from unipelt.inject.hooks import BoundChange, module_of

HANDLED = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids")
"""arguments of a stack that have a value for each token, and get one for the prompt"""
PromptLengths = int | Int[Tensor, "batch 1"]
"""each row's own prompt length; a number where all have the same"""


class PromptedInput(NamedTuple):
    """An input with its prompt."""

    prompt_length: int
    full: int
    """length of both together"""
    columns: Int[Tensor, "batch seq"] | None
    """where each row's tokens are in it; None: after the prompt"""
    mask: Shaped[Tensor, "batch full"] | None

    def extend(self, mask: Shaped[Tensor, "batch seq"]) -> Shaped[Tensor, "batch full"]:
        """A mask of the input's tokens with 1 at the prompt."""
        if self.columns is None or self.mask is None:
            return F.pad(mask, (self.prompt_length, 0), value=1)
        return self.mask.to(mask.dtype).scatter(1, self.columns, mask)

    def of_tokens(self, value: Shaped[Tensor, "batch *_ full d"]) -> Shaped[Tensor, "batch *_ seq d"]:
        """The rows of the input's tokens, without those of the prompt."""
        if self.columns is None:
            return value[..., self.prompt_length :, :]
        columns = self.columns.view(len(value), *[1] * (value.dim() - 3), -1, 1)
        return value.gather(-2, columns.expand(*value.shape[:-2], -1, value.shape[-1]))


class BoundPrompt(BoundChange):
    """The vectors of one prompt, times its weight."""

    @property
    def length(self) -> int:
        return cast(spec.Prompt, self.change.form).length

    def vectors(self, context: Context, rows: int) -> Float[Tensor, "rows prompt d"]:
        vectors: Tensor = module_of(self.form, context)(context.route, rows)
        return (vectors if self.weight == 1 else vectors * self.weight).expand(rows, -1, -1)  # type: ignore[operator]


class PromptHook:
    """Stack pre-hook: puts each row's prompts, in tuple order, in front of all that has a value for each token.

    A row whose mixture has a shorter prompt, or none, is padded: before the prompt, or after its tokens if a decoder reads the
    stack, which then needs no position_ids.
    """

    def __init__(
        self, stack: nn.Module, forwards: ForwardState, changes: list[BoundPrompt], mixtures: int, read_by_decoder: bool
    ):
        """mixtures: how many are side by side; read_by_decoder: whether a decoder attends to the stack's output."""
        self.forwards, self.changes, self.read_by_decoder = forwards, changes, read_by_decoder
        self.names = parameters_of(stack)
        self.lengths = [sum(c.length for c in changes if c.mixture == mixture) for mixture in range(mixtures)]
        self.longest, self.alike = max(self.lengths), len(set(self.lengths)) == 1
        tables = [m for path, m in stack.named_modules() if path.endswith("position_embeddings")]
        padding = next((t.padding_idx for t in tables if getattr(t, "padding_idx", None) is not None), None)
        self.first = 0 if padding is None else int(padding) + 1  # type: ignore[call-overload]
        """first position number: 0, or padding_idx + 1 if the position table has a padding index (RoBERTa)"""
        self.counts_mask = any(
            "position" in path and "attention_mask" in parameters_of(m) for path, m in stack.named_modules()
        )
        """whether the base numbers positions by its mask"""
        if not (self.alike or read_by_decoder or "position_ids" in self.names):
            raise SiteError(
                f"prompts of {self.lengths} vectors side by side: {type(stack).__name__} takes no position_ids, so all rows of a "
                "batch need prompts of one length"
            )

    def enter(self, stack: Any, args: tuple, kwargs: dict[str, Any]):
        thread = self.forwards.thread
        thread.prompted_input = None
        arguments = dict(zip(self.names, args)) | kwargs
        ids, embedded = arguments.get("input_ids"), arguments.get("inputs_embeds")
        x = ids if embedded is None else embedded
        if thread.disabled or x is None:
            return None
        cache = arguments.get("past_key_values")
        if getattr(cache, "is_compileable", False):
            raise SiteError("a static cache cannot hold a prompt: expected the default cache of generate")
        past = 0 if cache is None else int(cache.get_seq_length())
        context = self.forwards.context(len(x), repeats=cache is not None).on(x.device)
        lengths = self.lengths_of_rows(context, x)
        mask = self._token_mask(arguments.get("attention_mask"), x, past)
        positions = self._positions(arguments.get("position_ids"), ids, mask, lengths, x, past)
        order = None if mask is None else self.order(mask, lengths)
        full_mask = None if mask is None else _ordered(self.in_front(mask, lengths), order)
        if not past:
            _refuse_unknown(arguments, x)
            _refuse_packed(arguments.get("position_ids"), arguments.get("attention_mask"))
            embedded = stack.get_input_embeddings()(ids) if embedded is None else embedded
            embedded = torch.cat([context.apply(self._vectors, embedded), embedded], dim=1)
            arguments |= {"input_ids": None, "inputs_embeds": _ordered(embedded, order)}
            if (types := arguments.get("token_type_ids")) is not None:
                arguments["token_type_ids"] = _ordered(F.pad(types.expand(len(x), -1), (self.longest, 0)), order)
            positions = positions if positions is None else _ordered(positions, order)
            columns = None if order is None else order.argsort(dim=1)[:, self.longest :]
            thread.prompted_input = PromptedInput(self.longest, embedded.shape[1], columns, full_mask)
        arguments["attention_mask"] = full_mask
        return (), arguments if positions is None else arguments | {"position_ids": positions}

    def lengths_of_rows(self, context: Context, x: Tensor) -> PromptLengths:
        if self.alike:
            return self.longest
        return context.apply(lambda part, x: torch.full((len(x), 1), self.lengths[part.mixture], device=x.device), x)

    def in_front(self, mask: Shaped[Tensor, "batch seq"], lengths: PromptLengths) -> Shaped[Tensor, "batch _"]:
        """The mask with the prompt's columns."""
        front = torch.arange(self.longest, device=mask.device) >= self.longest - lengths
        return torch.cat([front.to(mask.dtype).expand(len(mask), -1), mask], dim=1)

    def order(self, mask: Shaped[Tensor, "batch seq"], lengths: PromptLengths) -> Int[Tensor, "batch full"]:
        """For each column of the longer input, the column of [P; x] that stands there: padding on the left comes first."""
        longest, length = self.longest, mask.shape[1]
        padding = _left_padding(mask)
        prompt_size = lengths if self.read_by_decoder else longest
        column = torch.arange(longest + length, device=mask.device).expand(len(mask), -1)
        prompt_or_token = torch.where(column < padding + prompt_size, column - padding, column) + longest - prompt_size
        after = torch.where(column < prompt_size + length, prompt_or_token, column - prompt_size - length)
        return torch.where(column < padding, longest + column, after)

    def mask_of_source(
        self, states: Float[Tensor, "batch source d"], mask: Shaped[Tensor, "batch _"] | None
    ) -> Shaped[Tensor, "batch source"] | None:
        """The mask of an encoder's output with the prompt; None: as it was given, or for an output without a prompt."""
        context = self.forwards.context(len(states), repeats=True).on(states.device)
        lengths, full = self.lengths_of_rows(context, states), states.shape[1]
        if mask is None and not self.alike:
            mask = torch.ones(len(states), full - self.longest, dtype=torch.long, device=states.device)
        if mask is None or mask.dim() != 2 or mask.shape[1] + self.longest != full:
            return None
        return _ordered(self.in_front(mask, lengths), self.order(mask, lengths))

    def _vectors(self, context: Context, embedded: Tensor) -> Float[Tensor, "rows longest d"]:
        vectors = [c.vectors(context, len(embedded)).to(embedded) for c in self.changes if c.takes_part(context)]
        missing = self.longest - self.lengths[context.mixture]
        padding = embedded.new_zeros(len(embedded), missing, embedded.shape[-1])
        return torch.cat([padding, *vectors] if missing else vectors, dim=1)

    def _token_mask(self, mask: Any, x: Tensor, past: int) -> Shaped[Tensor, "batch _"] | None:
        """The mask of all tokens so far, without the prompt; None: all are real."""
        token_count = past - self.longest + x.shape[1] if past else x.shape[1]
        if mask is None and not self.alike:
            mask = torch.ones(len(x), token_count, dtype=torch.long, device=x.device)
        if mask is None:
            return None
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise SiteError(
                f"attention_mask {shape}: with a prompt, expected a mask [batch, seq] with 1 for each token and 0 for padding"
            )
        if past and mask.shape[1] != token_count:
            raise SiteError(
                f"a mask of {mask.shape[1]} tokens, {x.shape[1]} of them new, for a cache of {past}, {self.longest} of them the "
                f"prompt's: expected a mask of {token_count}; generation that goes on with an earlier call's cache, or "
                "cuts it (assisted generation, prefill_chunk_size), cannot be combined with a prompt"
            )
        return mask

    def _positions(
        self, positions: Tensor | None, ids: Tensor | None, mask: Tensor | None, lengths: PromptLengths, x: Tensor,
        past: int,
    ) -> Int[Tensor, "*_ seq"] | None:  # fmt: skip
        """Positions of the prompt and after it; None: those that the base counts by itself are right."""
        (batch, length), longest, first = x.shape[:2], self.longest, self.first
        if positions is None and self.first and ids is not None and not past:
            real = ids.ne(self.first - 1).long()
            positions = real.cumsum(dim=1) * real + self.first - 1
        counted = self.alike or self.counts_mask or "position_ids" not in self.names
        if positions is None and mask is not None and not counted:
            first = _left_padding(mask)  # type: ignore[assignment]  # columns are positions, those of padding too
            start = past - longest if past else 0
            positions = torch.arange(start, start + length, device=x.device).expand(batch, -1)
        if positions is None:
            return None
        after = positions.expand(*positions.shape[:-2], batch, -1) + lengths
        if past:
            return after
        front = first + (torch.arange(longest, device=x.device) - longest + lengths).clamp(min=0)
        return torch.cat([front.expand(*after.shape[:-1], -1), after], dim=-1)


def _left_padding(mask: Shaped[Tensor, "batch seq"]) -> Int[Tensor, "batch 1"]:
    """Tokens of padding before each row's first real one."""
    return (mask.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)


def _ordered(value: Shaped[Tensor, "*_ full"] | Float[Tensor, "batch full d"], order: Int[Tensor, "batch full"] | None):
    """Each row's columns in another order."""
    if order is None:
        return value
    if value.is_floating_point() and value.dim() == 3:
        return value.gather(1, order[..., None].expand_as(value))
    return value.gather(-1, order.expand_as(value))


class PromptOutput:
    """Forward hooks: outputs have the length of the input, without the prompt."""

    def __init__(self, front: PromptHook):
        self.front, self.forwards = front, front.forwards

    def after(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Forward hook of the stack, the model, or what holds the layers, before a pooler reads the first token: cut the prompt."""
        longer = self.forwards.thread.prompted_input
        return None if longer is None else _without(output, longer)

    def after_model(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook of an encoder-decoder: cut the prompt off the encoder's outputs, if this call ran the encoder."""
        thread, names = self.forwards.thread, parameters_of(model)
        runs_encoder = any(argument(names, args, kwargs, name) is not None for name in ("input_ids", "inputs_embeds"))
        if thread.prompted_input is None or not runs_encoder or not isinstance(output, ModelOutput):
            return None
        values = {n: _without(v, thread.prompted_input) if n.startswith("encoder_") else v for n, v in output.items()}
        return type(output)(**values)

    def before_decoder(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]):
        """Pre-hook: the decoder's mask of the encoder's output covers the prompt too."""
        arguments = dict(zip(parameters_of(decoder), args)) | kwargs
        states = arguments.get("encoder_hidden_states")
        if self.forwards.thread.disabled or states is None:
            return None
        mask = self.front.mask_of_source(states, arguments.get("encoder_attention_mask"))
        return None if mask is None else ((), arguments | {"encoder_attention_mask": mask})


def _without(value: Any, longer: PromptedInput) -> Any:
    """Hidden states `[batch, full, d]` and attention weights `[batch, head, full, key]` without the prompt's rows."""
    if isinstance(value, ModelOutput):
        return type(value)(**{name: _without(inner, longer) for name, inner in value.items()})
    if isinstance(value, tuple | list):
        return type(value)(_without(inner, longer) for inner in value)
    if isinstance(value, Tensor) and value.dim() in (3, 4) and value.shape[-2] == longer.full:
        return longer.of_tokens(value)
    return value


def _refuse_packed(positions: Any, mask: Any) -> None:
    if mask is None and isinstance(positions, Tensor) and positions.dim() == 2 and bool((positions.diff() <= 0).any()):
        raise SiteError(
            "position_ids that start again in a row: a prompt would stand before the first of its packed sequences only; "
            "unpack them, or use a prefix in place of the prompt"
        )


def _refuse_unknown(arguments: dict[str, Any], x: Tensor) -> None:
    for name, value in arguments.items():
        if name not in HANDLED and isinstance(value, Tensor) and value.shape[:2] == x.shape[:2] and x.shape[1] > 1:
            raise SiteError(
                f"{name} has a value for each token and none for a prompt: leave it out, or use a prefix in place of the prompt"
            )
