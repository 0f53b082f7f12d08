"""What a language model does beside a forward: logits at chosen positions alone, and text written for rows of any run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from unipelt.inject.attention import prefixes_computed_once
from unipelt.inject.state import NAME, prompt, route
from unipelt.tasks.batches import IGNORED
from unipelt.tasks.settings import GenerationSettings

ROWS = 32  # prompts answered at once


@contextmanager
def at_positions(model: PreTrainedModel, positions: Int[Tensor, "row position"]) -> Iterator[None]:
    """Inside the block a forward returns logits of these positions of each row alone, `[row, position, vocabulary]`.

    The output embedding, the largest product of a small model, reads only them; what comes after it, such as a softcap,
    is elementwise and stays right.
    """

    def select(module: Any, args: tuple) -> tuple:
        hidden, *rest = args
        index = positions.to(hidden.device)[..., None].expand(-1, -1, hidden.shape[-1])
        return (hidden.gather(1, index), *rest)

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def token_losses(
    logits: Float[Tensor, "row position vocabulary"], targets: Int[Tensor, "row position"], smoothing: float = 0.0
) -> Float[Tensor, "row position"]:
    """−(1−ε) log p(target) − ε/V Σᵥ log p(v), 0 where the target is IGNORED.          Szegedy et al. 2016"""
    return F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED, label_smoothing=smoothing
    ).view(targets.shape)


def write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Sequence[int]]], how: GenerationSettings, *,
    stop: Sequence[int], opening: Sequence[int] = (), gate_prompt_lengths: Sequence[Sequence[int]] = (),
    on_batch: Callable[[], None] = lambda: None,
) -> list[list[str]]:  # fmt: skip
    """An answer to each prompt of each run, in their order; batches hold prompts of like length, of any run.

    prompts: per run, tokens. stop: tokens that end an answer. opening: what an encoder-decoder's answers begin with.
    gate_prompt_lengths: of each prompt, how many of its tokens gates with pool='prompt' average over; not given: all.
    """
    answers = [[""] * len(run_prompts) for run_prompts in prompts]
    attached, config = hasattr(model, NAME), _config(tokenizer, how, stop, opening)
    generate: Any = model.generate
    with torch.no_grad(), prefixes_computed_once(model.eval()):
        for number, (batch, blocks) in enumerate(_batches(prompts)):
            inputs = _padded(model, tokenizer, [prompts[run][index] for run, index in batch], opening)
            routed = nullcontext() if blocks or not attached else route(model, [run for run, _ in batch])
            known: AbstractContextManager = nullcontext()
            if gate_prompt_lengths and not opening and attached:
                counts = torch.tensor([[gate_prompt_lengths[run][index]] for run, index in batch], device=model.device)
                real = inputs["attention_mask"]
                known = prompt(model, real * (real.cumsum(dim=1) <= counts))
            with routed, known, torch.random.fork_rng(enabled=how.temperature > 0), _with_config(model, config):
                if how.temperature:
                    torch.manual_seed(how.seed + number)
                written = generate(**inputs)
            before = len(opening) if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
            texts = tokenizer.batch_decode(written[:, before:], skip_special_tokens=True)
            for (run, index), text in zip(batch, texts):
                answers[run][index] = text.strip()
            on_batch()
    return answers


def _batches(prompts: Sequence[Sequence[Sequence[int]]]) -> Iterator[tuple[list[tuple[int, int]], bool]]:
    """(run, index) of the prompts of each batch, long ones first; and whether they lie in equal blocks, one per run.

    Equal blocks need no copy of each row's weights. They are made where every run has as many prompts.
    """
    orders = [sorted(range(len(run_prompts)), key=lambda index: -len(run_prompts[index])) for run_prompts in prompts]
    if len(set(map(len, orders))) == 1:
        each = max(1, ROWS // len(orders))
        for start in range(0, len(orders[0]), each):
            yield [(run, index) for run, order in enumerate(orders) for index in order[start : start + each]], True
        return
    rows = [(run, index) for run, order in enumerate(orders) for index in order]
    rows.sort(key=lambda row: -len(prompts[row[0]][row[1]]))
    for start in range(0, len(rows), ROWS):
        yield rows[start : start + ROWS], False


@contextmanager
def _with_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Inside the block none of the base's own settings for generation counts."""
    before, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = before


def _config(
    tokenizer: PreTrainedTokenizerBase, how: GenerationSettings, stop: Sequence[int], opening: Sequence[int]
) -> GenerationConfig:
    """The same settings for transformers."""
    options = {name: value for name, value in asdict(how).items() if name not in ("seed", "temperature", "top_p")}
    drawn = {"do_sample": how.temperature > 0, "top_k": 0, "top_p": how.top_p, "temperature": how.temperature or 1.0}
    return GenerationConfig(
        **options, **(drawn if how.temperature else {"do_sample": False}), early_stopping=how.num_beams > 1,
        eos_token_id=list(stop), pad_token_id=_pad(tokenizer, stop), decoder_start_token_id=opening[0] if opening else None,
    )  # fmt: skip


def _padded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], opening: Sequence[int]
) -> dict[str, Int[Tensor, "row seq"]]:
    """Prompts with padding: before those of a causal model, whose answers follow; masked whatever token it is."""
    side = "right" if model.config.is_encoder_decoder else "left"
    rows = [torch.tensor(tokens) for tokens in prompts]
    padded = partial(pad_sequence, batch_first=True, padding_side=side)
    inputs = {
        "input_ids": padded(rows, padding_value=_pad(tokenizer, (0,))),
        "attention_mask": padded([torch.ones_like(row) for row in rows]),
    }
    if opening:
        inputs["decoder_input_ids"] = torch.tensor([list(opening)] * len(prompts))
    return {name: value.to(model.device) for name, value in inputs.items()}


def _pad(tokenizer: PreTrainedTokenizerBase, stop: Sequence[int]) -> int:
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, *stop) if token is not None), 0)
