"""Linear attention: keys and values are summed into one small state that every query reads.

With phi the feature map and means over all N keys (LinFusion, arXiv:2409.02097):

    S = mean_j phi(k_j) v_j^T,    z = mean_j phi(k_j),    out_i = phi(q_i) S / (phi(q_i) . z + eps)

`affine` is InLine's form (arXiv:2412.06590), with rows that sum to 1 without a division:

    out_i = mean_j [1 + scale (phi(q_i) . phi(k_j) - phi(q_i) . z)] v_j

`rank_augment` is RALA's (arXiv:2411.07635): key j counts
N softmax_j(scale mean_i phi(q_i) . phi(k_j)) times. All sums are in float32 or wider.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from .feature_maps import FeatureMap, FeatureMaps, identity_map, map_pair
from .inputs import HAS_TRITON, check_impl, check_number, check_tensors
from .layout import TokenLayout
from .partial import partial_attention
from .reference import reference_linear

__all__ = ["linear_attention", "linear_state", "read_state"]

# elements that go through the feature map at once: within the CPU's cache, few launches elsewhere
_CPU_PIECE = 1 << 17
_DEVICE_PIECE = 1 << 24


def linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    layout: TokenLayout,
    feature_map: FeatureMaps = "elu",
    eps: float = 1e-4,
    affine: bool = False,
    rank_augment: bool = False,
    scale: float | None = None,
    impl: str | None = None,
) -> torch.Tensor:
    """Grid queries of q [B, H, N, D] read one state of all keys, the context too: [B, H, N, D].

    Context queries are dense softmax over every key. `feature_map` is "elu", "relu", "softmax",
    "focused", "hedgehog", with `affine` also "identity", or a callable [B, H, n, D] ->
    [B, H, n, D'] that treats tokens one by one, or a pair of them for queries and keys. `eps` adds
    to the denominator, a mean over keys; `affine` has none. `scale` is that of `affine`,
    `rank_augment` and the context queries; the plain form has no use for it.
    """
    check_tensors(q, k, v, layout)
    phi_q, phi_k = check_linear(feature_map, eps, affine)
    why_not = functools.partial(_why_not_triton, feature_map, affine or rank_augment, q, k, v)
    impl = check_impl(impl, q, why_not)
    if impl == "reference":
        return reference_linear(q, k, v, layout, phi_q, phi_k, eps, affine, rank_augment, scale)
    grid_q = layout.grid_of(q)
    if impl == "triton":
        from .triton.linear import linear_attention as triton_linear

        out = triton_linear(grid_q, k, v, feature_map, eps)
    else:
        out = _attend(phi_q, phi_k, grid_q, k, v, eps, affine, rank_augment, scale)
    if layout.num_context == 0:
        return out
    rest, _ = partial_attention(layout.context_of(q), k, v, None, scale)
    return layout.join(out, rest)


def _attend(phi_q, phi_k, q, k, v, eps, affine, rank_augment, scale):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    weight = _rank_weight(phi_q, phi_k, q, k, scale) if rank_augment else None
    state = linear_state(phi_k, k, v, weight)
    if affine:
        return _read_affine(phi_q, q, *state, _mean(v), scale)
    return read_state(phi_q, q, *state, eps)


def _why_not_triton(feature_map, is_other_form, q, k, v) -> str:
    if not HAS_TRITON:
        return "triton is not installed"
    if is_other_form:
        return "the affine and the rank-augmented form have no kernel"
    from .triton.linear import why_not
    from .triton.linear_maps import FEATURE_MAPS

    if feature_map not in FEATURE_MAPS:
        return f"the kernels' feature maps are {', '.join(FEATURE_MAPS)}"
    return why_not(q, k, v)


def check_linear(
    feature_map: FeatureMaps, eps: float, affine: bool
) -> tuple[FeatureMap, FeatureMap]:
    """The maps of queries and keys, after checking the options that go with them."""
    maps = map_pair(feature_map)
    if not affine and identity_map in maps:
        raise ValueError(
            "feature_map='identity' needs affine=True: negative features have no denominator"
        )
    check_number("eps", eps, least=0)
    return maps


def linear_state(
    phi: FeatureMap, k: torch.Tensor, v: torch.Tensor, weight: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """S [B, H, D', D] and z [B, H, D', 1]: means over the keys of k, v [B, H, N, D].

    `weight` [B, H, N, 1] multiplies phi(k). The states of shards of the keys add up, weighted by
    their tokens.
    """
    products, sums = 0, 0
    for rows in _pieces(k):
        features = phi(_wide(k[:, :, rows]))
        if weight is not None:
            features = features * weight[:, :, rows]
        features = features.mT  # [B, H, D', n]
        products = products + features @ _wide(v[:, :, rows])
        sums = sums + features.sum(-1, keepdim=True)
    return products / k.shape[2], sums / k.shape[2]


def read_state(
    phi: FeatureMap, q: torch.Tensor, products: torch.Tensor, sums: torch.Tensor, eps: float
) -> torch.Tensor:
    """phi(q) S / (phi(q) . z + eps) for q [B, H, M, D], in q's dtype."""

    def read(features: torch.Tensor) -> torch.Tensor:
        return features @ products / (features @ sums + eps)

    return _each(phi, q, read)


def _read_affine(phi, q, products, sums, mean_v, scale):
    centred = (products - sums @ mean_v) * scale
    return _each(phi, q, lambda features: features @ centred + mean_v)


def _rank_weight(phi_q, phi_k, q, k, scale):
    """RALA's weight of each key, mean 1: [B, H, N, 1]."""
    pieces = [phi_q(_wide(q[:, :, rows])).sum(2) for rows in _pieces(q)]
    mean_q = (sum(pieces) / q.shape[2]).unsqueeze(-1)
    logits = [phi_k(_wide(k[:, :, rows])) @ mean_q for rows in _pieces(k)]
    return (torch.cat(logits, 2) * scale).softmax(2) * k.shape[2]


def _each(phi, q, read):
    """`read` of the features of q, piece by piece, in q's dtype."""
    pieces = list(_pieces(q))
    if len(pieces) == 1:
        return read(phi(_wide(q))).to(q.dtype)
    out = torch.empty_like(q)
    for rows in pieces:
        out[:, :, rows] = read(phi(_wide(q[:, :, rows])))
    return out


def _pieces(x: torch.Tensor) -> Iterator[slice]:
    """Runs of tokens of x [B, H, N, D] to work on at a time."""
    tokens = x.shape[2]
    most = _CPU_PIECE if x.device.type == "cpu" else _DEVICE_PIECE
    # autograd keeps the features of every piece, so it gains nothing from them
    step = tokens if torch.is_grad_enabled() else most // (x.shape[0] * x.shape[1] * x.shape[3])
    step = max(64, step)
    return (slice(start, min(start + step, tokens)) for start in range(0, tokens, step))


def _mean(v: torch.Tensor) -> torch.Tensor:
    return v.mean(2, keepdim=True, dtype=torch.promote_types(v.dtype, torch.float32))


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
