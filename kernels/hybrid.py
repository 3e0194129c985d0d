"""Hybrid attention: softmax over the context and a disc, gated linear attention over the rest.

With s the logits, phi the feature maps and gamma >= 0 the gate of a head:

    out_i = (sum_near exp(s_ij) v_j + gamma sum_far phi(q_i) . phi(k_j) v_j)
          / (sum_near exp(s_ij)     + gamma sum_far phi(q_i) . phi(k_j))

LoLCATs (arXiv:2410.10254, Sec. 3.3) does this along a causal sequence, with the gate on the window.
Here near is the disc of `local_attention`, far every other grid token, so that near and far
partition the keys; the sums of the disc's linear weights are taken out of the global state. Weights
are true exponentials, not relative to a row's maximum, so gamma means the same in every row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .branches import answer, axis_order, from_axes, to_axes
from .feature_maps import FeatureMaps
from .inputs import check_impl, check_positive, check_tensors
from .layout import TokenLayout
from .linear import check_linear, linear_state
from .local import disc
from .reference import reference_hybrid
from .tiles import Axis, tile_shape, tiled_attention, within
from .windowed import windowed_sums

__all__ = ["hybrid_attention"]

# a far sum below this part of the global one is rounding
_LEAST_FAR = 1e-6
_TINY = 1e-30
# exp of it is finite in float32
_MOST_EXPONENT = 80.0


def hybrid_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    layout: TokenLayout,
    radius: int = 8,
    gate: float | torch.Tensor = 1.0,
    feature_map: FeatureMaps = "hedgehog",
    scale: float | None = None,
    impl: str | None = None,
) -> torch.Tensor:
    """Attend grid queries of q, k, v [B, H, N, D] to context, disc and far field: [B, H, N, D].

    `gate` is one number or one per head [H]; negative entries count as 0. Where it is 0 the output
    is that of `local_attention`, bit for bit, and a gradient still reaches it. Context queries are
    dense softmax over every key. `feature_map` as in `linear_attention`, positive.
    """
    check_tensors(q, k, v, layout)
    check_positive("radius", radius)
    phi_q, phi_k = check_linear(feature_map, 0.0, affine=False)
    gate = _checked_gate(gate, q)
    if check_impl(impl) == "reference":
        return reference_hybrid(q, k, v, layout, radius, gate, phi_q, phi_k, scale)
    grid = [layout.grid_of(x) for x in (q, k, v)]
    branches = [disc(*grid, layout.grid, radius, scale)]
    out, lse = answer(q, k, v, layout, branches, scale, return_lse=True)
    if sum((size - 1) ** 2 for size in layout.grid) < radius**2:
        return out
    wide = torch.promote_types(q.dtype, torch.float32)
    features = phi_q(grid[0].to(wide)), phi_k(grid[1].to(wide))
    far = _far_sums(*features, grid[2].to(wide), layout.grid, radius)
    near = layout.grid_of(out), lse[..., layout.grid_slice]
    joined = _add_far(*near, *far, gate)
    return joined if layout.num_context == 0 else layout.join(joined, layout.context_of(out))


def _checked_gate(gate: float | torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The gate as [H, 1, 1], not negative, float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    gate = torch.as_tensor(gate, device=q.device, dtype=wide)
    if gate.dim() > 1 or gate.numel() not in (1, q.shape[1]):
        raise ValueError(
            f"gate must be a number or one per head [{q.shape[1]}], got {tuple(gate.shape)}"
        )
    # at exactly 0 clamp_min lets the gradient through, where relu would not
    return gate.clamp_min(0).expand(q.shape[1]).view(-1, 1, 1)


def _far_sums(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: tuple[int, int, int], radius: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear sums over the keys outside each disc: of v [B, H, n, D], and of 1 [B, H, n, 1]."""
    products, sums = (x * k.shape[2] for x in linear_state(lambda x: x, k, v))

    def mask(queries: Sequence[torch.Tensor], keys: Sequence[torch.Tensor]) -> torch.Tensor:
        return within(queries, keys, (1, 1, 1), radius).to(q.dtype)

    sizes = [grid[axis] for axis in axis_order(grid)]
    axes = [Axis(*both, radius - 1) for both in zip(sizes, tile_shape(sizes), strict=True)]
    qkv = (to_axes(x, grid) for x in (q, k, v))
    near, near_total = tiled_attention(*qkv, axes, mask, attend=windowed_sums)
    total = q @ sums
    far_total = total - from_axes(near_total, grid).unsqueeze(-1)
    least = _LEAST_FAR * total.detach() + _TINY
    return q @ products - from_axes(near, grid), far_total.maximum(least)


def _add_far(out, lse, far, far_total, gate):
    """Merge the window's out and lse with gated sums, by weights relative to the larger mass."""
    lse, log_far = lse.unsqueeze(-1), far_total.log()
    top = torch.maximum(lse, log_far + gate.log()).detach()
    window = (lse - top).exp()
    linear = gate * (log_far - top).clamp_max(_MOST_EXPONENT).exp()
    share = linear / (window + linear)
    near_share = window / (window + linear)
    return (out * near_share + far / far_total * share).to(out.dtype)
