"""Exact dense softmax attention: softmax(q k^T scale + mask) v."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .inputs import HAS_TRITON, check_impl, check_tensors
from .layout import TokenLayout
from .partial import partial_attention
from .reference import reference_softmax

__all__ = ["softmax_attention"]


def softmax_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    layout: TokenLayout | None = None,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
    impl: str | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Dense attention of q [B, H, N, D] to k, v [B, H, M, D]; out [B, H, N, D].

    Without `return_lse` and `impl` this is F.scaled_dot_product_attention of the arguments, bit for
    bit. `layout`, where given, is only checked. With `return_lse`, also lse [B, H, N].
    """
    check_tensors(q, k, v, layout)
    # SDPA is the fastest dense attention of its device, so None is never "triton" here
    impl = "torch" if impl is None else impl
    impl = check_impl(impl, q, lambda: _why_not_triton(q, k, v, attn_mask, scale))
    if impl == "triton":
        from .triton.flash import flash_attention

        out, lse = flash_attention(q, k, v, None, scale)
        return (out, lse) if return_lse else out
    if impl == "reference":
        out, lse = reference_softmax(q, k, v, attn_mask, scale)
        return (out, lse) if return_lse else out
    if not return_lse:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, scale=scale)
    if attn_mask is not None:
        raise NotImplementedError("return_lse with attn_mask: only impl='reference' gives both")
    return partial_attention(q, k, v, None, scale)


def _why_not_triton(q, k, v, attn_mask, scale) -> str:
    if not HAS_TRITON:
        return "triton is not installed"
    if attn_mask is not None:
        return "the kernels take no attn_mask"
    from .triton.flash import why_not

    return why_not(q, k, v, None, scale)
