"""Rows, batches and padding: every row once an epoch, like lengths together, and nothing that a result could depend on."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from train.fleets import Words, rows
from unipelt.errors import DataError
from unipelt.inject.shapes import bucket, most_tokens
from unipelt.tasks.batches import Encoded, Part, check_tokens, first_tokens, model_inputs
from unipelt.train import forward
from unipelt.train.forward import longest_first, rows_per_run
from unipelt.train.runs import epoch_batches

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [1, 7, 64, 257])
@pytest.mark.parametrize("size", [1, 4, 16])
def test_an_epoch_takes_every_row_once_in_an_order_of_its_seed_and_number(count: int, size: int):
    lengths = rows(count).lengths()
    order = epoch_batches(lengths, size, seed=3, epoch=2)
    assert sorted(row for batch in order for row in batch) == list(range(count))
    assert len(order) == -(-count // size) and all(0 < len(batch) <= size for batch in order)
    assert order == epoch_batches(lengths, size, seed=3, epoch=2)
    if count > 16 * size:
        others = [epoch_batches(lengths, size, seed, epoch) for seed, epoch in ((3, 1), (2, 2), (0, 3 * 1_000_003 + 2))]
        assert all(order != other for other in others[:2])


def test_like_lengths_share_a_batch_and_the_random_state_is_left_alone():
    lengths = torch.randint(1, 100, (512,), generator=torch.Generator().manual_seed(0)).tolist()
    state = torch.get_rng_state()
    order = epoch_batches(lengths, 8, seed=0, epoch=0)
    assert torch.equal(state, torch.get_rng_state())
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in order)
    at_random = sum(8 * max(lengths[i : i + 8]) for i in range(0, 512, 8))
    assert padded < 0.8 * at_random


def test_evaluation_begins_with_the_longest_rows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forward, "rows_per_run", lambda device, runs, longest: 60 // longest)
    lengths = [rows(50).lengths(), rows(20, seed=1).lengths(), [3]]
    batches = list(longest_first(lengths, CPU))
    for run, mine in enumerate(lengths):
        order = [row for batch in batches for row in batch[run]]
        assert sorted(order[: len(mine)]) == list(range(len(mine))), "every row once"
        assert [mine[row] for row in order[: len(mine)]] == sorted(mine, reverse=True)
        assert {*order[len(mine) :]} <= {order[len(mine) - 1]}, "then its shortest again"
    sizes = [max(map(len, batch)) for batch in batches]
    for batch in longest_first([[40, 30], [3] * 90], CPU):
        tokens = len(batch) * max(map(len, batch)) * max((40, 30)[batch[0][0]], 3)
        assert tokens <= 2 * 60, "a long row that comes again makes all the others as long"
    assert sizes[0] == 60 // max(map(max, lengths)) and max(sizes) > 2 * sizes[0], "more rows where they are short"


def test_a_gpu_takes_no_more_tokens_than_of_the_longest_rows():
    gpu = torch.device("cuda")
    assert [rows_per_run(gpu, 1, longest) for longest in (16, 128, 512)] == [4096, 512, 512]
    assert [rows_per_run(gpu, 64, longest) for longest in (16, 128)] == [64, 8] and rows_per_run(gpu, 512, 128) == 8
    assert [rows_per_run(CPU, runs, 16) for runs in (1, 2, 64)] == [32, 16, 8]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_on_the_right_and_blocks_are_filled_with_rows_that_do_not_count(side: str):
    data, other = rows(6, seed=1), rows(6, seed=2)
    parts = [Part(None, data, [0, 3, 5]), Part(None, other, [2])]
    inputs, _, weights = model_inputs(parts, Words(pad_token_id=9, padding_side=side), CPU)
    assert weights.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape
    expected = [data.features["input_ids"][row] for row in (0, 3, 5)] + [other.features["input_ids"][2]] * 3
    for ids, mask, row in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), expected):
        assert [token for token, real in zip(ids, mask) if real] == row.tolist()
        assert all(token == 9 for token, real in zip(ids, mask) if not real)
        assert mask == sorted(mask, reverse=True)


def test_no_batch_is_wider_than_the_base_has_positions():
    data = Encoded({"input_ids": [np.full(13, 5), np.full(2, 6)]}, None, longest=13)
    assert model_inputs([Part(None, data, [0, 1])], Words(), CPU)[0]["input_ids"].shape == (2, 13)
    assert model_inputs([Part(None, data, [1])], Words(), CPU)[0]["input_ids"].shape == (1, 2), (
        "a CPU pads no further than it must"
    )
    assert model_inputs([Part(None, data, [1])], Words(), torch.device("meta"))[0]["input_ids"].shape == (1, 8)


def test_the_lengths_that_cost_a_graph_are_few_and_near():
    lengths = [bucket(length) for length in range(1, 513)]
    assert sorted(set(lengths)) == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert all(length <= padded <= max(16, 1.5 * length) for length, padded in enumerate(lengths, start=1))


def test_examples_that_are_taken_keep_all_that_is_theirs():
    names = ("first_tokens", "positions", "answers", "prompts", "gate_prompt_lengths")
    given = {name: [f"{name} {row}" for row in range(3)] for name in names}
    taken = Encoded({"input_ids": [10, 11, 12]}, ["a", "b", "c"], 64, **given, decoder_start=2).take([2, 0])
    assert taken.features == {"input_ids": [12, 10]} and taken.targets == ["c", "a"]
    assert all(getattr(taken, name) == [f"{name} 2", f"{name} 0"] for name in names)
    assert (taken.longest, taken.decoder_start, rows(3).take([1]).answers) == (64, 2, ())


def test_an_example_is_as_long_as_what_it_reads_or_writes():
    features = {"input_ids": [np.zeros(2), np.zeros(5)]}
    assert Encoded(features, None, 64, answers=[np.zeros(4), np.zeros(1)]).lengths() == [4, 5]
    assert Encoded(features, None, 64).lengths() == [2, 5]


@pytest.mark.parametrize("place", ["features", "answers", "prompts"])
def test_a_token_without_an_embedding_is_named_wherever_it_stands(place: str):
    model = SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding(10, 2))
    for most in (9, 10):
        tokens = {name: [np.array([1, most if name == place else 3])] for name in ("features", "answers", "prompts")}
        encoded = Encoded({"input_ids": tokens.pop("features")}, None, 64, **tokens)
        if most == 9:
            assert check_tokens(encoded, model, "data") is encoded
        else:
            with pytest.raises(DataError, match="token 10, and the base has embeddings for tokens 0 to 9"):
                check_tokens(encoded, model, "data")


def test_a_word_is_read_at_its_first_token():
    words = [None, 0, 0, 1, 2, 2, 2, None]
    assert first_tokens(words, 4).tolist() == [1, 3, 4, -1], "the last word was cut off"


@pytest.mark.parametrize("arch", ["bert", "roberta", "gpt2", "opt", "bart", "t5", "distilbert", "deberta-v2", "mpnet"])
def test_a_row_of_the_most_tokens_fits_the_base(arch: str):
    model = tiny.build(arch)
    most = most_tokens(model, 1000)
    assert most == (1000 if arch == "t5" else 64 - 2 * (arch in ("roberta", "mpnet"))) and most_tokens(model, 5) == 5
    if arch != "t5":
        tiny_inputs = tiny.inputs(arch, model, batch=1, length=most, pads=(0,))
        assert model(**tiny_inputs).logits.isfinite().all()
