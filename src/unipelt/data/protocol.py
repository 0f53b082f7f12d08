"""The low-resource protocol of UniPELT.          Mao et al. 2022, arXiv:2110.07577, §4.1

Train is shuffled by the data seed; the first k rows train, the next rows choose the checkpoint, GLUE's own
validation set is the test set. A data set without a test set gives up a fifth of its rows first.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from unipelt.data.sampling import bundles, commonest, cut, ordered, quotas
from unipelt.data.task import Dataset, Examples, Task, class_counts
from unipelt.errors import DataError

FEWEST = 10  # rows of a validation or test set: with fewer, one row moves a metric by over a tenth
LARGEST_TEST = 1000  # rows held out of a data set that has no test set, as many as the protocol's validation set
TEST_SEED = 0  # one test set for every data seed, as GLUE has


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What one run trains on, chooses its checkpoint by, and is judged on."""

    task: Task
    train: Examples
    validation: Examples
    test: Examples
    notes: tuple[str, ...]
    """what departs from the protocol, one sentence each"""

    @property
    def parts(self) -> dict[str, Examples]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @cached_property
    def prints(self) -> dict[str, dict[str, int | str]]:
        """Number and fingerprint of the rows of each part."""
        return {name: {"number": len(rows), "fingerprint": rows.fingerprint()} for name, rows in self.parts.items()}


def split(
    dataset: Dataset, k: int | Literal["all"], seed: int, validation: int = 1000, stratify: bool = False
) -> Splits:
    """k training rows and up to `validation` others; k = "all": all but a tenth of train, at most `validation` and FEWEST at least, and
    what else is of its groups.

    stratify: each class of two rows or more has its share of train and test to within a row, of validation to within two; with
    groups, which stay whole, as far as that can be.
    """
    name = dataset.task.name
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"data seed {seed!r}, expected a whole number from 0")
    if k != "all" and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise DataError(f"--k {k}: expected a whole number from 1, or all")
    if validation < FEWEST:
        raise DataError(
            f"--validation-rows {validation}: expected {FEWEST} or more; with fewer, one row moves a metric by over a tenth"
        )
    notes = [] if dataset.complete or k != "all" else [_subset_note(dataset)]
    _check_classes(dataset)
    if stratify and dataset.task.kind == "regression":
        stratify = False
        notes.append(f"{name} has numbers for labels: --stratify, which is for classes, changes nothing there.")
    pool, test = dataset.train, dataset.test
    if test is None:
        pool, test, note = hold_out(dataset.task, pool, stratify)
        notes.append(note)

    spare = FEWEST if dataset.validation is None else 0  # rows of the pool that cannot train
    if len(pool) <= spare:
        raise DataError(f"{name} has {len(pool)} training rows, expected more than {spare}; add rows")
    wants_all = k == "all" and dataset.validation is None
    if k == "all":
        k = len(pool) - max(spare, min(validation, len(pool) // 10) if spare else 0)
    if k > len(pool) - spare:
        reserved = f", and {spare} of them are kept to choose the checkpoint" if spare else ""
        raise DataError(f"--k {k}: {name} has {len(pool)} training rows{reserved}; expected up to {len(pool) - spare}")
    taken, rest = cut(ordered(pool, seed, stratify), pool.groups, k, wants_all)
    chosen_by = dataset.validation
    if chosen_by is None and not (taken and rest):
        raise DataError(
            f"--group: the {len(pool)} training rows of {name} leave no group to choose the checkpoint; leave out --group{'' if wants_all else ', or take a smaller --k'}"
        )
    train = pool.take(taken)
    _check_sample(dataset, train, seed, wants_all)
    if chosen_by is None:
        chosen_by = pool.take(rest[:validation])
        if wants_all:
            notes.append(f"{len(chosen_by)} training rows of {name} are kept back to choose the checkpoint.")
        elif len(chosen_by) < validation:
            notes.append(f"{len(chosen_by)} rows choose the checkpoint instead of {validation}: {name} has no more.")
    for part, what in ((chosen_by, "validation"), (test, "test")):
        if len(part) < FEWEST:
            notes.append(
                f"{name} has {len(part)} {what} row{'s' * (len(part) > 1)}: one moves a metric by over a tenth."
            )
    notes += _repeats(name, train, chosen_by, test)
    return Splits(task=dataset.task, train=train, validation=chosen_by, test=test, notes=tuple(notes))


def _repeats(name: str, train: Examples, validation: Examples, test: Examples) -> list[str]:
    """How many rows of one split say what a row of another says, or belong to its group."""
    notes = []
    for rows, what, others, whose in (
        (train, "training", test, "test"), (validation, "validation", train, "training"), (validation, "validation", test, "test"),
    ):  # fmt: skip
        held = set(others.texts)
        repeated = sum(text in held for text in rows.texts)
        if repeated:
            notes.append(f"{repeated} {what} rows repeat a {whose} text of {name}; they stay as they are.")
        groups = set(others.groups or ())
        parted = sum(group in groups for group in rows.groups or ())
        if parted:
            notes.append(f"{parted} {what} rows are of a group that has {whose} rows of {name}; they stay as they are.")
    return notes


def hold_out(task: Task, rows: Examples, stratify: bool = False) -> tuple[Examples, Examples, str]:
    """(train, test, note): a fifth of the rows, at most LARGEST_TEST; no text of test stays in train.

    Each class gives its share, groups, which stay whole, where that is asked; none gives its last row; half of all rows stay.
    """
    wanted = max(FEWEST, min(LARGEST_TEST, len(rows) // 5))
    if len(rows) < 3 * FEWEST:
        raise DataError(
            f"{task.name} has {len(rows)} rows and no test set; give a test file, or at least {3 * FEWEST} rows"
        )
    labels: Sequence[float] = rows.labels or [] if task.kind == "classification" else [0] * len(rows)
    shared = labels if stratify or rows.groups is None else [0] * len(rows)
    left, quota, chosen = Counter(labels), quotas(Counter(shared), wanted), set[int]()
    for bundle in bundles(rows, TEST_SEED):
        given, one = Counter(labels[index] for index in bundle), commonest(shared, bundle)
        fits = len(chosen) + len(bundle) <= len(rows) // 2
        if quota[one] > 0 and fits and all(left[label] > count for label, count in given.items()):
            quota.subtract(shared[index] for index in bundle)
            left -= given
            chosen.update(bundle)
    if len(chosen) < FEWEST:
        raise DataError(
            f"{task.name} has no test set, and {len(chosen)} of its {len(rows)} rows can be held out, if half of them and each "
            f"class's last are to train; expected {FEWEST}: give a test file{', or leave out --group' if rows.groups else ''}"
        )
    texts = rows.texts
    held = {texts[index] for index in chosen}
    rest = [index for index in range(len(rows)) if index not in chosen]
    train = [index for index in rest if texts[index] not in held]
    note = f"{len(chosen)} of the {len(rows)} rows of {task.name} are held out as test set."
    if len(train) < len(rest):
        note += f" {len(rest) - len(train)} training rows that repeat a test text are left out."
    return rows.take(train), rows.take(sorted(chosen)), note


def _check_classes(dataset: Dataset) -> None:
    task = dataset.task
    for rows, what in ((dataset.train, "train"), (dataset.validation, "validation"), (dataset.test, "test")):
        if rows is not None and rows.labels is None:
            raise DataError(f"the {what} rows of {task.name} have no labels; name their column with --label")
        if rows is not None and len(rows) == 0:
            raise DataError(f"{task.name} has no {what} rows; expected at least one")
    present = [name for name, count in class_counts(task, dataset.train).items() if count]
    if task.kind == "classification" and len(present) < 2:
        raise DataError(f"every training row of {task.name} is {present[0]!r}; training needs at least two classes")


def _check_sample(dataset: Dataset, train: Examples, seed: int, wants_all: bool) -> None:
    """Every class that the data has must be seen in training."""
    task = dataset.task
    if task.kind == "regression":
        return
    counts = class_counts(task, dataset.train)
    present = sum(count > 0 for count in counts.values())
    if len(train) < present:
        raise DataError(
            f"--k {len(train)}: {task.name} has {present} classes; expected {present} or more, a row of each"
        )
    missed = [name for name, count in class_counts(task, train).items() if not count and counts[name]]
    if missed:
        raise DataError(
            f"seed {seed} draws {len(train)} training rows of {task.name}, none of class {missed[0]!r} "
            f"({counts[missed[0]]} of {len(dataset.train)} rows); add rows of it{'' if wants_all else ', or take a larger --k'}"
        )


def _subset_note(dataset: Dataset) -> str:
    return f"{dataset.task.name} has {len(dataset.train)} training rows, a subset: k = all is not the paper's."
