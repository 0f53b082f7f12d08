"""The low-resource protocol: what is drawn, what is kept apart, and what cannot be drawn."""

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unipelt.data import Dataset, Examples, split
from unipelt.data.splits import LARGEST_TEST, MIN_EXAMPLES, Splits, last_of, summarise
from unipelt.errors import DataError


def made(count, *, shares=(1, 1), test=50, numbers=False, **fields):
    """Examples with texts of their own, their classes in the ratio of the shares."""
    pattern = [index for index, share in enumerate(shares) for _ in range(share)]

    def part(word, length):
        targets = [pattern[index % len(pattern)] + (0.5 if numbers else 0) for index in range(length)]
        return Examples(inputs={"text": [f"{word} {index}" for index in range(length)]}, targets=targets)

    classes = None if numbers else tuple(f"class {index}" for index in range(len(shares)))
    held_out = part("test", test) if test else None
    return Dataset(**{"name": "made", "train": part("train", count), "test": held_out, "classes": classes} | fields)


def texts(examples):
    return examples.inputs["text"]


def grouped(dataset, groups):
    return replace(dataset, train=replace(dataset.train, groups=groups))


def assert_apart(parts):
    """No text and no group in two of the sets."""
    for one, other in combinations(parts.parts.values(), 2):
        assert not set(texts(one)) & set(texts(other)), "a text stands in two sets"
        assert not set(one.groups or ()) & set(other.groups or ()), "a group stands in two sets"


def test_first_k_train_and_the_next_thousand_validate():
    dataset, stream = made(3000), Random(7)
    keys = [stream.random() for _ in range(3000)]
    order = sorted(range(3000), key=keys.__getitem__)
    parts = split(dataset, 100, seed=7)
    assert parts.train == dataset.train.take(order[:100])
    assert parts.validation == dataset.train.take(order[100:1100])
    assert parts.test == dataset.test and parts.notes == ()


@pytest.mark.parametrize("stratify", [False, True])
def test_the_seed_alone_decides_and_a_larger_k_extends_a_smaller_one(stratify):
    dataset = made(3000, test=0)
    assert split(dataset, 100, seed=1, stratify=stratify) == split(dataset, 100, seed=1, stratify=stratify)
    drawn = [split(dataset, 100, seed=seed, stratify=stratify) for seed in range(5)]
    assert len({parts.train.fingerprint for parts in drawn}) == 5
    assert len({parts.test.fingerprint for parts in drawn}) == 1, "the held-out test set does not move"
    assert texts(split(dataset, 500, seed=1, stratify=stratify).train)[:100] == texts(drawn[1].train)


@pytest.mark.parametrize("train_rows", [40, 1000, "all"])
@pytest.mark.parametrize("test", [0, 50])
@pytest.mark.parametrize("authors", [0, 5, 37])
@pytest.mark.parametrize("stratify", [False, True])
def test_no_text_and_no_group_stands_in_two_sets(train_rows, test, authors, stratify):
    dataset = made(2500, shares=(3, 1), test=test)
    repeated = [f"text {index // 3}" for index in range(2500)]
    for one in (
        replace(dataset, train=replace(dataset.train, inputs={"text": repeated})),
        grouped(dataset, [f"author {index % authors}" for index in range(2500)]) if authors else dataset,
    ):
        parts = split(one, train_rows, seed=3, stratify=stratify)
        assert_apart(parts)
        assert len(parts.train) == train_rows or train_rows == "all"
        if train_rows == "all":
            assert sum(map(len, parts.parts.values())) == 2500 + test, "an example is in no set"
            assert len(parts.validation) >= 2500 // 20


def test_all_keeps_a_tenth_up_to_the_size_asked():
    for count, validation in ((500, 50), (50, MIN_EXAMPLES), (30_000, 1000)):
        parts = split(made(count), "all", seed=0)
        assert (len(parts.train), len(parts.validation)) == (count - validation, validation)
    assert len(split(made(30_000), "all", seed=0, validation_rows=200).validation) == 200


def test_what_departs_from_the_protocol_is_said():
    assert any("subset" in note for note in split(made(500, complete=False), "all", seed=0).notes)
    assert split(made(2000, complete=False), 100, seed=0).notes == ()
    assert "300 examples validate instead of 1000" in split(made(400), 100, seed=0).notes[0]
    for validation, test, expected in ((1, 50, "1 validation example:"), (10, 9, "9 test examples:")):
        dataset = replace(made(200, test=test), validation=made(2, test=validation).test)
        assert (
            split(dataset, 100, seed=0).notes[0] == f"made has {expected} one example moves a metric by over a tenth."
        )
    plain, asked = (split(made(100, numbers=True), 20, seed=0, stratify=wish) for wish in (False, True))
    assert asked.train == plain.train and any("--stratify changes nothing" in note for note in asked.notes)


def test_fewer_test_examples_are_the_same_for_every_seed():
    for dataset in (made(200), replace(made(200), test=None)):  # its own test set, or examples held out
        drawn = [split(dataset, 100, seed=seed, test_rows=20) for seed in (0, 1)]
        whole = split(dataset, 100, seed=0)
        assert drawn[0].test == drawn[1].test and drawn[0].train == whole.train
        assert len(drawn[0].test) == 20 and {*drawn[0].test.keys} <= {*whole.test.keys}
        assert any(note.startswith("20 of the ") for note in drawn[0].notes)
        assert split(dataset, 100, seed=0, test_rows=999) == whole
    with pytest.raises(DataError, match="--test-rows 9: expected 10 or more"):
        split(made(200), 100, seed=0, test_rows=9)
    with pytest.raises(DataError, match=r"--test-rows: the folds .* leave out one"):
        split(made(200), 100, seed=0, test_rows=20, folds=4)


@pytest.mark.parametrize("test", [0, 500])
def test_fewer_test_examples_keep_the_shares_of_the_classes(test):
    dataset = made(2500, shares=(7, 2, 1), test=test)
    drawn = [split(dataset, 100, seed=seed, test_rows=40, stratify=True).test for seed in range(3)]
    assert len({examples.fingerprint for examples in drawn}) == 1, "another seed has another test set"
    whole = split(dataset, 100, seed=0, stratify=True).test
    assert len(drawn[0]) == 40 and {*drawn[0].keys} <= {*whole.keys}
    found, size = Counter(drawn[0].targets), Counter(whole.targets)
    assert all(abs(found[label] - 40 * number / len(whole)) <= 2 for label, number in size.items()), found


def test_a_validation_set_of_its_own_is_used_whole():
    dataset = replace(made(200), validation=made(77).train)
    assert [len(part) for part in split(dataset, 200, seed=0).parts.values()] == [200, 77, 50]
    assert len(split(dataset, "all", seed=0).train) == 200


@pytest.mark.parametrize("shares", [(1, 1), (3, 1), (17, 2, 1)])
@pytest.mark.parametrize("count", [40, 333, 20_000])
def test_a_test_set_is_held_out_in_proportion(count, shares):
    dataset = made(count, shares=shares, test=0)
    parts = split(dataset, "all", seed=0)
    wanted = max(MIN_EXAMPLES, min(LARGEST_TEST, count // 5))
    whole, held = Counter(dataset.train.targets), Counter(parts.test.targets)
    counts = {label: (held[label], wanted * number / count) for label, number in whole.items()}
    assert len(parts.test) == count // 5 or wanted == len(parts.test)
    assert all(held[label] or number < 10 for label, number in whole.items())
    assert all(abs(one - share) <= 3 * share**0.5 + 2 for one, share in counts.values()), "held out at random"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=25), st.integers(60, 90), st.integers(0, 9), st.booleans())
def test_every_class_trains_and_stratified_sets_have_its_share(small, large, seed, with_authors):
    dataset = made(large + sum(small), shares=(large, *small), test=0)
    if with_authors:
        dataset = grouped(dataset, [f"author {t} {i // 2}" for i, t in enumerate(dataset.train.targets)])
    whole, number = Counter(dataset.train.targets), len(dataset.train)
    for train_rows in ("all", number // 2):
        parts = split(dataset, train_rows, seed=seed, stratify=True)
        assert set(parts.train.targets) == set(whole), "a class does not train"
        assert_apart(parts)
        for part in parts.parts.values():
            counts = Counter(part.targets)
            off = {label: abs(counts[label] - len(part) * whole[label] / number) for label in whole}
            assert max(off.values()) <= 2 + len(small) ** 0.5 + 4 * with_authors, f"{off} of {len(part)}"


def test_unstratified_sets_are_the_protocols_own():
    drawn = [Counter(split(made(600), 100, seed=seed).train.targets)[0] for seed in range(9)]
    assert len(set(drawn)) > 1, "the paper's samples are not stratified"
    even = [Counter(split(made(600), 100, seed=seed, stratify=True).train.targets)[0] for seed in range(9)]
    assert set(even) <= {49, 50, 51}


def test_a_class_with_a_single_example_trains():
    examples = Examples(inputs={"text": [f"text {index}" for index in range(100)]}, targets=[0] * 99 + [1])
    for seed in range(20):
        for train_rows in ("all", 20):
            parts = split(replace(made(2, test=0), train=examples), train_rows, seed=seed)
            assert parts.train.targets.count(1) == 1


@pytest.mark.parametrize(
    ("dataset", "train_rows", "expected"),
    [
        (made(200), 191, "--train-rows 191: made has 200 training examples, and 10 of them are kept for validation; expected up to 190"),
        (made(200, shares=(1, 1, 1)), 2, "--train-rows 2: made has 3 classes; expected 3 or more"),
        (made(200, shares=(99, 1)), 5, "seed 0 draws 5 training examples of made, none of class 'class 1' (2 of 200 examples); add --stratify"),
        (made(10), "all", "made has 10 training examples, expected more than 10"),
        (made(29, test=0), "all", "made has 29 examples and no test set"),
        (made(30, shares=(1,) * 30, test=0), "all", "made has no test set, and"),
        (grouped(made(300), ["one"] * 300), 100, "leave no group for validation; leave it out, or take smaller"),
        (grouped(made(300), ["one"] * 300), "all", "leave no group for validation; leave it out"),
        (grouped(made(300, test=0), ["one"] * 300), "all", "give a --test file, or leave out --group-column"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_says_why(dataset, train_rows, expected):
    with pytest.raises(DataError) as caught:
        split(dataset, train_rows, seed=0)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_sizes_are_checked():
    assert len(split(made(200), 50, seed=0, validation_rows=10).validation) == 10
    with pytest.raises(DataError, match="--validation-rows 9: expected 10 or more"):
        split(made(200), 50, seed=0, validation_rows=9)


@pytest.mark.parametrize("stratify", [False, True])
@pytest.mark.parametrize("test", [0, 50])
def test_large_groups_are_split_too(test, stratify):
    dataset = grouped(made(300, test=test), [f"author {index // 60}" for index in range(300)])
    parts = split(dataset, "all", seed=0, stratify=stratify)
    assert {len(set(part.groups or ())) for part in (parts.validation, parts.test)} == {1, int(not test)}
    assert len(parts.train) == (240 if test else 180)


def test_a_group_of_most_examples_trains():
    groups = ["one" if index < 280 else f"author {index}" for index in range(400)]
    for seed in range(5):
        parts = split(grouped(made(400, test=0), groups), "all", seed=seed)
        assert "one" in parts.train.groups and len(parts.test) == 80 and len(parts.validation) == 32


def test_what_given_sets_share_is_counted_and_told():
    dataset = made(300, test=20)
    both = [*texts(dataset.train)[:280], *texts(dataset.test)]
    parts = split(replace(dataset, train=replace(dataset.train, inputs={"text": both})), "all", seed=0)
    count = sum(text in set(texts(parts.test)) for text in texts(parts.train))
    assert count and any(note.startswith(f"{count} training examples repeat a test text") for note in parts.notes)
    dataset = grouped(made(100, test=20), [f"author {index % 10}" for index in range(100)])
    test = replace(dataset.test, groups=[f"author {index + 5}" for index in range(20)])
    parts = split(replace(dataset, test=test), 60, seed=0)
    count = sum(int(group.split()[1]) >= 5 for group in parts.train.groups)
    assert any(note.startswith(f"{count} training examples are of a group that has test") for note in parts.notes)


def test_a_group_far_larger_than_the_set_asked_for_stays_where_it_trains():
    groups = [[0], [1, 2], [3], [*range(4, 14)]]
    assert last_of(groups, 2, 1) == ([0, *range(4, 14)], [1, 2, 3]), "half more than asked for is taken, not ten times"
    assert last_of(groups[2:], 2, 0) == ([*range(4, 14)], [3]) and last_of(groups, 9, 3) == ([0, 1, 2, 3], groups[3])


def test_what_a_given_validation_set_shares_is_told_too():
    dataset = made(100, test=20)
    shared = [*texts(dataset.train)[:4], *texts(dataset.test)[:3], *(f"own {index}" for index in range(13))]
    parts = split(replace(dataset, validation=replace(dataset.test, inputs={"text": shared})), "all", seed=0)
    assert [note.partition(" of made")[0] for note in parts.notes] == [
        "4 validation examples repeat a training text", "3 validation examples repeat a test text",
    ]  # fmt: skip


def test_counts_of_the_sets_are_exact():
    """Repeated texts, texts of train in the other sets, texts with two labels, and examples of each class."""

    def part(words: str, targets: list) -> Examples:
        return Examples(inputs={"text": words.split()}, targets=targets)

    train, other = part("a b a c", [0, 1, 1, 1]), part("c d d", [0, 1, 1])
    found = summarise(Splits(train=train, validation=other, test=part("b e", [1, 0]), notes=()))
    assert found == {
        "examples": {"train": 4, "validation": 3, "test": 2}, "repeated": {"train": 1, "validation": 1, "test": 0},
        "shared": {"validation": 1, "test": 1}, "contradictory": 2,
        "classes": {"train": {"0": 1, "1": 3}, "validation": {"0": 1, "1": 2}, "test": {"0": 1, "1": 1}},
    }  # fmt: skip
    several = part("a b c", [[1, 0, 1], [0, 0, 1], [0, 0, 0]])
    found = summarise(Splits(train=several, validation=several, test=None, notes=()))
    assert found["classes"]["train"] == {"0": 1, "1": 0, "2": 2} and found["contradictory"] == 0
    assert (found["examples"], found["shared"]) == ({"train": 3, "validation": 3}, {"validation": 3})


def test_groups_share_no_text_with_the_held_out_test_set():
    dataset = made(300, test=0)
    repeated = replace(dataset.train, inputs={"text": [f"text {index // 2}" for index in range(300)]})
    parts = split(replace(dataset, train=replace(repeated, groups=[f"a {i % 50}" for i in range(300)])), "all", seed=0)
    assert not set(texts(parts.test)) & {*texts(parts.train), *texts(parts.validation)}
    assert any("repeat a test text are left out" in note for note in parts.notes)
    with suppress(DataError):
        split(replace(dataset, train=replace(repeated, groups=["a"] * 150 + ["b"] * 150)), "all", seed=0)
