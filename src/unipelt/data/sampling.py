"""How rows are drawn: in an order that a seed gives, groups whole, and classes in their shares where that is asked."""

from collections import Counter, deque
from collections.abc import Sequence
from heapq import heappop, heappush
from random import Random

from unipelt.data.task import Examples


def shuffled(length: int, seed: int) -> list[int]:
    """Indices ordered by `random.Random(seed).random()`, the one stream that Python promises never to change."""
    stream = Random(seed)
    keys = [stream.random() for _ in range(length)]
    return sorted(range(length), key=keys.__getitem__)


def bundles(rows: Examples, seed: int) -> list[list[int]]:
    """Rows by group, or each alone, in the seed's order, a group where its first row stands."""
    found: dict[str | int, list[int]] = {}
    for index in shuffled(len(rows), seed):
        found.setdefault(index if rows.groups is None else rows.groups[index], []).append(index)
    return list(found.values())


def commonest(labels: Sequence[float], bundle: list[int]) -> float:
    """The class of a bundle."""
    return Counter(labels[index] for index in bundle).most_common(1)[0][0]


def ordered(rows: Examples, seed: int, stratify: bool) -> list[int]:
    """Indices as the seed shuffles them, each group's one after the other; stratify: its classes spread evenly."""
    found = bundles(rows, seed)
    if stratify:
        found = spread(found, [commonest(rows.labels or [], bundle) for bundle in found])
    return [index for bundle in found for index in bundle]


def spread(found: list[list[int]], classes: Sequence[float]) -> list[list[int]]:
    """Every beginning has each class's share of it, to within one row.

    Of its n rows, the i-th may stand from i - 1 n-ths of the way and shall by i n-ths; of those that may, the one that shall
    first stands next. A group is in the place of its middle row.       Tijdeman 1980, Discrete Mathematics 32, the chairman assignment
    """
    sizes: Counter = Counter()
    middles = []
    for bundle, label in zip(found, classes):
        middles.append(sizes[label] + len(bundle) / 2)
        sizes[label] += len(bundle)
    shares = [max(sizes[label], 2) for label in classes]  # an only row: in the first half, which trains
    windows = [((middle - 0.5) / share, (middle + 0.5) / share) for middle, share in zip(middles, shares)]
    waiting = deque(sorted(range(len(found)), key=windows.__getitem__))
    ready: list[tuple[float, int]] = []
    placed: list[list[int]] = []
    rows = 0
    while waiting or ready:
        while waiting and (not ready or windows[waiting[0]][0] < (rows + 1) / sizes.total()):
            heappush(ready, (windows[waiting[0]][1], waiting.popleft()))
        placed.append(found[heappop(ready)[1]])
        rows += len(placed[-1])
    return placed


def cut(order: list[int], groups: list[str] | None, k: int, whole: bool) -> tuple[list[int], list[int]]:
    """The first k rows and the others. The group at the cut is one of the others' where `whole`, else the rest of it of neither."""
    if groups is None:
        return order[:k], order[k:]
    if whole:
        k = [groups[index] for index in order].index(groups[order[k]])
    return order[:k], [index for index in order[k:] if not k or groups[index] != groups[order[k - 1]]]


def quotas(sizes: Counter, wanted: int) -> Counter:
    """Largest remainders: each class gives ⌊wanted · its share⌋ rows, then those nearest to one more; never its last."""
    exact = {label: wanted * size / sizes.total() for label, size in sizes.items()}
    quota = Counter({label: int(one) for label, one in exact.items()})
    for label in sorted(sizes, key=lambda label: (quota[label] - exact[label], label)):
        if sum(quota.values()) < wanted and quota[label] < sizes[label] - 1:
            quota[label] += 1
    return quota
