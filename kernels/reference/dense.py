"""The oracle: softmax(q k^T scale + bias) v with every score in memory, in float32 or wider."""

from __future__ import annotations

import torch

__all__ = ["masked_softmax", "reference_softmax"]


def masked_softmax(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q [B, H, N, D], k and v [B, H, M, D], bias that broadcasts to [B, H, N, M]: (out, lse)."""
    dtype = q.dtype
    q, k, v = (x.to(torch.promote_types(dtype, torch.float32)) for x in (q, k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    return (scores.softmax(-1) @ v).to(dtype), scores.logsumexp(-1)


def reference_softmax(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: torch.Tensor | None,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense attention; a boolean mask is true where a key is seen, any other adds to the logits."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=torch.float32).masked_fill(
            ~attn_mask, -torch.inf
        )
    return masked_softmax(q, k, v, attn_mask, scale)
