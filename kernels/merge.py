"""Merges softmax attention over disjoint sets of keys into one over their union, in log space.

out = sum_b exp(lse_b - lse) out_b with lse = logsumexp_b lse_b, exact up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["merge"]


def merge(
    outs: Sequence[torch.Tensor], lses: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge branches: outs [B, H, N, D] with their log-sum-exp lses [B, H, N].

    A branch that saw no key has lse = -inf and any finite out there. Returns (out, lse).
    """
    if len(outs) != len(lses) or not outs:
        raise ValueError(f"merge needs one lse per out, got {len(outs)} outs, {len(lses)} lses")
    if len(outs) == 1:
        return outs[0], lses[0]
    stacked = torch.stack(tuple(lses))
    # where no branch saw a key every weight is exp(-inf - 0) = 0
    top = stacked.detach().amax(0)
    top = top.masked_fill(top == -torch.inf, 0.0)
    weights = (stacked - top).exp()
    total = weights.sum(0)
    weights = weights / total.masked_fill(total == 0, 1.0)
    merged = outs[0] * weights[0].unsqueeze(-1)
    for out, weight in zip(outs[1:], weights[1:], strict=True):
        merged.addcmul_(out.to(merged.dtype), weight.unsqueeze(-1))
    return merged.to(outs[0].dtype), total.log() + top
