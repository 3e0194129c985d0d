"""Softmax attention over some of the keys, with the log-sum-exp that merges it with the rest.

One primitive under every operator. It runs the fused kernel PyTorch has for the device and plain
matrix products elsewhere; the gradient is recomputed in pieces, also through the log-sum-exp.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

__all__ = ["partial_attention", "partial_backward", "partial_forward"]

# scores held at once where no fused kernel keeps them out of memory; far below MPS's limit of 2^31
_MAX_SCORES = 1 << 24


def partial_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    empty_rows: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend q [X, Y, M, D] to k, v [X, Y, L, D], any strides; bias [M or 1, L] adds to the logits.

    Returns out [X, Y, M, D] and lse [X, Y, M] (at least float32). The bias may be -inf all along a
    row only with `empty_rows`; that row gives out = 0 and lse = -inf.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    # the fused kernels take any strides but the last, and on the CPU do not check it
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    return _Partial.apply(q, k, v, bias, scale, empty_rows)


class _Partial(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, bias, scale, empty_rows):
        out, lse = partial_forward(q, k, v, bias, scale, empty_rows)
        ctx.save_for_backward(q, k, v, bias, out, lse)
        ctx.scale = scale
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_lse):
        grads = partial_backward(grad_out, grad_lse, *ctx.saved_tensors, ctx.scale)
        return *grads, None, None, None


def partial_forward(q, k, v, bias, scale, empty_rows):
    """`partial_attention` without autograd."""
    out, lse = _forward(q, k, v, bias, scale)
    if empty_rows:
        # the fused kernels differ in what they give for such a row
        dead = bias.amax(-1) == -torch.inf
        out = out.masked_fill(dead.unsqueeze(-1), 0.0)
        lse = lse.masked_fill(dead, -torch.inf)
    return out, lse


def partial_backward(grad_out, grad_lse, q, k, v, bias, out, lse, scale):
    """Gradients of q, k, v; a gradient that comes in may be None."""
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
    shift = grad_lse - (grad_out * out).sum(-1, dtype=lse.dtype)
    grads = (torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v))
    for x, m in _pieces(q, k):
        _backward_piece(q, k, v, bias, lse, shift, grad_out, scale, grads, x, m)
    return grads


def _forward(q, k, v, bias, scale):
    if q.numel() == 0 or k.shape[-2] == 0:
        return torch.zeros_like(q), q.new_full(q.shape[:-1], -torch.inf, dtype=_wide(q))
    if q.device.type == "cpu":
        mask = None if bias is None else bias[None, None]
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, attn_mask=mask, scale=scale
        )
    if q.device.type == "cuda" and q.dtype != torch.float64 and q.shape[-1] % 8 == 0:
        return _cuda(q, k, v, bias, scale)
    return _plain(q, k, v, bias, scale)


def _cuda(q, k, v, bias, scale):
    if bias is not None:
        # the kernel wants rows of the bias to start at multiples of 8
        padded = bias.new_empty(bias.shape[0], -(-bias.shape[1] // 8) * 8, dtype=q.dtype)
        padded[:, : bias.shape[1]] = bias
        bias = padded[:, : bias.shape[1]].expand(*q.shape[:3], bias.shape[1])
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, bias, True, scale=scale
    )
    return out, lse[..., : q.shape[-2]]


def _plain(q, k, v, bias, scale):
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=_wide(q))
    for x, m in _pieces(q, k):
        scores = _scores(q, k, bias, scale, x, m)
        lse[x, :, m] = scores.logsumexp(-1)
        out[x, :, m] = scores.softmax(-1).to(v.dtype) @ v[x]
    return out, lse


def _backward_piece(q, k, v, bias, lse, shift, grad_out, scale, grads, x, m):
    grad_q, grad_k, grad_v = grads
    # a row without keys has lse = -inf and scores = -inf: its probabilities are exp(-inf - 0) = 0
    top = lse[x, :, m].masked_fill(lse[x, :, m] == -torch.inf, 0.0)
    probs = (_scores(q, k, bias, scale, x, m) - top.unsqueeze(-1)).exp()
    grad = grad_out[x, :, m]
    grad_v[x] += probs.to(v.dtype).transpose(-1, -2) @ grad
    grad_scores = probs * ((grad @ v[x].transpose(-1, -2)) + shift[x, :, m].unsqueeze(-1))
    grad_scores = (grad_scores * scale).to(q.dtype)
    grad_q[x, :, m] = grad_scores @ k[x]
    grad_k[x] += grad_scores.transpose(-1, -2) @ q[x, :, m]


def _scores(q, k, bias, scale, x, m):
    scores = (q[x, :, m] @ k[x].transpose(-1, -2)).to(_wide(q)) * scale
    if bias is None:
        return scores
    return scores + (bias[m] if bias.shape[0] > 1 else bias)


def _pieces(q, k):
    """Slices of X and of M that keep the scores of one piece below the limit."""
    outer, tiles, rows, _ = q.shape
    step_m = max(1, min(rows, _MAX_SCORES // (tiles * k.shape[-2])))
    step_x = max(1, _MAX_SCORES // (tiles * k.shape[-2] * step_m))
    for x in range(0, outer, step_x):
        for m in range(0, rows, step_m):
            yield slice(x, x + step_x), slice(m, m + step_m)


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
