"""Window attention by Triton as a PyTorch operator, with gradients, for torch.compile.

The kernels of local attention, each window a grid of its own. CPU tensors run the torch path of the
same operator, unless Triton interprets its kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..layout import TokenLayout
from . import local_launch, torch_path
from .device import interprets
from .near import cut_windows

__all__ = ["window_attention"]

Pair = tuple[torch.Tensor, torch.Tensor]
Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: TokenLayout,
    window_size: Sequence[int],
    shift: Sequence[int],
    wrap: bool,
    scale: float | None,
) -> Pair:
    """out [B, H, N, D] and lse [B, H, N] of the operator of this name."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    shift = cut_windows(window_size, shift, layout.grid).steps
    if not wrap or not any(shift):
        return _attend(q, k, v, layout, window_size, shift, scale)
    back = [-move for move in shift]
    q, k, v = (_rolled(x, layout, back) for x in (q, k, v))
    out, lse = _attend(q, k, v, layout, window_size, (0, 0, 0), scale)
    return _rolled(out, layout, shift), _rolled(lse.unsqueeze(-1), layout, shift).squeeze(-1)


def _attend(q, k, v, layout, window_size, shift, scale) -> Pair:
    windows = (list(window_size), list(shift))
    return _forward(q, k, v, layout.grid_slice.start, list(layout.grid), *windows, scale)


def _rolled(x: torch.Tensor, layout: TokenLayout, shift: Sequence[int]) -> torch.Tensor:
    """x [B, H, N, D] with the grid's tokens moved, those that leave it at the other end."""
    grid = layout.grid_of(x).unflatten(2, layout.grid).roll(tuple(shift), (2, 3, 4))
    return layout.join(grid.flatten(2, 4), layout.context_of(x))


@torch.library.custom_op("foveate::window_forward", mutates_args=(), device_types="cuda")
def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: int,
    grid: Sequence[int],
    window_size: Sequence[int],
    shift: Sequence[int],
    scale: float,
) -> Pair:
    near = cut_windows(window_size, shift, grid)
    return local_launch.forward(q, k, v, start, grid, near, scale)


@_forward.register_kernel("cpu")
def _(q, k, v, start, grid, window_size, shift, scale):
    if interprets():
        near = cut_windows(window_size, shift, grid)
        return local_launch.forward(q, k, v, start, grid, near, scale)
    function = _torch_path(q, start, grid, window_size, shift, scale)
    return torch_path.attend(function, (q, k, v))


@_forward.register_fake
def _(q, k, v, start, grid, window_size, shift, scale):
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    return local_launch.empty_like(q), lse


@torch.library.custom_op("foveate::window_backward", mutates_args=(), device_types="cuda")
def _backward(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    start: int,
    grid: Sequence[int],
    window_size: Sequence[int],
    shift: Sequence[int],
    scale: float,
) -> Triple:
    saved = (grad_out, grad_lse, q, k, v, out, lse)
    near = cut_windows(window_size, shift, grid)
    return local_launch.backward(*saved, start, grid, near, scale)


@_backward.register_kernel("cpu")
def _(grad_out, grad_lse, q, k, v, out, lse, start, grid, window_size, shift, scale):
    if interprets():
        saved = (grad_out, grad_lse, q, k, v, out, lse)
        near = cut_windows(window_size, shift, grid)
        return local_launch.backward(*saved, start, grid, near, scale)
    function = _torch_path(q, start, grid, window_size, shift, scale)
    return torch_path.differentiate(function, (q, k, v), (grad_out, grad_lse))


@_backward.register_fake
def _(grad_out, grad_lse, q, k, v, out, lse, start, grid, window_size, shift, scale):
    return tuple(local_launch.empty_like(x) for x in (q, k, v))


def _save(ctx, inputs, output):
    q, k, v, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output)


def _differentiate(ctx, grad_out, grad_lse):
    grads = _backward(grad_out, grad_lse, *ctx.saved_tensors, *ctx.options)
    return *grads, *[None] * len(ctx.options)


_forward.register_autograd(_differentiate, setup_context=_save)


def _torch_path(q, start, grid, window_size, shift, scale) -> Callable[..., Pair]:
    from ..window import window_attention

    return partial(
        window_attention, layout=torch_path.layout_of(q, start, grid),
        window_size=tuple(window_size), shift=tuple(shift), scale=scale, impl="torch",
        return_lse=True,
    )  # fmt: skip
