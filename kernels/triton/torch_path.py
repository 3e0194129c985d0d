"""The torch path of an attention operator as the kernels' operators need it: their layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from ..layout import Segment, TokenLayout
from .local_launch import empty_like

__all__ = ["attend", "differentiate", "layout_of"]

Pair = tuple[torch.Tensor, torch.Tensor]
Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def layout_of(x: torch.Tensor, start: int, grid: Sequence[int]) -> TokenLayout:
    """A layout of x [B, H, N, D] with the grid's tokens from `start` on; the rest is context."""
    after = x.shape[2] - start - grid[0] * grid[1] * grid[2]
    return TokenLayout(start, tuple(grid), extra=(Segment(after),) if after else ())


def attend(function: Callable[..., Pair], tensors: Sequence[torch.Tensor]) -> Pair:
    """out, laid out as the kernels do, and lse."""
    out, lse = function(*tensors)
    return empty_like(out).copy_(out), lse.contiguous()


def differentiate(
    function: Callable[..., Pair], tensors: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]
) -> Triple:
    """Gradients of the tensors; in a thread, as an operator's own code runs below autograd."""

    def gradients():
        leaves = [x.detach().requires_grad_() for x in tensors]
        return torch.autograd.grad(function(*leaves), leaves, grads)

    with ThreadPoolExecutor(1) as pool:
        return tuple(empty_like(x).copy_(x) for x in pool.submit(gradients).result())
