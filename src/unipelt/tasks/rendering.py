"""Render examples to tokens, and mark which tokens count in the loss.

An example is a chat (`messages`), a `prompt` with its completion, a `source` with its target, or a `text`. Its target is
the last answer. A tokenizer with a chat template renders the first three with it; without one they become
prompt + answer + eos. The model learns the answers of the assistant, each with the token that ends it, and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from unipelt.errors import DataError, UserError

Message = dict[str, str]
INPUTS = ("messages", "prompt", "source", "text")
ASSISTANT = "assistant"


@dataclass(frozen=True)
class Rendered:
    """One example as tokens."""

    tokens: list[int]
    """what a causal model reads, the answers included; of an encoder-decoder, the encoder's input"""
    learned: list[bool]
    """for each of `tokens`, or of `answer`, whether the loss counts it"""
    prompt: int
    """how many of `tokens` come before the last answer: what generation starts from"""
    answer: list[int] | None = None
    """an encoder-decoder's target; None for a causal model"""
    trimmed: bool = False
    """whether tokens before the answer were left out, so that the whole fits"""


class TooLong(DataError):
    """An example that is longer than allowed, whose answer would have to be cut."""


@dataclass(frozen=True)
class Renderer:
    """Renders examples for one tokenizer.

    max_length: most tokens of a whole example (of an encoder-decoder: of the source). max_target_length: most tokens of an
    answer. trim: leave out tokens before the answer where an example is too long; otherwise raise TooLong.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    max_target_length: int | None = None
    trim: bool = True
    encoder_decoder: bool = False

    @property
    def template(self) -> str | None:
        """The chat template that is used, if the tokenizer has one."""
        return None if self.encoder_decoder else self.tokenizer.chat_template

    @cached_property
    def special_ids(self) -> set[int]:
        """The tokenizer's special tokens."""
        return set(self.tokenizer.all_special_ids)

    @cached_property
    def bos(self) -> list[int]:
        """What the tokenizer puts before a text."""
        letter, encoded = self.tokenizer("a", add_special_tokens=False)["input_ids"], self.tokenizer("a")["input_ids"]
        return encoded[: next((n for n in range(len(encoded)) if encoded[n : n + len(letter)] == letter), 0)]

    @cached_property
    def line_break(self) -> list[int]:
        """The tokens between a source and its answer."""
        return self.tokenizer("\n", add_special_tokens=False)["input_ids"]

    @cached_property
    def stop(self) -> list[int]:
        """The tokens that end an answer: eos, and the one with which the chat template ends a turn."""
        ends = {self.tokenizer.eos_token_id} - {None}
        if self.template:
            question = [{"role": "user", "content": "a"}]
            start = len(self._chat_tokens(question, "the chat template", answer_follows=True))
            turn = self._chat_tokens([*question, {"role": ASSISTANT, "content": "b"}], "the chat template")[start:]
            ends |= set(turn[(end := self._end(turn)) - 1 : end]) & set(self.tokenizer.all_special_ids)
        if not ends:
            raise UserError("the tokenizer has no eos token and no template that ends a turn; set its eos_token")
        return sorted(ends)

    def render(self, kind: str, value: Any, target: str | None, name: str) -> Rendered:
        """The tokens of one example. kind: one of INPUTS. target: the last answer; None for an example to be answered.

        name: of the example in messages, such as `chat.jsonl, example 3`. Raises TooLong, DataError.
        """
        if self.encoder_decoder:
            rendered = self._encode_pair(kind, value, target, name)
        elif kind == "text":
            rendered = self._text(value, name)
        elif self.template:
            messages = value if kind == "messages" else [{"role": "user", "content": value}]
            rendered = self._chat(messages, target, name)
        elif kind == "messages":
            raise DataError(
                f"{name}: a chat, but the tokenizer has no chat template; take an instruction-tuned base such as smollm2"
            )
        else:
            rendered = self._plain(kind, value, target, name)
        if not any(rendered.learned) and (target is not None or kind == "text"):
            raise DataError(f"{name}: no token of it is learned; fill in its text or remove the example")
        return rendered

    # Chats

    def _chat(self, messages: Sequence[Message], target: str | None, name: str) -> Rendered:
        messages, trimmed = list(messages), False
        for message in messages if target is None else [*messages, {"role": ASSISTANT, "content": target}]:
            for special in self.tokenizer.all_special_tokens:
                if special in message["content"]:
                    raise DataError(f"{name}: holds {special!r}, which the chat template uses itself; remove it")
        while True:
            rendered = self._turns(messages, target, name, trimmed)
            excess = len(rendered.tokens) - self.max_length
            if excess <= 0:
                return rendered
            shorter = self._shortened(messages, excess) if self.trim else None
            if shorter is None:
                raise self._too_long(name, len(rendered.tokens))
            messages, trimmed = shorter, True

    def _turns(self, messages: list[Message], target: str | None, name: str, trimmed: bool) -> Rendered:
        """Render the chat, and mark each answer by rendering the chat up to it, with and without the answer."""
        chat = messages if target is None else [*messages, {"role": ASSISTANT, "content": target}]
        tokens = self._chat_tokens(chat, name, answer_follows=target is None)
        learned, prompt = [False] * len(tokens), len(tokens)
        for index, message in enumerate(chat):
            if message["role"] != ASSISTANT:
                continue
            before = self._chat_tokens(chat[:index], name, answer_follows=True)
            through = tokens if index == len(chat) - 1 else self._chat_tokens(chat[: index + 1], name)
            if tokens[: len(before)] != before or tokens[: len(through)] != through:
                raise DataError(
                    f"{name}: the tokens before an answer differ from those of the whole chat, so prompts "
                    "in training would differ from those in generation; use a chat template that does not change earlier turns"
                )
            end = len(before) + self._end(through[len(before) :])
            if set(through[len(before) : end]) <= self.special_ids:
                raise DataError(
                    f"{name}: the chat template leaves out an answer, so no token of it is learned; use another template"
                )
            learned[len(before) : end] = [True] * (end - len(before))
            if index == len(chat) - 1 and target is not None:
                tokens, learned, prompt = tokens[:end], learned[:end], len(before)  # cut after the last answer
        if target is not None:
            if tokens[-1] not in self.stop:
                tokens, learned = [*tokens, self._eos()], [*learned, True]
            self._check_answer(name, len(tokens) - prompt)
        return Rendered(tokens, learned, prompt, trimmed=trimmed)

    def _chat_tokens(self, messages: list[Message], name: str, *, answer_follows: bool = False) -> list[int]:
        """Rendered text, tokenised without special tokens: the template writes its own, bos included."""
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_follows)
        except Exception as error:  # jinja's own errors, and whatever the template raises
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise DataError(
                f"{name}: the tokenizer's chat template cannot render it ({reason}); change the example"
            ) from None
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _end(self, turn: list[int]) -> int:
        """How many tokens of an answer's turn are learned: up to the special token that ends it, all if there is none."""
        return next((index + 1 for index in reversed(range(len(turn))) if turn[index] in self.special_ids), len(turn))

    def _shortened(self, messages: list[Message], excess: int) -> list[Message] | None:
        """The chat without its oldest exchange; of a single exchange, with its longest question shortened.

        None if nothing is left.
        """
        users = [index for index, message in enumerate(messages) if message["role"] == "user"]
        if len(users) > 1:
            return [message for message in messages[: users[0]] if message["role"] == "system"] + messages[users[1] :]
        index = max(
            (index for index, message in enumerate(messages) if message["role"] != ASSISTANT),
            key=lambda index: len(messages[index]["content"]), default=None,
        )  # fmt: skip
        if index is None:
            return None
        tokens = self.tokenizer(messages[index]["content"], add_special_tokens=False)["input_ids"]
        content = str(self.tokenizer.decode(tokens[: max(0, len(tokens) - excess)]))
        content = content.rstrip("\ufffd")  # incomplete UTF-8 character
        if not content or len(content) >= len(messages[index]["content"]):
            return None
        return [*messages[:index], messages[index] | {"content": content}, *messages[index + 1 :]]

    # Without a template

    def _plain(self, kind: str, value: str, target: str | None, name: str) -> Rendered:
        """prompt + completion + eos, tokenised apart: so the prompt is the same when its completion is not known.

        A long prompt keeps its end, a long source its beginning. A line break follows a source.
        """
        bos, before = self._opening(value)
        line = self.line_break if kind == "source" else []
        answer = []
        if target is not None:
            answer = self.tokenizer(target, add_special_tokens=False)["input_ids"]
            answer += [self._eos()] if answer[-1:] != [self._eos()] else []
            self._check_answer(name, len(answer))
        most = self.max_length - len(bos) - len(line) - len(answer)
        trimmed = len(before) > most
        if trimmed and (not self.trim or most < 1):
            raise self._too_long(name, self.max_length - most + len(before))
        if trimmed:
            before = before[:most] if kind == "source" else before[-most:]
        prompt = [*bos, *before, *line]
        learned = [False] * len(prompt) + [True] * len(answer)
        learned[:1] = [False]  # no token before the first predicts it
        return Rendered(prompt + answer, learned, len(prompt), trimmed=trimmed)

    def _text(self, text: str, name: str) -> Rendered:
        """Plain language modelling: every token after bos is learned, eos at the end included."""
        bos, tokens = self._opening(text)
        sequence = [*bos, *tokens]
        sequence += [self._eos()] if sequence[-1:] != [self._eos()] else []
        if len(sequence) > self.max_length:
            if not self.trim:
                raise self._too_long(name, len(sequence))
            return Rendered(sequence[: self.max_length], [False, *[True] * (self.max_length - 1)], 1, trimmed=True)
        return Rendered(sequence, [False, *[True] * (len(sequence) - 1)], 1)

    def _opening(self, text: str) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before a text, such as bos, unless the text begins with it; and the text's tokens."""
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ([] if tokens[: len(self.bos)] == self.bos else self.bos), tokens

    # Encoder-decoders

    def _encode_pair(self, kind: str, value: str, target: str | None, name: str) -> Rendered:
        if kind in ("messages", "text"):
            raise DataError(f"{name}: {kind!r} needs a causal base; an encoder-decoder reads source and target")
        source = self.tokenizer(value)["input_ids"]
        trimmed = len(source) > self.max_length
        if trimmed and not self.trim:
            raise self._too_long(name, len(source))
        if trimmed:
            source = self.tokenizer(value, truncation=True, max_length=self.max_length)["input_ids"]
        answer = [] if target is None else self.tokenizer(text_target=target)["input_ids"]
        if target is not None:
            self._check_answer(name, len(answer))
        return Rendered(source, [True] * len(answer), len(source), answer, trimmed)

    # Refusals

    def _eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no eos token, so no answer would ever end; set its eos_token")
        return self.tokenizer.eos_token_id

    def _check_answer(self, name: str, tokens: int) -> None:
        if self.max_target_length is not None and tokens > self.max_target_length:
            raise TooLong(
                f"{name}: its answer has {tokens} tokens, more than --max-target-length {self.max_target_length}; "
                "allow more, or leave out such examples of the training set with --excess-length drop"
            )

    def _too_long(self, name: str, tokens: int) -> TooLong:
        return TooLong(
            f"{name}: {tokens} tokens, more than --max-length {self.max_length}, and an answer is never cut; allow more, or "
            "leave out such examples of the training set with --excess-length drop"
        )
