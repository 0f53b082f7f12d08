"""Counts of examples for the report: per split and class, and texts that occur more than once."""

from collections import Counter
from typing import Any

from unipelt.data.examples import Examples
from unipelt.data.splits import Splits


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
        "contradictory": sum(len(found) > 1 for found in targets.values()),
    }


def class_counts(examples: Examples) -> dict[str, int]:
    """Examples by the index of their class, or of each of their classes; nothing for other targets. JSON has texts as keys."""
    found: Counter[int] = Counter()
    for target in examples.targets or []:
        if isinstance(target, int):
            found[target] += 1
        elif isinstance(target, list) and all(isinstance(one, int) for one in target):
            found.update(dict(enumerate(target)))
    return {str(index): count for index, count in sorted(found.items())}
