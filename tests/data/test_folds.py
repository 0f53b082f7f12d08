"""Laws of the folds of a cross-validation, over data with and without classes, groups and repeated texts."""

from collections import Counter

import pytest

from unipelt.data.examples import Dataset, Examples
from unipelt.data.folds import inner_folds
from unipelt.data.splits import split
from unipelt.errors import DataError

FOLDS = 4


def dataset(count: int = 80, classes: int = 2, groups: int = 0, repeated: int = 1, **more) -> Dataset:
    inputs = {"text": [f"text {index // repeated}" for index in range(count)]}
    targets = (
        [(index // repeated) % classes for index in range(count)] if classes else [index / 7 for index in range(count)]
    )
    names = [str(index % groups) for index in range(count)] if groups else None
    examples = Examples(inputs=inputs, targets=targets, groups=names)
    return Dataset(name="reviews", train=examples, classes=tuple("abcd"[:classes]) if classes else None, **more)


@pytest.mark.parametrize(
    "how", [{}, {"classes": 0}, {"groups": 13}, {"repeated": 2}, {"classes": 0, "groups": 13}], ids=str
)
def test_every_example_is_tested_once_and_never_trained_on_then(how):
    data = dataset(**how)
    every = [split(data, "all", seed, folds=FOLDS) for seed in range(FOLDS)]
    assert Counter(key for one in every for key in one.test.keys) == Counter(data.train.keys)
    for one in every:
        held = {*one.test.keys}
        assert not held & {*one.train.keys, *one.validation.keys}
        assert len(one.train) + len(one.validation) + len(one.test) == len(data.train)
        assert not {*(one.test.groups or ())} & {*(one.train.groups or ()), *(one.validation.groups or ())}
        assert not data.classes or set(one.test.targets) == set(one.train.targets) == {0, 1}
        assert max(abs(len(one.test) - len(data.train) / FOLDS) for one in every) <= (2 if not data.train.groups else 8)
    again = split(data, "all", FOLDS, folds=FOLDS)
    assert again.test.fingerprint not in {one.test.fingerprint for one in every}, "a repeat has other folds"
    assert split(data, "all", 1, folds=FOLDS).test.fingerprint == every[1].test.fingerprint


def test_no_tested_text_is_trained_on_where_groups_share_texts():
    """Each text is in three groups."""
    data = dataset(groups=13, repeated=3)
    for seed in range(FOLDS):
        one = split(data, "all", seed, folds=FOLDS)
        assert not {*one.test.keys} & {*one.train.keys, *one.validation.keys} and one.train.keys


@pytest.mark.parametrize("repeated", [1, 2])
def test_each_fold_has_its_share_of_a_rare_class(repeated: int):
    """Of ten classes with eight examples each, every fold of four has two examples."""
    data = dataset(classes=10, repeated=repeated)
    for seed in range(FOLDS):
        assert Counter(split(data, "all", seed, folds=FOLDS).test.targets) == dict.fromkeys(range(10), 2)


def test_a_setting_is_chosen_by_five_folds_or_as_many_as_there_are_groups():
    for data, folds in ((dataset(), 5), (dataset(groups=3), 3), (dataset(groups=3, classes=0), 3), (dataset(8, 2), 4)):
        examples = data.train
        numbers = inner_folds(examples, examples.targets if data.classes else None)
        assert {*numbers} == {*range(folds)}
        if examples.groups:
            assert len({*zip(examples.groups, numbers)}) == folds, "a group is in two folds"
        elif data.classes:
            assert {*Counter(zip(numbers, examples.targets)).values()} == {len(examples) // folds // 2}, "shares differ"
    assert inner_folds(dataset(20, groups=1).train, None) == [0] * 20, "one group cannot be held out"
    assert {*inner_folds(dataset(4, classes=4).train, [0, 1, 2, 3])} == {*range(4)}, "of classes of one example"


def test_one_fold_tests_nothing():
    found = split(dataset(), "all", 0, folds=1)
    assert found.test is None and len(found.train) + len(found.validation) == 80 and "test" not in found.fingerprints


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (dataset(40, classes=4).train.take(range(15)), "class 'd' of reviews has 3 examples; expected 4 or more"),
        (dataset(40, groups=3).train, "reviews has 3 groups; expected 4 or more"),
        (dataset(40, repeated=20).train, "reviews has 2 different texts; expected 4 or more"),
    ],
)
def test_too_few_of_a_class_or_group_is_one_line(data: Examples, expected: str):
    with pytest.raises(DataError, match=f"--folds 4: {expected}"):
        split(Dataset(name="reviews", train=data, classes=tuple("abcd")), "all", 0, folds=4)


def test_a_class_that_one_group_holds_is_missing_from_the_other_folds():
    data = dataset(80, groups=16)
    targets = [int(group == "3") for group in data.train.groups or ()]
    examples = Examples(inputs=data.train.inputs, targets=targets, groups=data.train.groups)
    with pytest.raises(
        DataError, match=r"--folds 4: fold \d of reviews has no example of class 'b', because groups are not split"
    ):
        split(Dataset(name="reviews", train=examples, classes=("a", "b")), "all", 0, folds=4)


def test_a_test_set_of_its_own_is_not_folded():
    with pytest.raises(DataError, match="--folds 4: reviews has a test set of its own; leave out --folds"):
        split(dataset(test=dataset(20).train), "all", 0, folds=4)
