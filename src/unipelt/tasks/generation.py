"""Generated text: answers in chats, completions of prompts, targets of sources, or plain language modelling."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unipelt.data import Columns, Examples, Table
from unipelt.data.chats import read_chat
from unipelt.data.columns import ANSWERED, CHATS
from unipelt.data.tables import TRANSLATION
from unipelt.errors import DataError, UserError
from unipelt.inject.shapes import most_tokens
from unipelt.tasks.base import Task
from unipelt.tasks.batches import (
    IGNORED,
    POSITIONS,
    PROMPT,
    Batch,
    Encoded,
    Part,
    model_inputs,
    token_weights,
    weighted_mean,
)
from unipelt.tasks.language_model import token_losses, write
from unipelt.tasks.metrics import METRICS
from unipelt.tasks.rendering import Rendered, Renderer, TooLong
from unipelt.tasks.settings import GenerationSettings
from unipelt.tasks.text_metrics import TEXT_METRICS

EXCESS = ("trim-prompt", "drop", "error")
UNLIMITED = 10**9
OF_TOKENS = ("loss", "perplexity")


@dataclass(frozen=True, kw_only=True)
class Generation(Task):
    """Text per example; targets are the last answers. The loss counts the tokens of answers alone."""

    kind: ClassVar[str] = "generation"
    pooled: ClassVar[bool] = False
    trains_head: ClassVar[bool] = False
    default_max_length: ClassVar[int] = 512
    generates_text: ClassVar[bool] = True
    input_kind: str = "source"
    """kind of the examples: messages, prompt, source or text"""
    max_target_length: int | None = None
    """largest number of tokens of an answer"""
    excess_length: str = "trim-prompt"
    """what happens to an example that is too long: trim-prompt, drop or error"""
    generation_options: dict[str, Any] = field(default_factory=dict)
    """options of generation: fields of GenerationSettings"""
    template: str | None = None
    """chat template of training and generation"""
    stop: tuple[int, ...] = ()
    """tokens that end an answer"""
    opening: tuple[int, ...] = ()
    """tokens that an encoder-decoder's answers begin with; none: the base is causal"""
    positions: int | None = None
    """tokens that the base can read; None: any number"""

    def __post_init__(self) -> None:
        for name in ("stop", "opening"):  # lists in a checkpoint
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.excess_length not in EXCESS:
            raise DataError(f"--excess-length {self.excess_length}: expected one of {', '.join(EXCESS)}")

    @classmethod
    def matches(cls, table: Table, columns: Columns, separator: str | None) -> bool:
        names = columns.text.casefold(), (columns.label or columns.text).casefold()
        translated = all(name.startswith(f"{TRANSLATION}.") for name in names)
        return names in ANSWERED or translated or names[0] == names[1] in CHATS

    @classmethod
    def metrics(cls, labels: Sequence[str]) -> tuple[str, ...]:
        return *OF_TOKENS, *TEXT_METRICS, "exact_match"

    @classmethod
    def from_table(cls, name: str, table: Table, columns: Columns, **options: Any) -> Self:
        task = super().from_table(name, table, columns, **options)
        chats = any(isinstance(cell, list) for cell in table.columns[columns.text])
        named = "prompt" if columns.text.casefold() == "prompt" else "source"
        alone = "messages" if chats or columns.text.casefold() in CHATS else "text"
        return replace(task, input_kind=alone if columns.label == columns.text else named)

    @classmethod
    def required_columns(cls, columns: Columns) -> tuple[str | None, ...]:
        return columns.text, columns.label

    def inputs(self, table: Table, columns: Columns, indices: Sequence[int]) -> dict[str, list]:
        if self.input_kind != "messages":
            return {self.input_kind: table.texts(columns.text, indices)}
        cells, answered = table.columns[columns.text], columns.label is not None
        return {"messages": [read_chat(cells[i], table.example(i), answered=answered)[0] for i in indices]}

    def targets(self, table: Table, column: str, indices: Sequence[int]) -> list:
        if self.input_kind == "text":
            return [None for _ in indices]
        if self.input_kind == "messages":
            return [read_chat(table.columns[column][i], table.example(i))[1] for i in indices]
        return table.texts(column, indices)

    @property
    def outputs(self) -> int:
        return 1

    @property
    def settings(self) -> GenerationSettings:
        """Settings of generation: the options that are given, and defaults."""
        most = self.max_target_length or GenerationSettings.max_new_tokens
        return GenerationSettings(**{"max_new_tokens": most, **self.generation_options})

    @property
    def selects_by_text(self) -> bool:
        """Whether the metric that selects checkpoints needs generated text."""
        return self.metric not in OF_TOKENS

    def with_options(self, options: dict[str, Any]) -> Task:
        task_fields = {name: value for name, value in options.items() if name in ("max_target_length", "excess_length")}
        generation = {name: value for name, value in options.items() if name not in task_fields}
        changed = replace(self, **task_fields, generation_options=self.generation_options | generation)
        _ = changed.settings  # refuses settings that are out of range
        return changed

    def load(
        self, base: str, *, outputs: int | None = None, seed: int = 0
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A causal or encoder-decoder language model and its tokenizer. Raises UserError for another kind of base."""
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

        from unipelt.checkpoint.bases import from_hub, load_both

        config = from_hub(base, AutoConfig.from_pretrained)
        for auto in (AutoModelForSeq2SeqLM, AutoModelForCausalLM):
            encoder = type(config) in AutoModelForMaskedLM._model_mapping and not config.is_decoder
            if auto is AutoModelForCausalLM and encoder:
                break
            if type(config) in auto._model_mapping and config.is_encoder_decoder == (auto is AutoModelForSeq2SeqLM):
                model, tokenizer = load_both(base, auto=auto.__name__, outputs=None, problem_type=None, seed=seed)
                self._set_template(model, tokenizer)
                return model, tokenizer
        raise UserError(
            f"--model {base}: {config.model_type} cannot generate text; use a causal or encoder-decoder base such as smollm2"
        )

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "Generation":
        """The task with what it takes from the base: its chat template, and how its answers begin and end."""
        opening: tuple[int, ...] = ()
        if model.config.is_encoder_decoder:
            labels = tokenizer(text_target="a")["input_ids"]
            first = model.prepare_decoder_input_ids_from_labels(labels=torch.tensor([labels]))[0, 0].item()  # type: ignore[operator]
            text = next(i for i, token in enumerate(labels) if token not in tokenizer.all_special_ids)
            opening = (first, *labels[:text])
        task = replace(self, opening=opening)
        renderer = task.renderer(tokenizer, UNLIMITED)
        most = None if opening else most_tokens(model, UNLIMITED)
        positions = None if most == UNLIMITED else most
        task = replace(task, template=renderer.template, stop=tuple(renderer.stop), positions=positions)
        task._set_template(model, tokenizer)
        return task

    def _set_template(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Leave the chat template and the tokens that end an answer with the base, so that exports have them too."""
        if self.template is not None:
            tokenizer.chat_template = self.template
        if self.stop:
            model.generation_config.eos_token_id = list(self.stop)

    @property
    def hash(self) -> str:
        """sha256 of the chat template, its first digits; empty where there is none."""
        return hashlib.sha256(self.template.encode()).hexdigest()[:16] if self.template else ""

    def renderer(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Renderer:
        """The renderer that turns examples into tokens, with the chat template of training."""
        if self.template is not None:
            tokenizer.chat_template = self.template
        trim = self.excess_length == "trim-prompt"
        return Renderer(tokenizer, max_length, self.max_target_length, trim, encoder_decoder=bool(self.opening))

    def encode(self, tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int) -> Encoded:
        """Tokens of each example, and which of them are learned. Raises DataError with the example's line."""
        renderer = self.renderer(tokenizer, max_length)
        indices: list[int] = []
        rows: list[Rendered] = []
        prompts: list[Rendered] = []
        limit = max_length if self.positions is None else min(max_length, self.positions - self.settings.max_new_tokens)
        if limit < 1:
            raise DataError(
                f"--max-new-tokens {self.settings.max_new_tokens}: the base reads at most {self.positions} tokens; expected fewer than that"
            )
        prompt_renderer = replace(renderer, max_length=limit, trim=True)
        values, targets = next(iter(examples.inputs.values())), examples.targets or [None] * len(examples)
        for index, (value, target) in enumerate(zip(values, targets)):
            try:
                row = renderer.render(self.input_kind, value, target, examples.name_of(index))
                question = row
                if row.trimmed or row.prompt > limit:  # an answer that is not known takes no tokens from the prompt
                    question = prompt_renderer.render(self.input_kind, value, None, examples.name_of(index))
                rows.append(row)
                prompts.append(question)
                indices.append(index)
            except TooLong:
                if self.excess_length != "drop" or examples.targets is None:
                    raise
        if not rows:
            raise DataError(f"{self.name}: every example is longer than --max-length {max_length}; allow more")
        tokens = [np.array(row.tokens, dtype=np.int32) for row in rows]
        learned = [np.flatnonzero(row.learned) for row in rows]
        causal = not self.opening
        features = {"input_ids": tokens, "attention_mask": [np.ones_like(ids) for ids in tokens]}
        if causal:
            firsts = [int(positions[0]) if len(positions) else row.prompt for positions, row in zip(learned, rows)]
            features[PROMPT] = [(np.arange(len(ids)) < n).astype(np.int32) for ids, n in zip(tokens, firsts)]
        return Encoded(
            features,
            targets=None if examples.targets is None else [targets[index] for index in indices],
            longest=max_length,
            positions=[
                positions - causal for positions in learned
            ],  # a causal model predicts a token at the position before it
            answers=[
                ids[positions] if causal else np.array(row.answer) for ids, positions, row in zip(tokens, learned, rows)
            ],
            prompts=[rendered.tokens[: rendered.prompt] for rendered in prompts],
            gate_prompt_lengths=[[*rendered.learned[: rendered.prompt], True].index(True) for rendered in prompts],
            decoder_start=None if causal else self.opening[0],
        )

    @classmethod
    def collate(cls, parts: Sequence[Part], tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Batch:
        inputs, filled, weights = model_inputs(parts, tokenizer, device)
        rows = [(part.encoded.answers[i], part.encoded.positions[i]) for part in filled for i in part.indices]
        start = parts[0].encoded.decoder_start
        width = max(1, *(len(answer) for answer, _ in rows))
        targets, positions = np.full((len(rows), width), IGNORED), np.zeros((len(rows), width), dtype=np.int64)
        for row, (answer, answer_positions) in enumerate(rows):
            targets[row, : len(answer)], positions[row, : len(answer_positions)] = answer, answer_positions
        if start is not None:
            shifted = np.concatenate([np.full((len(rows), 1), start), targets[:, :-1]], axis=1)
            ids = np.where(shifted == IGNORED, tokenizer.pad_token_id or 0, shifted)
            inputs["decoder_input_ids"] = torch.from_numpy(ids)
            real = targets != IGNORED
            real[:, 0] = True  # the start token, also where no answer is known
            inputs["decoder_attention_mask"] = torch.from_numpy(real.astype(np.int64))
        else:
            inputs[POSITIONS] = torch.from_numpy(positions)
        inputs = {name: value.to(device) for name, value in inputs.items()}
        outputs = torch.ones(len(parts), dtype=torch.int64, device=device)
        blocks = torch.from_numpy(targets).view(*weights.shape, -1)
        return Batch(inputs, blocks.to(device), weights, outputs)

    @staticmethod
    def loss(logits: Float[Tensor, "run block answer vocabulary"], batch: Batch) -> Float[Tensor, " run"]:
        """Mean over all learned tokens of a run's own examples."""
        each = token_losses(logits.flatten(0, 1), batch.targets.flatten(0, 1), batch.smoothing).view_as(batch.targets)
        return weighted_mean(each, token_weights(batch))

    @staticmethod
    def count(batch: Batch) -> Float[Tensor, " run"]:
        return token_weights(batch).sum(dim=(1, 2))

    @classmethod
    def evaluation_inputs(
        cls, parts: Sequence[Part], tokenizer: PreTrainedTokenizerBase, device: torch.device
    ) -> tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]:
        """Model inputs, and a function that reduces logits to (summed loss, number of tokens) per example, `[run*block, 2]`."""
        batch = cls.collate(parts, tokenizer, device)
        targets = batch.targets.flatten(0, 1)

        def losses(logits: Float[Tensor, "run*block answer vocabulary"]) -> Float[Tensor, "run*block 2"]:
            each = token_losses(logits, targets).sum(dim=1)
            return torch.stack([each, (targets != IGNORED).sum(dim=1).to(each.dtype)], dim=1)

        return batch.inputs, losses

    def decide(self, logits: Float[Tensor, "example 2"], encoded: Encoded) -> list[tuple[float, int]]:
        return [(total, int(count)) for total, count in logits.double().tolist()]

    def average(self, run_logits: Sequence[Float[Tensor, "example 2"]]) -> Float[Tensor, "example 2"]:
        raise DataError("--ensemble: texts cannot be averaged; leave --ensemble out and train one run")

    def generate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoded_by_run: Sequence[Encoded],
        on_batch: Callable[[], None] = lambda: None,
    ) -> list[list[str]]:  # fmt: skip
        """The text that each run generates for each of its own examples."""
        return write(
            model, tokenizer, [encoded.prompts for encoded in encoded_by_run], self.settings, stop=self.stop,
            opening=self.opening, gate_prompt_lengths=[encoded.gate_prompt_lengths for encoded in encoded_by_run],
            on_batch=on_batch,
        )  # fmt: skip

    def score(self, predictions: Sequence[Any], targets: Sequence[Any]) -> dict[str, float]:
        """Loss and perplexity from summed losses, or the other metrics from generated texts."""
        texts = isinstance(predictions[0], str)
        names = [name for name in self.metrics(()) if texts != (name in OF_TOKENS)]
        if not texts:
            predictions, targets = self.to_record(list(predictions), list(targets))
        return {name: METRICS[name](predictions, targets) for name in names}

    def to_record(self, predictions: list, targets: list) -> tuple[list, list]:
        """The sum of each example's losses, and the number of its tokens."""
        sums, counts = zip(*predictions)
        return list(sums), list(counts)
