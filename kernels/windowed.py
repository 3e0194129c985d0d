"""Linear attention weights phi(q) . phi(k) over a window of keys, as sums that are not normalised.

It takes the place of `partial_attention` in `tiled_attention`: features instead of queries and
keys, a mask instead of a bias, and the sum of the weights instead of the log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.autograd.function import once_differentiable

__all__ = ["windowed_sums"]

# weights held at once
_MAX_WEIGHTS = 1 << 22


def windowed_sums(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    scale: None = None,
    empty_rows: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """sum_j w_ij v_j [X, Y, M, D] and sum_j w_ij [X, Y, M] with w = (q k^T) mask.

    q [X, Y, M, E] and k [X, Y, L, E] are features, v [X, Y, L, D], mask [M, L] of 0 and 1. Weights
    are held in pieces and made again for the gradient.
    """
    return _Windowed.apply(q, k, v, mask)


class _Windowed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, mask):
        ctx.save_for_backward(q, k, v, mask)
        ctx.set_materialize_grads(False)
        out, total = q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3])
        for x in _pieces(q, k):
            weights = (q[x] @ k[x].mT).mul_(mask)
            out[x], total[x] = weights @ v[x], weights.sum(-1)
        return out, total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_total):
        q, k, v, mask = ctx.saved_tensors
        if grad_out is None:
            grad_out = q.new_zeros(*q.shape[:3], v.shape[3])
        if grad_total is None:
            grad_total = q.new_zeros(q.shape[:3])
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
        for x in _pieces(q, k):
            weights = q[x] @ k[x].mT * mask
            grad = (grad_out[x] @ v[x].mT + grad_total[x].unsqueeze(-1)) * mask
            grads[0][x], grads[1][x] = grad @ k[x], grad.mT @ q[x]
            grads[2][x] = weights.mT @ grad_out[x]
        return *grads, None


def _pieces(q: torch.Tensor, k: torch.Tensor) -> Iterator[tuple[int, slice]]:
    """Places in X and runs of Y that keep the weights of a piece below the limit.

    Windows that overlap in memory are one batch of matrices only along Y: over X too, they would be
    copied out.
    """
    outer, tiles, rows, _ = q.shape
    step = max(1, _MAX_WEIGHTS // (rows * k.shape[2]))
    for x in range(outer):
        for y in range(0, tiles, step):
            yield x, slice(y, y + step)
