"""Flash attention with split keys as a PyTorch operator, with gradients, for torch.compile.

Right for few queries over many keys (context queries over a whole sequence, agents over tokens) and
for many queries over few. CPU tensors run the torch path of the same operator, unless Triton
interprets its kernels.
"""

import torch

from ..partial import partial_backward, partial_forward
from . import flash_backward, flash_forward
from .device import interprets, why_not_tensors

__all__ = ["flash_attention", "why_not"]

Pair = tuple[torch.Tensor, torch.Tensor]
Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def flash_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> Pair:
    """out [B, H, M, D] and lse [B, H, M] of q [B, H, M, D] over k, v [B, H, L, D].

    `bias` [L] adds to the natural logits of every query; -inf hides a key, and where all are hidden
    out = 0 and lse = -inf. Raises NotImplementedError with the text of `why_not` on a GPU.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if (q.device.type != "cpu" or interprets()) and (reason := why_not(q, k, v, bias, scale)):
        raise NotImplementedError(f"flash attention: {reason}")
    if bias is not None:
        bias = bias.to(torch.promote_types(q.dtype, torch.float32))
    return _forward(q, k, v, bias, scale)


def why_not(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
) -> str:
    """Why the kernels cannot take this call; empty when they can."""
    if q.shape[0] * q.shape[1] > 65535:
        return f"{q.shape[0] * q.shape[1]} pairs of batch entry and head, at most 65535"
    if bias is not None and bias.shape != k.shape[2:3]:
        return f"bias {tuple(bias.shape)}, needs one number per key, {tuple(k.shape[2:3])}"
    if bias is not None and bias.requires_grad:
        return "bias needs a gradient"
    return why_not_tensors(q, k, v, scale=scale)


@torch.library.custom_op("foveate::flash_forward", mutates_args=(), device_types="cuda")
def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, scale: float
) -> Pair:
    return flash_forward.forward(q, k, v, bias, scale)


@_forward.register_kernel("cpu")
def _(q, k, v, bias, scale):
    if interprets():
        return flash_forward.forward(q, k, v, bias, scale)
    rows = None if bias is None else bias.unsqueeze(0)
    out, lse = partial_forward(q, k, v, rows, scale, empty_rows=bias is not None)
    return torch.empty_like(q).copy_(out), lse.contiguous()


@_forward.register_fake
def _(q, k, v, bias, scale):
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    return torch.empty_like(q), lse


@torch.library.custom_op("foveate::flash_backward", mutates_args=(), device_types="cuda")
def _backward(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
) -> Triple:
    return flash_backward.backward(grad_out, grad_lse, q, k, v, bias, out, lse, scale)


@_backward.register_kernel("cpu")
def _(grad_out, grad_lse, q, k, v, bias, out, lse, scale):
    if interprets():
        return flash_backward.backward(grad_out, grad_lse, q, k, v, bias, out, lse, scale)
    rows = None if bias is None else bias.unsqueeze(0)
    return partial_backward(grad_out, grad_lse, q, k, v, rows, out, lse, scale)


@_backward.register_fake
def _(grad_out, grad_lse, q, k, v, bias, out, lse, scale):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx, inputs, output):
    q, k, v, bias, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, bias, *output)


def _differentiate(ctx, grad_out, grad_lse):
    return *_backward(grad_out, grad_lse, *ctx.saved_tensors, ctx.scale), None, None


_forward.register_autograd(_differentiate, setup_context=_save)
