"""Logits that grow with the number of tokens: sqrt(log L / (D log L0)), CLEAR's proportional
attention.

Keeps the entropy of the attention near that of the trained length L0 (arXiv:2412.16112;
arXiv:2306.08645).
"""

from __future__ import annotations

import math

__all__ = ["proportional_scale"]


def proportional_scale(
    scale: float | None, head_dim: int, tokens: int, trained: int | None
) -> float | None:
    """`scale`, or 1 / sqrt(head_dim), times sqrt(log(tokens) / log(trained)).

    trained: None leaves the scale as it is.
    """
    if trained is None:
        return scale
    base = head_dim**-0.5 if scale is None else scale
    return base * math.sqrt(math.log(tokens) / math.log(trained))
