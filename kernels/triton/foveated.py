"""Foveated attention by Triton as a PyTorch operator, with gradients, for torch.compile.

One pass: context, near tokens and every ring of cells go through one softmax in one program. The
loops take the same instructions per score element as they would in kernels of their own, and the
state they share costs a few registers and no spill (docs/kernels.md). As three branches merged by
log-sum-exp, q and a partial output would travel once for each: N D numbers twelve times over memory
instead of four. CPU tensors run the torch path of the same operator, unless Triton interprets its
kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..field import Field
from ..layout import TokenLayout
from . import local_launch, torch_path
from .device import interprets
from .foveated_rings import Rings
from .near import disc

__all__ = ["foveated_attention"]

Pair = tuple[torch.Tensor, torch.Tensor]
Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def foveated_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: TokenLayout,
    radius: int,
    pool: int,
    levels: int,
    mass: bool,
    partition: bool,
    scale: float | None,
) -> Pair:
    """out [B, H, N, D] and lse [B, H, N] of the operator of this name; at most two levels."""
    if partition:
        levels = Field(layout.grid, radius, pool, levels).used_levels
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _forward(
        q, k, v, layout.grid_slice.start, list(layout.grid),
        radius, pool, levels, mass, partition, scale,
    )  # fmt: skip


@torch.library.custom_op("foveate::foveated_forward", mutates_args=(), device_types="cuda")
def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: int,
    grid: Sequence[int],
    radius: int,
    pool: int,
    levels: int,
    mass: bool,
    partition: bool,
    scale: float,
) -> Pair:
    rings = Rings(levels, pool, mass, partition)
    return local_launch.forward(q, k, v, start, grid, disc([radius]), scale, rings)


@_forward.register_kernel("cpu")
def _(q, k, v, start, grid, radius, pool, levels, mass, partition, scale):
    if interprets():
        rings = Rings(levels, pool, mass, partition)
        return local_launch.forward(q, k, v, start, grid, disc([radius]), scale, rings)
    function = _torch_path(q, start, grid, radius, pool, levels, mass, partition, scale)
    return torch_path.attend(function, (q, k, v))


@_forward.register_fake
def _(q, k, v, start, grid, radius, pool, levels, mass, partition, scale):
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    return local_launch.empty_like(q), lse


@torch.library.custom_op("foveate::foveated_backward", mutates_args=(), device_types="cuda")
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
    radius: int,
    pool: int,
    levels: int,
    mass: bool,
    partition: bool,
    scale: float,
) -> Triple:
    saved = (grad_out, grad_lse, q, k, v, out, lse)
    rings = Rings(levels, pool, mass, partition)
    return local_launch.backward(*saved, start, grid, disc([radius]), scale, rings)


@_backward.register_kernel("cpu")
def _(
    grad_out, grad_lse, q, k, v, out, lse,
    start, grid, radius, pool, levels, mass, partition, scale,
):  # fmt: skip
    if interprets():
        saved = (grad_out, grad_lse, q, k, v, out, lse)
        rings = Rings(levels, pool, mass, partition)
        return local_launch.backward(*saved, start, grid, disc([radius]), scale, rings)
    function = _torch_path(q, start, grid, radius, pool, levels, mass, partition, scale)
    return torch_path.differentiate(function, (q, k, v), (grad_out, grad_lse))


@_backward.register_fake
def _(
    grad_out, grad_lse, q, k, v, out, lse,
    start, grid, radius, pool, levels, mass, partition, scale,
):  # fmt: skip
    return tuple(local_launch.empty_like(x) for x in (q, k, v))


def _save(ctx, inputs, output):
    q, k, v, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output)


def _differentiate(ctx, grad_out, grad_lse):
    grads = _backward(grad_out, grad_lse, *ctx.saved_tensors, *ctx.options)
    return *grads, *[None] * len(ctx.options)


_forward.register_autograd(_differentiate, setup_context=_save)


def _torch_path(
    q, start, grid, radius, pool, levels, mass, partition, scale
) -> Callable[..., Pair]:
    from ..foveated import foveated_attention

    return partial(
        foveated_attention, layout=torch_path.layout_of(q, start, grid), radius=radius, pool=pool,
        levels=max(levels, 1), mass=mass, partition=partition, scale=scale, impl="torch",
        return_lse=True,
    )  # fmt: skip
