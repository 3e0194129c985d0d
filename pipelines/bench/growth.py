"""How cost grows with the number of tokens: the exponent of a power law, by least squares."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

__all__ = ["exponent"]


def exponent(tokens: Sequence[int], seconds: Sequence[float]) -> float | None:
    """b of seconds = a tokens^b, the line through the logarithms; None for fewer than two sizes."""
    if len(set(tokens)) < 2:
        return None
    x, y = [log(n) for n in tokens], [log(s) for s in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    across = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return across / sum((a - mean_x) ** 2 for a in x)
