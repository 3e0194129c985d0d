"""Attention over a token grid as a PyTorch operator, with gradients, for torch.compile.

What differs from one to the next is what a query sees, and the torch path that does the same: CPU
tensors take it, unless Triton interprets its kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import local_launch, torch_path
from .device import interprets
from .foveated_rings import Rings
from .near import Near

__all__ = ["grid_op"]

Pair = tuple[torch.Tensor, torch.Tensor]
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Pair]

_QKV = "Tensor q, Tensor k, Tensor v"
_SAVED = f"Tensor grad_out, Tensor grad_lse, {_QKV}, Tensor out, Tensor lse"


def grid_op(
    name: str,
    options: str,
    sight: Callable[..., tuple[Near, Rings]],
    on_torch: Callable[..., Attend],
) -> Callable[..., Pair]:
    """foveate::{name}_forward(q, k, v, start, grid, *options, scale): out [B, H, N, D], lse.

    q, k, v are [B, H, N, D] with the grid (f, h, w) from token `start` on. `options` are typed as
    in an operator's schema. `sight(grid, *options)` is what the kernels take for them, and
    `on_torch(layout, *options, scale)` the same attention by torch, a function of q, k, v.
    """
    rest = f"int start, int[] grid, {options}, float scale"

    @_op(f"{name}_forward", f"({_QKV}, {rest}) -> (Tensor, Tensor)")
    def forward(q, k, v, start, grid, *options):
        if _is_for_torch(q):
            attend = on_torch(torch_path.layout_of(q, start, grid), *options)
            return torch_path.attend(attend, (q, k, v))
        *options, scale = options
        near, rings = sight(grid, *options)
        return local_launch.forward(q, k, v, start, grid, near, scale, rings)

    @_op(f"{name}_backward", f"({_SAVED}, {rest}) -> (Tensor, Tensor, Tensor)")
    def backward(grad_out, grad_lse, q, k, v, out, lse, start, grid, *options):
        if _is_for_torch(q):
            attend = on_torch(torch_path.layout_of(q, start, grid), *options)
            return torch_path.differentiate(attend, (q, k, v), (grad_out, grad_lse))
        *options, scale = options
        near, rings = sight(grid, *options)
        saved = (grad_out, grad_lse, q, k, v, out, lse)
        return local_launch.backward(*saved, start, grid, near, scale, rings)

    def differentiate(ctx, grad_out, grad_lse):
        grads = backward(grad_out, grad_lse, *ctx.saved_tensors, *ctx.options)
        return *grads, *[None] * len(ctx.options)

    forward.register_fake(_fake_forward)
    backward.register_fake(_fake_backward)
    forward.register_autograd(differentiate, setup_context=_save)
    return forward


def _op(name: str, schema: str) -> Callable[[Callable], torch.library.CustomOpDef]:
    return torch.library.custom_op(
        f"foveate::{name}", mutates_args=(), device_types=("cuda", "cpu"), schema=schema
    )


def _is_for_torch(q: torch.Tensor) -> bool:
    return q.device.type == "cpu" and not interprets()


def _fake_forward(q, k, v, *options):
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    return local_launch.empty_like(q), lse


def _fake_backward(grad_out, grad_lse, q, k, v, *saved_and_options):
    return tuple(local_launch.empty_like(x) for x in (q, k, v))


def _save(ctx, inputs, output):
    q, k, v, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output)
