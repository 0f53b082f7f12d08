"""Logits at chosen positions, and text written for rows of any run in one batch."""

import pytest
import tiny
import torch
from generation.toy_text import tokenizer
from laws.lawbook import GENERATORS, attached

import unipelt
from unipelt.errors import UserError
from unipelt.tasks.language_model import ROWS, _config, at_positions, token_losses, write
from unipelt.tasks.settings import GenerationSettings

RUNS = 8


@pytest.mark.parametrize("arch", GENERATORS)
def test_chosen_logits_and_their_gradients_are_those_of_all_positions(arch: str):
    model = attached(arch, "unipelt-apl", top="generator").eval()
    given = tiny.inputs(arch, model)
    width = given.get("decoder_input_ids", given["input_ids"]).shape[1]
    positions = torch.randint(width, (3, 4), generator=torch.Generator().manual_seed(0))
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = []
    for chosen in (False, True):
        if chosen:
            with at_positions(model, positions):
                logits = model(**given).logits
        else:
            logits = model(**given).logits[torch.arange(3)[:, None], positions]
        gradients = torch.autograd.grad(logits.square().sum(), parameters, allow_unused=True)
        found.append([logits, *(g for g in gradients if g is not None)])
    assert found[1][0].shape == (3, 4, tiny.VOCABULARY)
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs)
    assert model(**given).logits.shape[1] == width  # afterwards all are computed again


def test_token_losses_are_cross_entropy_with_smoothing_and_nothing_where_ignored():
    logits = torch.randn(2, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, 6, -100], [0, -100, 3]])
    scores = logits.log_softmax(dim=-1)
    for smoothing in (0.0, 0.1):
        expected = [
            0.0 if t < 0 else -(1 - smoothing) * s[t] - smoothing * s.mean()
            for s, t in zip(scores.flatten(0, 1), targets.flatten())
        ]
        ours = token_losses(logits, targets, smoothing)
        torch.testing.assert_close(ours.flatten(), torch.tensor(expected, dtype=torch.float64))


def prompts(runs: int, each: int, longest: int = 9) -> list[list[list[int]]]:
    draw = torch.Generator().manual_seed(0)
    return [
        [
            torch.randint(tiny.SPECIAL, tiny.VOCABULARY, (int(torch.randint(1, longest, (), generator=draw)),), generator=draw).tolist()
            for _ in range(each)
        ]
        for _ in range(runs)
    ]  # fmt: skip


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"no_repeat_ngram_size": 2}], ids=str)
@pytest.mark.parametrize("arch", ["llama", "gpt2", "bart", "t5"])
def test_rows_of_many_runs_in_one_batch_are_answered_as_one_by_one(arch: str, how: dict):
    model = attached(arch, "unipelt-apl", top="generator", runs=RUNS, attn="sdpa", dtype=torch.float32)
    given, writing, words = prompts(RUNS, 1), GenerationSettings(max_new_tokens=6, min_new_tokens=6, **how), tokenizer()
    start = [model.config.decoder_start_token_id] if model.config.is_encoder_decoder else []
    together = write(model, words, given, writing, stop=[2], opening=start)
    alone = []
    for run in range(RUNS):
        with unipelt.route(model, [run]):
            alone.append(write(model, words, [given[run]], writing, stop=[2], opening=start)[0])
    assert together == alone
    assert len({texts[0] for texts in together}) > RUNS // 4  # runs differ


def test_runs_with_different_numbers_of_prompts_are_answered_as_one_by_one():
    model = attached("llama", "unipelt-apl", top="generator", runs=3, dtype=torch.float32)
    given, writing = [prompts(1, 40)[0], prompts(1, 2)[0], prompts(1, 7)[0]], GenerationSettings(max_new_tokens=4)
    together = write(model, tokenizer(), given, writing, stop=[2])
    for run in range(3):
        with unipelt.route(model, [run]):
            assert together[run] == [write(model, tokenizer(), [[one]], writing, stop=[2])[0][0] for one in given[run]]


def test_prompts_are_answered_in_their_order_and_drawn_by_the_seed():
    model, words = attached("llama", "unipelt-apl", top="generator", dtype=torch.float32), tokenizer()
    given = prompts(1, 40)  # two batches
    answers = write(model, words, given, GenerationSettings(max_new_tokens=5), stop=[2])[0]
    assert answers == [
        write(model, words, [[one]], GenerationSettings(max_new_tokens=5), stop=[2])[0][0] for one in given[0]
    ]
    state = torch.get_rng_state()
    drawn = [
        write(model, words, given, GenerationSettings(max_new_tokens=5, temperature=1.5, seed=s), stop=[2])[0]
        for s in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_each_batch_draws_other_answers():
    model, words = attached("llama", "lora", top="generator", dtype=torch.float32), tokenizer()
    settings = GenerationSettings(max_new_tokens=3, temperature=1.5)
    drawn = write(model, words, [[[5, 6, 7]] * (2 * ROWS)], settings, stop=[2])[0]
    assert drawn[:ROWS] != drawn[ROWS:]


def test_transformers_gets_the_settings_and_no_default_of_its_own():
    """Such as the 50 likeliest tokens, of which alone it would draw."""
    drawn = _config(tokenizer(), GenerationSettings(temperature=0.5, top_p=0.9), stop=[2, 4], opening=())
    assert (drawn.do_sample, drawn.temperature, drawn.top_p, drawn.top_k) == (True, 0.5, 0.9, 0)
    assert drawn.eos_token_id == [2, 4] and drawn.decoder_start_token_id is None
    searched = _config(tokenizer(), GenerationSettings(num_beams=3), stop=[2], opening=(7, 8))
    assert (searched.do_sample, searched.num_beams, searched.early_stopping) == (False, 3, True)
    assert searched.decoder_start_token_id == 7


def test_no_setting_of_the_base_decides_about_an_answer():
    model, words = attached("llama", "unipelt-apl", top="generator", dtype=torch.float32), tokenizer()
    given = prompts(1, 3)
    answers = write(model, words, given, GenerationSettings(max_new_tokens=8), stop=[2])
    model.generation_config.update(
        do_sample=True, temperature=5.0, num_beams=4, repetition_penalty=9.0, max_new_tokens=2, no_repeat_ngram_size=1,
        eos_token_id=list(range(60)), bad_words_ids=[[7]], suppress_tokens=list(range(30)),
    )  # fmt: skip
    assert write(model, words, given, GenerationSettings(max_new_tokens=8), stop=[2]) == answers


def test_an_answer_ends_with_the_token_that_ends_it():
    model, words = attached("llama", "lora", top="generator", dtype=torch.float32), tokenizer()
    (ids,) = prompts(1, 1)[0]
    free = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=-1)
    third = int(free[0, len(ids) + 2])
    answer = write(model, words, [[ids]], GenerationSettings(max_new_tokens=6), stop=[third])[0][0]
    ours = free[0, len(ids) : len(ids) + 3].tolist()
    assert answer == words.decode(ours[: ours.index(third) + 1], skip_special_tokens=True).strip()


@pytest.mark.parametrize(
    "given",
    [{"max_new_tokens": 0}, {"min_new_tokens": 200}, {"top_p": 0.0}, {"num_beams": 0}, {"temperature": -1.0}],
    ids=str,
)
def test_a_setting_out_of_range_is_one_line(given: dict):
    with pytest.raises(UserError, match=f"--{next(iter(given)).replace('_', '-')} .*: expected .* to "):
        GenerationSettings(**given)
    with pytest.raises(UserError, match="give one of them"):
        GenerationSettings(num_beams=2, temperature=1.0)
