"""Neighbourhood attention by Triton as a PyTorch operator, with gradients, for torch.compile.

The kernels of local attention with boxes for discs. CPU tensors run the torch path of the same
operator, unless Triton interprets its kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..layout import TokenLayout
from . import local_launch, torch_path
from .device import interprets
from .near import boxes

__all__ = ["neighborhood_attention"]

Pair = tuple[torch.Tensor, torch.Tensor]
Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def neighborhood_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: TokenLayout,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    scale: float | None,
) -> Pair:
    """out [B, H, N, D] and lse [B, H, N] of the operator of this name."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    box = (list(kernel_size), list(dilation), list(is_causal))
    return _forward(q, k, v, layout.grid_slice.start, list(layout.grid), *box, scale)


@torch.library.custom_op("foveate::neighborhood_forward", mutates_args=(), device_types="cuda")
def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: int,
    grid: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
) -> Pair:
    near = boxes(kernel_size, dilation, is_causal)
    return local_launch.forward(q, k, v, start, grid, near, scale)


@_forward.register_kernel("cpu")
def _(q, k, v, start, grid, kernel_size, dilation, is_causal, scale):
    if interprets():
        near = boxes(kernel_size, dilation, is_causal)
        return local_launch.forward(q, k, v, start, grid, near, scale)
    function = _torch_path(q, start, grid, kernel_size, dilation, is_causal, scale)
    return torch_path.attend(function, (q, k, v))


@_forward.register_fake
def _(q, k, v, start, grid, kernel_size, dilation, is_causal, scale):
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    return local_launch.empty_like(q), lse


@torch.library.custom_op("foveate::neighborhood_backward", mutates_args=(), device_types="cuda")
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
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
) -> Triple:
    saved = (grad_out, grad_lse, q, k, v, out, lse)
    return local_launch.backward(
        *saved, start, grid, boxes(kernel_size, dilation, is_causal), scale
    )


@_backward.register_kernel("cpu")
def _(
    grad_out, grad_lse, q, k, v, out, lse, start, grid, kernel_size, dilation, is_causal, scale
):  # fmt: skip
    if interprets():
        saved = (grad_out, grad_lse, q, k, v, out, lse)
        near = boxes(kernel_size, dilation, is_causal)
        return local_launch.backward(*saved, start, grid, near, scale)
    function = _torch_path(q, start, grid, kernel_size, dilation, is_causal, scale)
    return torch_path.differentiate(function, (q, k, v), (grad_out, grad_lse))


@_backward.register_fake
def _(
    grad_out, grad_lse, q, k, v, out, lse, start, grid, kernel_size, dilation, is_causal, scale
):  # fmt: skip
    return tuple(local_launch.empty_like(x) for x in (q, k, v))


def _save(ctx, inputs, output):
    q, k, v, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output)


def _differentiate(ctx, grad_out, grad_lse):
    grads = _backward(grad_out, grad_lse, *ctx.saved_tensors, *ctx.options)
    return *grads, *[None] * len(ctx.options)


_forward.register_autograd(_differentiate, setup_context=_save)


def _torch_path(q, start, grid, kernel_size, dilation, is_causal, scale) -> Callable[..., Pair]:
    from ..neighborhood import neighborhood_attention

    return partial(
        neighborhood_attention, layout=torch_path.layout_of(q, start, grid),
        kernel_size=tuple(kernel_size), dilation=tuple(dilation), is_causal=tuple(is_causal),
        scale=scale, impl="torch", return_lse=True,
    )  # fmt: skip
