"""Train, validation and test examples: the low-resource protocol of UniPELT.          Mao et al. 2022, arXiv:2110.07577, §4.1

The training examples are shuffled by the seed; the first K are the training set, the next ones the validation set; GLUE's own
validation set is the test set. If a data set has no test set, a fifth of its examples (at most 1,000) is held out first, the
same for every seed. Examples of one group are never in two of the sets. A text that two groups share may train and validate;
training examples that repeat a held-out test text are left out.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any, Literal

from unipelt.data.examples import Dataset, Examples
from unipelt.data.folds import assign_folds, check_classes, check_folds
from unipelt.errors import DataError

MIN_EXAMPLES = 10  # validation or test examples: with fewer, one example moves a metric by over a tenth
LARGEST_TEST = 1000  # examples held out of a data set without a test set, as many as the protocol's validation set
TEST_SEED = 0  # one test set for every seed, as GLUE has


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The examples that one run trains on, selects its checkpoint by, and is measured on."""

    train: Examples
    validation: Examples
    test: Examples | None
    """None where every example trains or validates"""
    notes: tuple[str, ...]
    """what departs from the protocol or needs attention, one sentence each"""

    @property
    def parts(self) -> dict[str, Examples]:
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    @cached_property
    def fingerprints(self) -> dict[str, dict[str, int | str]]:
        """Number and fingerprint of the examples of each set."""
        return {name: {"number": len(part), "fingerprint": part.fingerprint} for name, part in self.parts.items()}


def split(
    dataset: Dataset, train_rows: int | Literal["all"], seed: int, validation_rows: int = 1000, stratify: bool = False,
    test_rows: int | None = None, folds: int = 0,
) -> Splits:  # fmt: skip
    """`train_rows` training examples and up to `validation_rows` others; "all": all but a tenth (10 or more) that validates.

    folds: of a cross-validation, in which fold seed % folds is the test set, and each seed // folds has another assignment of folds; 1:
    nothing is tested. test_rows: most test examples, drawn once for all seeds. stratify: each class has its share of each set to within two examples, and one in train at least; groups stay whole.
    Raises DataError where the data set is too small for that.
    """
    name, notes = dataset.name, list(dataset.notes)
    for flag, rows in (("--validation-rows", validation_rows), ("--test-rows", test_rows)):
        if rows is not None and rows < MIN_EXAMPLES:
            few = "with fewer, one example moves a metric by over a tenth"
            raise DataError(f"{flag} {rows}: expected {MIN_EXAMPLES} or more; {few}")
    if test_rows is not None and folds:
        raise DataError("--test-rows: the folds of a cross-validation test every example; leave out one of the two")
    if train_rows == "all" and not dataset.complete:
        notes.append(
            f"{name} has {len(dataset.train)} training examples, a subset of the published data; "
            "results with --train-rows all cannot be compared with the paper's."
        )
    if stratify and dataset.classes is None:
        stratify = False
        notes.append(f"{name} has no single class per example: --stratify changes nothing there.")
    pool, test = dataset.train, dataset.test
    if folds:
        pool, test, note = take_fold(dataset, seed, folds)
        notes.append(note)
    elif test is None:
        pool, test, note = hold_out(dataset, stratify)
        notes.append(note)
    if test is not None and test_rows is not None and test_rows < len(test):
        notes.append(f"{test_rows} of the {len(test)} test examples of {name} are tested, the same for every seed.")
        drawn = shuffled(len(test), TEST_SEED)
        if stratify:
            drawn, _ = first_of(ordered(test, TEST_SEED, test.targets, True)[0], test_rows)
        test = test.take(sorted(drawn[:test_rows]))

    min_validation = MIN_EXAMPLES if dataset.validation is None else 0  # examples of the pool that cannot train
    if len(pool) <= min_validation:
        raise DataError(f"{name} has {len(pool)} training examples, expected more than {min_validation}; add examples")
    count = len(pool) if train_rows == "all" else train_rows
    if train_rows != "all" and count > len(pool) - min_validation:
        reserved = f", and {min_validation} of them are kept for validation" if min_validation else ""
        raise DataError(
            f"--train-rows {count}: {name} has {len(pool)} training examples{reserved}; expected up to {len(pool) - min_validation}"
        )
    groups, fixed = ordered(pool, seed, pool.targets if dataset.classes else None, stratify)
    if train_rows == "all":
        needed = max(min_validation, min(validation_rows, len(pool) // 10)) if min_validation else 0
        taken, rest = last_of(groups, needed, fixed) if needed else ([index for group in groups for index in group], [])
    else:
        taken, rest = first_of(groups, count)
    validation = dataset.validation
    if validation is None and not (taken and rest):
        smaller = "" if train_rows == "all" else ", or take smaller --train-rows"
        raise DataError(
            f"--group-column: the {len(pool)} training examples of {name} leave no group for validation; leave it out{smaller}"
        )
    train = pool.take(taken)
    _check_sample(dataset, train, seed, train_rows == "all")
    if validation is None:
        validation = pool.take(rest[:validation_rows])
        if train_rows == "all":
            notes.append(f"{len(validation)} training examples of {name} are kept for validation.")
        elif len(validation) < validation_rows:
            notes.append(f"{len(validation)} examples validate instead of {validation_rows}: {name} has no more.")
    for part, kind in ((validation, "validation"), (test, "test")):
        if part is not None and len(part) < MIN_EXAMPLES and not (folds and part is test):
            plural = "s" * (len(part) > 1)
            notes.append(f"{name} has {len(part)} {kind} example{plural}: one example moves a metric by over a tenth.")
    notes += _overlaps(name, train, validation, test)
    return Splits(train=train, validation=validation, test=test, notes=tuple(notes))


def take_fold(dataset: Dataset, seed: int, folds: int) -> tuple[Examples, Examples | None, str]:
    """(train, test, note): the fold that the seed names is the test set. Raises DataError where the data has no such folds."""
    examples, name = dataset.train, dataset.name
    if folds == 1:
        return examples, None, f"all {len(examples)} examples of {name} train, but for those that validate."
    if dataset.test is not None:
        raise DataError(f"--folds {folds}: {name} has a test set of its own; leave out --folds, or the test set")
    check_folds(dataset, folds)
    numbers = assign_folds(examples, examples.targets if dataset.classes else None, folds, seed // folds)
    check_classes(dataset, numbers, folds)
    fold = seed % folds
    train = [index for index, number in enumerate(numbers) if number != fold]
    test = [index for index, number in enumerate(numbers) if number == fold]
    note = f"{folds} folds: each of {len(examples)} examples of {name} is tested once, by a model that did not see it."
    return *_without_repeats(examples, train, test), note


def hold_out(dataset: Dataset, stratify: bool = False) -> tuple[Examples, Examples, str]:
    """(train, test, note): a fifth of train, at most LARGEST_TEST; no text of test stays in train.

    Each class gives its share, with groups only where `stratify` asks for it. Raises DataError for fewer than 30 examples.
    """
    name, examples = dataset.name, dataset.train
    if len(examples) < 3 * MIN_EXAMPLES:
        raise DataError(
            f"{name} has {len(examples)} examples and no test set; give a --test file, or at least {3 * MIN_EXAMPLES} examples"
        )
    balanced = stratify or examples.groups is None
    groups, fixed = ordered(examples, TEST_SEED, examples.targets if dataset.classes else None, balanced)
    rest, chosen = last_of(groups, max(MIN_EXAMPLES, min(LARGEST_TEST, len(examples) // 5)), fixed)
    if len(chosen) < MIN_EXAMPLES or not rest:
        raise DataError(
            f"{name} has no test set, and only {len(chosen)} of its {len(examples)} examples can be held out while every class "
            f"keeps a training example; expected {MIN_EXAMPLES}: give a --test file{', or leave out --group-column' if examples.groups else ''}"
        )
    note = f"{len(chosen)} of the {len(examples)} examples of {name} are held out as the test set."
    train, test = _without_repeats(examples, sorted(rest), sorted(chosen))
    if len(train) < len(rest):
        note += f" {len(rest) - len(train)} training examples that repeat a test text are left out."
    return train, test, note


def _without_repeats(examples: Examples, train: Sequence[int], test: Sequence[int]) -> tuple[Examples, Examples]:
    """Both parts, without the training examples that repeat a test text, which two groups may share."""
    tested = {examples.keys[index] for index in test}
    return examples.take([index for index in train if examples.keys[index] not in tested]), examples.take(test)


def shuffled(length: int, seed: int) -> list[int]:
    """Indices ordered by `random.Random(seed).random()`, the one stream that Python promises never to change."""
    stream = Random(seed)
    keys = [stream.random() for _ in range(length)]
    return sorted(range(length), key=keys.__getitem__)


def ordered(
    examples: Examples, seed: int, classes: Sequence[int] | None, stratify: bool
) -> tuple[list[list[int]], int]:
    """Groups of examples in the order of the seed, and how many at the beginning must train. Examples
    of one text are a group too.

    classes: the class of each example; the only group of a class must train. stratify: group i of a class with n stands at
    (i + u) / n of the way, where u in (0, 1) is drawn for each class (systematic sampling), so that each beginning of the order
    has each class's share of it; the first group of every class must train.
    """
    indices_by_name: dict[str, list[int]] = {}
    names = examples.groups or examples.keys
    for index in shuffled(len(examples), seed):
        indices_by_name.setdefault(names[index], []).append(index)
    groups = list(indices_by_name.values())
    if classes is None:
        return groups, 1
    owner = [
        classes[group[0]] if len(group) == 1 else Counter(classes[index] for index in group).most_common(1)[0][0]
        for group in groups
    ]
    sizes: Counter[int] = Counter()
    for group, label in zip(groups, owner):
        sizes[label] += len(group)
    number = Counter(owner)
    stream = Random(seed)
    offset = {label: stream.random() for label in sorted(sizes)}
    before: Counter[int] = Counter()
    positions = []
    for group, label in zip(groups, owner):
        must_train = number[label] == 1 or (stratify and not before[label])
        share = (before[label] + offset[label] * len(group)) / sizes[label] if stratify else 0.0
        positions.append(-1.0 if must_train else share)
        before[label] += len(group)
    order = sorted(range(len(groups)), key=positions.__getitem__)
    return [groups[i] for i in order], max(1, positions.count(-1.0))


def first_of(groups: list[list[int]], count: int) -> tuple[list[int], list[int]]:
    """The first `count` examples, and those behind them; the rest of a group that is cut is dropped."""
    taken: list[int] = []
    for number, group in enumerate(groups):
        taken += group
        if len(taken) >= count:
            return taken[:count], [index for later in groups[number + 1 :] for index in later]
    return taken, []


def last_of(groups: list[list[int]], count: int, fixed: int) -> tuple[list[int], list[int]]:
    """(others, the last groups of together about `count` examples), where the first `fixed` groups are others.

    If every group has more examples, the smallest one.
    """
    chosen: set[int] = set()
    size = 0
    for number in range(len(groups) - 1, fixed - 1, -1):
        if size < count and size + len(groups[number]) <= count + count // 2:
            chosen.add(number)
            size += len(groups[number])
    if not chosen and len(groups) > fixed:
        chosen = {min(range(fixed, len(groups)), key=lambda number: len(groups[number]))}
    others = [index for number, group in enumerate(groups) if number not in chosen for index in group]
    return others, [index for number in sorted(chosen) for index in groups[number]]


def _check_sample(dataset: Dataset, train: Examples, seed: int, everything: bool) -> None:
    """Raise DataError where a class that the data has is not seen in training."""
    if dataset.classes is None:
        return
    counts, drawn = Counter(dataset.train.targets), {*(train.targets or ())}
    if len(train) < len(counts):
        raise DataError(
            f"--train-rows {len(train)}: {dataset.name} has {len(counts)} classes; expected {len(counts)} or more, an example of each"
        )
    for label, count in counts.items():
        if label not in drawn:
            advice = "add --stratify, or more examples of it" if everything else "add --stratify, or more --train-rows"
            raise DataError(
                f"seed {seed} draws {len(train)} training examples of {dataset.name}, none of class "
                f"{dataset.classes[label]!r} ({count} of {len(dataset.train)} examples); {advice}"
            )


def _overlaps(name: str, train: Examples, validation: Examples, test: Examples | None) -> list[str]:
    """Notes on examples of one set whose text or group another set has; possible only if the user gave the sets as files."""
    notes = []
    for part, kind, other, whose in (
        (train, "training", test, "test"), (validation, "validation", train, "training"), (validation, "validation", test, "test"),
    ):  # fmt: skip
        if other is None:
            continue
        texts, groups = {*other.keys}, {*(other.groups or ())}
        repeated = sum(key in texts for key in part.keys)
        if repeated:
            notes.append(f"{repeated} {kind} examples repeat a {whose} text of {name}; they stay as they are.")
        shared = sum(group in groups for group in part.groups or ())
        if shared:
            notes.append(
                f"{shared} {kind} examples are of a group that has {whose} examples of {name}; they stay as they are."
            )
    return notes


def summarise(splits: Splits) -> dict[str, Any]:
    """Exact counts, as JSON: `examples` and `classes` of each part, `repeated`, `shared` and `contradictory`.

    repeated: examples of a part whose text an earlier example of the same part has. shared: test and validation examples
    whose text is one of train. contradictory: texts that occur with different targets, over all parts.
    """
    train = {*splits.train.keys}
    targets: dict[str, set[str]] = {}
    for part in splits.parts.values():
        for key, target in zip(part.keys, part.targets or []):
            targets.setdefault(key, set()).add(repr(target))
    return {
        "examples": {name: len(part) for name, part in splits.parts.items()},
        "classes": {name: class_counts(part) for name, part in splits.parts.items()},
        "repeated": {name: len(part) - len({*part.keys}) for name, part in splits.parts.items()},
        "shared": {
            name: sum(key in train for key in part.keys) for name, part in splits.parts.items() if name != "train"
        },
        "contradictory": sum(len(values) > 1 for values in targets.values()),
    }


def class_counts(examples: Examples) -> dict[str, int]:
    """Examples by the index of their class, or of each of their classes; nothing for other targets. JSON has texts as keys."""
    counts: Counter[int] = Counter()
    for target in examples.targets or []:
        if isinstance(target, int):
            counts[target] += 1
        elif isinstance(target, list) and all(isinstance(value, int) for value in target):
            counts.update(dict(enumerate(target)))
    return {str(index): count for index, count in sorted(counts.items())}
