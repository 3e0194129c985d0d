"""How many keys a query needs and how many the tiles compare it with: pure counts, no tensors."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, product
from typing import NamedTuple

__all__ = ["KeyCount", "mean_within"]


class KeyCount(NamedTuple):
    """Keys per grid query, means: those it may see, and those it is compared with."""

    needed: float
    visited: float


def mean_within(
    sizes: Sequence[int],
    cells: Sequence[int],
    units: Sequence[int],
    reach: int,
    weights: Sequence[int] = (1, 1, 1),
) -> float:
    """Keys, one every `units` tokens, nearer than `reach` between `cells`; mean over tokens.

    The square of a distance along each axis counts `weights` times.
    """
    return _mean_within(*(tuple(axis) for axis in (sizes, cells, units)), reach, tuple(weights))


# the layers of a model ask for the same few windows again and again
@functools.lru_cache(maxsize=256)
def _mean_within(
    sizes: tuple[int, ...],
    cells: tuple[int, ...],
    units: tuple[int, ...],
    reach: int,
    weights: tuple[int, ...],
) -> float:
    *axes, last = [
        [(weight * gap * gap, count) for gap, count in _gaps(*axis)]
        for *axis, weight in zip(sizes, cells, units, weights, strict=True)
    ]
    last.sort()
    squares = [square for square, _ in last]
    within = [0, *accumulate(count for _, count in last)]
    total = 0
    for choice in product(*axes):
        left = reach * reach - sum(square for square, _ in choice)
        total += _prod(count for _, count in choice) * within[bisect_left(squares, left)]
    return total / _prod(sizes)


def _gaps(size: int, cell: int, unit: int) -> list[tuple[int, int]]:
    """(distance, number of token-key pairs) of one axis."""
    tokens = Counter(i // cell for i in range(size))
    keys = Counter(j // cell for j in range(0, size, unit))
    pairs: Counter[int] = Counter()
    for i, j in product(tokens, keys):
        pairs[max(0, (abs(i - j) - 1) * cell + 1)] += tokens[i] * keys[j]
    return list(pairs.items())


def _prod(values) -> int:
    result = 1
    for value in values:
        result *= value
    return result
