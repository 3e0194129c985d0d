"""How many keys a query needs and how many the tiles compare it with: pure counts, no tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
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
    axes = [_gaps(*axis) for axis in zip(sizes, cells, units, strict=True)]
    total = 0
    for choice in product(*axes):
        squares = (w * gap * gap for w, (gap, _) in zip(weights, choice, strict=True))
        if sum(squares) < reach * reach:
            total += _prod(count for _, count in choice)
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
