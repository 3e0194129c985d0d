"""The oracles of linear attention and of a window with a linear far field: all pairs at once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..layout import TokenLayout
from .dense import masked_softmax

__all__ = ["reference_hybrid", "reference_linear"]

Map = Callable[[torch.Tensor], torch.Tensor]


def reference_linear(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: TokenLayout,
    phi_q: Map,
    phi_k: Map,
    eps: float,
    affine: bool,
    rank_augment: bool,
    scale: float | None,
) -> torch.Tensor:
    """q, k, v [B, H, N, D]: grid rows by their weight of every key, context rows dense softmax."""
    logit_scale = q.shape[-1] ** -0.5 if scale is None else scale
    queries, keys = phi_q(_wide(layout.grid_of(q))), phi_k(_wide(k))
    if rank_augment:
        logits = queries.mean(2, keepdim=True) @ keys.mT * logit_scale  # [B, H, 1, N]
        keys = keys * logits.softmax(-1).mT * k.shape[2]
    scores = queries @ keys.mT
    if affine:
        weights = (1 + logit_scale * (scores - scores.mean(-1, keepdim=True))) / k.shape[2]
    else:
        weights = scores / k.shape[2] / (scores.mean(-1, keepdim=True) + eps)
    context, _ = masked_softmax(layout.context_of(q), k, v, None, scale)
    return layout.join((weights @ _wide(v)).to(q.dtype), context)


def reference_hybrid(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: TokenLayout,
    radius: int,
    gate: torch.Tensor,
    phi_q: Map,
    phi_k: Map,
    scale: float | None,
) -> torch.Tensor:
    """Weights exp(logit) on context and disc, gate phi(q) . phi(k) on the rest; gate [H, 1, 1]."""
    logit_scale = q.shape[-1] ** -0.5 if scale is None else scale
    where = layout.coords(q.device)
    hidden = (where[:, None] - where).square().sum(-1) >= radius**2
    logits = _wide(layout.grid_of(q)) @ _wide(k).mT * logit_scale
    far = torch.zeros_like(logits)
    features = phi_q(_wide(layout.grid_of(q))) @ phi_k(_wide(layout.grid_of(k))).mT
    far[..., layout.grid_slice] = features * hidden * gate
    logits[..., layout.grid_slice].masked_fill_(hidden, -torch.inf)
    top = logits.amax(-1, keepdim=True)
    weights = (logits - top).exp() + far * (-top).exp()
    out = weights / weights.sum(-1, keepdim=True) @ _wide(v)
    context, _ = masked_softmax(layout.context_of(q), k, v, None, scale)
    return layout.join(out.to(q.dtype), context)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
