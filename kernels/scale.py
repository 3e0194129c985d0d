"""Logit scale that grows with the sequence: CLEAR's proportional attention (arXiv:2412.16112)."""

from __future__ import annotations

from math import log, sqrt

from .inputs import check_positive

__all__ = ["proportional_scale"]


def proportional_scale(
    head_dim: int, tokens: int, base_tokens: int = 4608, pooled: bool = False
) -> float:
    """sqrt(log_{base_tokens}(tokens) / head_dim); `tokens` counts text and image.

    `base_tokens` is the length the model was trained at (FLUX at 1024 px: 64 * 64 + 512). With
    `pooled`, ten times the tokens, as the official code does for its pooled variant.
    """
    check_positive("head_dim", head_dim)
    check_positive("tokens", tokens, least=2)
    check_positive("base_tokens", base_tokens, least=2)
    return sqrt(log(10 * tokens if pooled else tokens, base_tokens) / head_dim)
