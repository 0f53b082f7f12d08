"""The low-resource protocol: what is drawn, what is kept apart, and what cannot be drawn."""

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unipelt.data import Dataset, Examples, Task, class_counts, split
from unipelt.data.protocol import FEWEST, LARGEST_TEST
from unipelt.errors import DataError


def made(rows, *, shares=(1, 1), test=50, kind="classification", complete=True):
    """Rows with texts of their own, their classes in the ratio of the shares."""
    pattern = [index for index, share in enumerate(shares) for _ in range(share)]
    names = tuple(f"class {index}" for index in range(len(shares))) if kind == "classification" else ()

    def part(word, length):
        labels = [pattern[index % len(pattern)] + (0.5 if kind == "regression" else 0) for index in range(length)]
        return Examples(first=[f"{word} {index}" for index in range(length)], second=None, labels=labels)

    task = Task(name="made", kind=kind, labels=names, metric="accuracy", pair=False)
    held_out = part("test", test) if test else None
    return Dataset(
        task=task, train=part("train", rows), test=held_out, validation=None, complete=complete, source="made"
    )


def test_first_k_train_and_the_next_thousand_choose_the_checkpoint():
    dataset = made(3000)
    order = list(range(3000))
    stream = Random(7)
    keys = [stream.random() for _ in order]
    order.sort(key=lambda index: keys[index])
    parts = split(dataset, 100, seed=7)
    assert parts.train == dataset.train.take(order[:100])
    assert parts.validation == dataset.train.take(order[100:1100])
    assert parts.test == dataset.test
    assert parts.notes == ()


def test_a_larger_k_extends_a_smaller_one():
    dataset = made(3000)
    assert split(dataset, 500, seed=1).train.first[:100] == split(dataset, 100, seed=1).train.first


def test_the_seed_alone_decides():
    dataset = made(3000)
    assert split(dataset, 100, seed=1) == split(dataset, 100, seed=1)
    drawn = {split(dataset, 100, seed=seed).train.fingerprint() for seed in range(5)}
    assert len(drawn) == 5


@pytest.mark.parametrize("k", [40, 1000, "all"])
@pytest.mark.parametrize("test", [0, 50])
def test_no_row_stands_in_two_parts(k, test):
    parts = split(made(2500, shares=(3, 1), test=test), k, seed=3)
    texts = [text for rows in (parts.train, parts.validation, parts.test) for text in rows.first]
    assert len(texts) == len(set(texts))


def test_all_keeps_a_tenth_up_to_the_size_asked():
    for rows, validation in ((500, 50), (50, FEWEST), (30_000, 1000)):
        parts = split(made(rows), "all", seed=0)
        assert (len(parts.train), len(parts.validation)) == (rows - validation, validation)
    assert len(split(made(30_000), "all", seed=0, validation=200).validation) == 200


def test_all_of_a_subset_is_marked():
    assert not any("subset" in note for note in split(made(500), "all", seed=0).notes)
    assert any("subset" in note for note in split(made(500, complete=False), "all", seed=0).notes)
    assert split(made(2000, complete=False), 100, seed=0).notes == ()


def test_fewer_rows_than_asked_for_are_said():
    parts = split(made(400), 100, seed=0)
    assert len(parts.validation) == 300 and "300 rows choose the checkpoint instead of 1000" in parts.notes[0]


def test_a_development_set_of_its_own_is_used():
    dataset = replace(made(200), validation=made(77).train)
    parts = split(dataset, 200, seed=0)
    assert (len(parts.train), len(parts.validation)) == (200, 77)
    assert len(split(dataset, "all", seed=0).train) == 200


@pytest.mark.parametrize(("validation", "test", "said"), [(1, 50, "1 validation row:"), (10, 9, "9 test rows:")])
def test_few_rows_of_their_own_are_said(validation, test, said):
    (note,) = split(replace(made(200, test=test), validation=made(2, test=validation).test), 100, seed=0).notes[:1]
    assert note == f"made has {said} one moves a metric by over a tenth."


@pytest.mark.parametrize("shares", [(1, 1), (3, 1), (17, 2, 1)])
@pytest.mark.parametrize("rows", [40, 333, 20_000])
def test_a_test_set_is_held_out_in_proportion(rows, shares):
    dataset = made(rows, shares=shares, test=0)
    parts = split(dataset, "all", seed=0)
    wanted = max(FEWEST, min(LARGEST_TEST, rows // 5))
    assert len(parts.test) == wanted
    whole, held = class_counts(dataset.task, dataset.train), class_counts(dataset.task, parts.test)
    assert all(abs(held[name] - wanted * whole[name] / rows) <= 1 for name in whole)
    assert any("held out" in note for note in parts.notes)


def test_the_largest_remainders_are_rounded_up():
    dataset = made(100, shares=(43, 38, 19), test=0)  # a fifth: 8.6, 7.6, 3.8
    assert class_counts(dataset.task, split(dataset, 50, seed=0).test) == {"class 0": 9, "class 1": 7, "class 2": 4}


def test_the_held_out_test_set_does_not_move_with_the_seed():
    dataset = made(500, test=0)
    assert split(dataset, 50, seed=1).test == split(dataset, 50, seed=2).test
    assert split(dataset, 50, seed=1).train != split(dataset, 50, seed=2).train


def test_repeated_texts_are_not_tested_on():
    dataset = made(300, test=0)
    doubled = replace(dataset, train=dataset.train.take([*range(300), *range(300)]))
    parts = split(doubled, "all", seed=0)
    assert not set(parts.test.first) & set(parts.train.first + parts.validation.first)
    assert any("repeat a test text" in note for note in parts.notes)


def test_regression_is_held_out_without_classes():
    parts = split(made(100, kind="regression", test=0), 20, seed=0)
    assert len(parts.test) == 20 and len(parts.train) == 20


def test_a_rare_class_keeps_a_row_for_training():
    rows = Examples(first=[f"text {index}" for index in range(100)], second=None, labels=[0] * 99 + [1])
    dataset = replace(made(2, test=0), train=rows)
    for seed in range(20):
        try:
            assert 1 in split(dataset, 60, seed=seed).train.labels
        except DataError as error:
            assert "of made, none of class 'class 1' (1 of 100 rows)" in str(error)


@pytest.mark.parametrize(
    ("dataset", "k", "expected"),
    [
        (
            made(200),
            191,
            "--k 191: made has 200 training rows, and 10 of them are kept to choose the checkpoint; expected up to 190",
        ),
        (made(200, shares=(1, 1, 1)), 2, "--k 2: made has 3 classes; expected 3 or more, a row of each"),
        (
            made(200, shares=(99, 1)),
            5,
            "seed 0 draws 5 training rows of made, none of class 'class 1' (2 of 200 rows); add rows of it, or take a larger --k",
        ),
        (made(200, shares=(1,)), 50, "every training row of made is 'class 0'"),
        (made(10), "all", "made has 10 training rows, expected more than 10"),
        (made(29, test=0), "all", "made has 29 rows and no test set"),
        (made(200), 0, "--k 0: expected a whole number from 1, or all"),
        (made(200), 2.5, "--k 2.5: expected"),
        (made(200), "most", "--k most: expected"),
        (replace(made(200), train=replace(made(200).train, labels=None)), 50, "the train rows of made have no labels"),
        (replace(made(200), test=made(0).train), 50, "made has no test rows"),
    ],
)
def test_what_cannot_be_drawn_says_why(dataset, k, expected):
    with pytest.raises(DataError) as caught:
        split(dataset, k, seed=0)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_what_all_rows_lack_no_larger_k_gives():
    dataset, said = made(200, shares=(199, 1)), set()
    for seed in range(100):
        with suppress(DataError):
            split(dataset, "all", seed=seed)
            continue
        with pytest.raises(DataError) as caught:
            split(dataset, "all", seed=seed)
        said.add(str(caught.value).partition("(")[2])
    assert said == {"1 of 200 rows); add rows of it"}


def test_development_rows_are_at_most_what_was_asked():
    assert len(split(made(200), 50, seed=0, validation=10).validation) == 10
    for k in (50, "all"):
        with pytest.raises(
            DataError, match="--validation-rows 9: expected 10 or more; with fewer, one row moves a metric"
        ):
            split(made(200), k, seed=0, validation=9)


@pytest.mark.parametrize("seed", [-1, True, 0.5, "0"])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(DataError, match="data seed"):
        split(made(200), 50, seed=seed)


@pytest.mark.parametrize("k", [40, "all"])
@pytest.mark.parametrize("test", [0, 50])
@pytest.mark.parametrize("authors", [5, 37])
def test_no_group_is_parted(authors, k, test):
    dataset = made(300, test=test)
    groups = [f"author {index % authors}" for index in range(300)]
    grouped = replace(dataset, train=replace(dataset.train, groups=groups))
    parts = split(grouped, k, seed=3)
    own = [set(part.groups) for part in (parts.train, parts.validation, parts.test) if part.groups]
    assert len(own) == (2 if test else 3) and sum(map(len, own)) == len(set().union(*own)), (
        "a group stands in two parts"
    )
    assert len(parts.train) == k or k == "all"
    if k == "all":
        assert sum(map(len, parts.parts.values())) == 300 + test, "a row is of no part"
        assert len(parts.validation) >= (300 - (0 if test else len(parts.test))) // 10, "less than a tenth chooses"
    assert split(grouped, k, seed=4).train != parts.train


@pytest.mark.parametrize("k", [100, "all"])
def test_a_single_group_cannot_be_split(k):
    dataset = made(300, test=50)
    with pytest.raises(DataError, match="leave no group to choose the checkpoint; leave out --group"):
        split(replace(dataset, train=replace(dataset.train, groups=["one"] * 300)), k, seed=0)


@pytest.mark.parametrize("stratify", [False, True])
@pytest.mark.parametrize("test", [0, 50])
def test_large_groups_are_split_too(test, stratify):
    few = made(300, test=test)  # each author has more rows than a tenth
    grouped = replace(few, train=replace(few.train, groups=[f"author {index // 60}" for index in range(300)]))
    parts = split(grouped, "all", seed=0, stratify=stratify)
    assert {len(set(part.groups or ())) for part in (parts.validation, parts.test)} == {1, int(not test)}
    assert len(parts.train) == (240 if test else 180)


def test_a_group_of_most_rows_stays_in_train():
    dataset = made(400, test=0)
    groups = ["one" if index < 280 else f"author {index}" for index in range(400)]
    parts = split(replace(dataset, train=replace(dataset.train, groups=groups)), "all", seed=0)
    assert "one" not in parts.test.groups and len(parts.test) == 80


def test_texts_in_two_parts_are_counted_and_told():
    dataset = made(300, test=20)
    first = [*dataset.train.first[:280], *dataset.test.first]
    parts = split(replace(dataset, train=replace(dataset.train, first=first)), "all", seed=0)
    held = set(parts.test.first)
    count = sum(text in held for text in parts.train.first)
    assert count and any(note.startswith(f"{count} training rows repeat a test text") for note in parts.notes)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("test", [0, 60])
def test_stratified_parts_have_each_class_in_its_share(grouped, test):
    dataset = made(600, shares=(17, 2, 1), test=test)
    if grouped:  # authors of one to five rows, each of one class
        groups = [f"author {label} {index % (97 // (label + 1))}" for index, label in enumerate(dataset.train.labels)]
        dataset = replace(dataset, train=replace(dataset.train, groups=groups))
    whole = class_counts(dataset.task, dataset.train)
    for seed, k in ((0, 100), (1, 200 if grouped else 20), (2, "all")):
        parts = split(dataset, k, seed=seed, validation=80, stratify=True)
        for part in (parts.train, parts.validation) if test else (parts.train, parts.validation, parts.test):
            counts = class_counts(dataset.task, part)
            off = {name: abs(counts[name] - len(part) * whole[name] / len(dataset.train)) for name in whole}
            assert max(off.values()) <= (6 if grouped else 2), f"seed {seed}, k {k}: {counts} of {len(part)}"
        if grouped:
            own = [set(part.groups) for part in (parts.train, parts.validation, parts.test) if part.groups]
            assert sum(map(len, own)) == len(set().union(*own)), "a group stands in two parts"
    assert split(dataset, 100, seed=0, stratify=True).train != split(dataset, 100, seed=1, stratify=True).train


@given(st.lists(st.integers(2, 9), min_size=1, max_size=25), st.integers(30, 90), st.integers(0, 9), st.booleans())
def test_small_classes_beside_a_large_one_have_their_share(small, large, seed, stratify):
    dataset = made(large + sum(small), shares=(large, *small), test=0)
    for k in ("all", len(dataset.train) // 2):
        with suppress(DataError):  # a class has no row among so few
            parts = split(dataset, k, seed=seed, stratify=stratify)
            whole = Counter(dataset.train.labels)
            for part, most in ((parts.test, 1), *(((parts.train, 1), (parts.validation, 2)) if stratify else ())):
                counts = Counter(part.labels)
                assert all(abs(counts[one] - len(part) * whole[one] / whole.total()) < most for one in whole)
                whole = whole if part is parts.train else whole - counts


def test_no_class_gives_its_last_row_to_the_test_set():
    dataset = made(200, shares=(90, *[1] * 10), test=0)
    once = made(100, shares=(90, *[1] * 10), test=0)
    assert set(split(once, "all", seed=0, stratify=True).test.labels) == {0}
    assert len(set(split(dataset, "all", seed=0, stratify=True).test.labels)) > 1
    authors = [f"author {label // 2}" for label in once.train.labels]
    grouped = replace(once, train=replace(once.train, groups=authors))
    for rows, said in (
        (made(30, shares=(1,) * 30, test=0), "0 of its 30 rows can be held out, .* expected 10: give a test file$"),
        (grouped, "give a test file, or leave out --group$"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=said):
            split(rows, "all", seed=0)


def test_unstratified_parts_are_the_protocols_own():
    counts = [class_counts(made(2).task, split(made(600), 100, seed=seed).train)["class 0"] for seed in range(9)]
    assert len(set(counts)) > 1, "the paper's samples are not stratified"
    assert {50} == {
        class_counts(made(2).task, split(made(600), 100, seed=seed, stratify=True).train)["class 0"]
        for seed in range(9)
    }


def test_numbers_cannot_be_stratified_and_it_is_said():
    plain, asked = (split(made(100, kind="regression"), 20, seed=0, stratify=wish) for wish in (False, True))
    assert asked.train == plain.train and any("--stratify" in note for note in asked.notes)


def test_groups_that_given_files_part_are_counted_and_told():
    dataset = made(100, test=20)
    train = replace(dataset.train, groups=[f"author {index % 10}" for index in range(100)])
    test = replace(dataset.test, groups=[f"author {index + 5}" for index in range(20)])
    notes = split(replace(dataset, train=train, test=test), 60, seed=0).notes
    parts = split(replace(dataset, train=train, test=test), 60, seed=0)
    count = sum(int(group.split()[1]) >= 5 for group in parts.train.groups)
    assert f"{count} training rows are of a group that has test rows of made; they stay as they are." in notes
