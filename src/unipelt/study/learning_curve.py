"""Would more labels help? The recommended method once more, on a quarter and on half of the training examples."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from unipelt.errors import DataError
from unipelt.study.plan import StudyConfig
from unipelt.train.records import RunKey
from unipelt.train.setup import DatasetCache

SHARES = (4, 2)  # of the training examples: one in so many
LEAST = 20  # training examples of a run


def smaller(keys: Sequence[RunKey], study: StudyConfig, cache: DatasetCache) -> list[RunKey]:
    """The runs of a method and learning rate, one per seed, on fewer examples; not where so few leave out a class.

    A run's examples are the first of those that it trains on with all of them, and its test examples are the same.
    """
    found = []
    whole = min((len(cache.splits(study.config(key)).train) for key in keys), default=0)  # folds differ by one
    for fewer in (replace(key, k=whole // part) for key in keys for part in SHARES if whole // part >= LEAST):
        with suppress(DataError):
            cache.splits(study.config(fewer))
            found.append(fewer)
    return found
