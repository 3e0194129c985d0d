"""Local attention by Triton as a PyTorch operator, with gradients, for torch.compile.

CPU tensors run the torch path of the same operator, unless Triton interprets its kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..layout import TokenLayout
from . import local_launch, torch_path
from .device import interprets
from .near import Near, disc, ellipsoid

__all__ = ["local_attention"]

Pair = tuple[torch.Tensor, torch.Tensor]
Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def local_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: TokenLayout,
    radius: int | Sequence[int],
    frames_radius: int | None,
    scale: float | None,
) -> Pair:
    """out [B, H, N, D] and lse [B, H, N] of the operator of this name."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    radii = [radius] if isinstance(radius, int) else list(radius)
    start, grid = layout.grid_slice.start, list(layout.grid)
    # without a second frame the ellipsoid is the disc
    frames_radius = frames_radius if grid[0] > 1 else None
    return _forward(q, k, v, start, grid, radii, frames_radius, scale)


@torch.library.custom_op("foveate::local_forward", mutates_args=(), device_types="cuda")
def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: int,
    grid: Sequence[int],
    radii: Sequence[int],
    frames_radius: int | None,
    scale: float,
) -> Pair:
    return local_launch.forward(q, k, v, start, grid, _near(radii, frames_radius), scale)


@_forward.register_kernel("cpu")
def _(q, k, v, start, grid, radii, frames_radius, scale):
    if interprets():
        return local_launch.forward(q, k, v, start, grid, _near(radii, frames_radius), scale)
    function = _torch_path(q, start, grid, radii, frames_radius, scale)
    return torch_path.attend(function, (q, k, v))


@_forward.register_fake
def _(q, k, v, start, grid, radii, frames_radius, scale):
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    return local_launch.empty_like(q), lse


@torch.library.custom_op("foveate::local_backward", mutates_args=(), device_types="cuda")
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
    radii: Sequence[int],
    frames_radius: int | None,
    scale: float,
) -> Triple:
    saved = (grad_out, grad_lse, q, k, v, out, lse)
    return local_launch.backward(*saved, start, grid, _near(radii, frames_radius), scale)


@_backward.register_kernel("cpu")
def _(grad_out, grad_lse, q, k, v, out, lse, start, grid, radii, frames_radius, scale):
    if interprets():
        saved = (grad_out, grad_lse, q, k, v, out, lse)
        return local_launch.backward(*saved, start, grid, _near(radii, frames_radius), scale)
    function = _torch_path(q, start, grid, radii, frames_radius, scale)
    return torch_path.differentiate(function, (q, k, v), (grad_out, grad_lse))


@_backward.register_fake
def _(grad_out, grad_lse, q, k, v, out, lse, start, grid, radii, frames_radius, scale):
    return tuple(local_launch.empty_like(x) for x in (q, k, v))


def _save(ctx, inputs, output):
    q, k, v, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output)


def _differentiate(ctx, grad_out, grad_lse):
    grads = _backward(grad_out, grad_lse, *ctx.saved_tensors, *ctx.options)
    return *grads, *[None] * len(ctx.options)


_forward.register_autograd(_differentiate, setup_context=_save)


def _near(radii: Sequence[int], frames_radius: int | None) -> Near:
    return disc(radii) if frames_radius is None else ellipsoid(radii, frames_radius)


def _torch_path(q, start, grid, radii, frames_radius, scale) -> Callable[..., Pair]:
    from ..local import local_attention

    layout = torch_path.layout_of(q, start, grid)
    radius = radii[0] if len(radii) == 1 else tuple(radii)
    return partial(
        local_attention, layout=layout, radius=radius, frames_radius=frames_radius, scale=scale,
        impl="torch", return_lse=True,
    )  # fmt: skip
