"""Folds of a cross-validation, by scikit-learn: stratified where examples have classes, and no group or text in two folds."""

import warnings
from collections import Counter
from collections.abc import Sequence

from unipelt.data.examples import Dataset, Examples
from unipelt.errors import DataError


def assign_folds(examples: Examples, classes: Sequence[int] | None, folds: int, seed: int) -> list[int]:
    """The fold of each example, 0 to folds − 1; each seed has another assignment. classes: of each example, or None.

    Kohavi 1995; groups as in scikit-learn's StratifiedGroupKFold.
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    names = examples.groups or examples.keys
    single = len(set(names)) == len(names)
    if classes is not None:
        kind = StratifiedKFold if single else StratifiedGroupKFold
    else:
        kind = KFold if single else GroupKFold
    assignment = [0] * len(examples)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # check_folds has its own message
        parts = kind(folds, shuffle=True, random_state=seed).split(assignment, classes, None if single else names)
        for number, (_, test_indices) in enumerate(parts):
            for index in test_indices:
                assignment[index] = number
    return assignment


def inner_folds(examples: Examples, classes: Sequence[int] | None, folds: int = 5) -> list[int]:
    """The fold of each training example, by which a setting is chosen: fewer folds where the examples are too few."""
    units = len(set(examples.groups or examples.keys))
    if classes is not None:
        most = max(Counter(classes).values())
        classes, units = (classes, min(units, most)) if most > 1 else (None, units)
    return assign_folds(examples, classes, min(folds, units), 0) if units > 1 else [0] * len(examples)


def check_folds(dataset: Dataset, folds: int) -> None:
    """Raises DataError where the examples of a class, or the groups, are too few for so many folds."""
    examples = dataset.train
    units = len(set(examples.groups or examples.keys))
    unit_name = "groups" if examples.groups else "different texts"
    if units < folds:
        raise DataError(f"--folds {folds}: {dataset.name} has {units} {unit_name}; expected {folds} or more")
    for label, count in sorted(Counter(examples.targets if dataset.classes else ()).items()):
        if count < folds:
            assert dataset.classes is not None
            raise DataError(
                f"--folds {folds}: class {dataset.classes[label]!r} of {dataset.name} has {count} examples; expected"
                f" {folds} or more, one per fold; take fewer folds, or --folds 0 for a held-out test set"
            )


def check_classes(dataset: Dataset, numbers: Sequence[int], folds: int) -> None:
    """Raises DataError where a fold has no example of some class."""
    if dataset.classes is None:
        return
    present_pairs = {*zip(numbers, dataset.train.targets or [])}
    for label in sorted(set(dataset.train.targets or [])):
        for fold in range(folds):
            if (fold, label) not in present_pairs:
                raise DataError(
                    f"--folds {folds}: fold {fold + 1} of {dataset.name} has no example of class {dataset.classes[label]!r},"
                    " because groups are not split; take fewer folds, or --folds 0 for a held-out test set"
                )
