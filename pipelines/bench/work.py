"""FLOPs and bytes of an attention call, from the keys that its queries are compared with."""

from __future__ import annotations

from .case import Case

__all__ = ["least_bytes", "num_flops"]


def num_flops(case: Case, keys: float) -> float:
    """FLOPs of both products: `keys` for a grid query, context included; all for a text query."""
    layout = case.layout
    pairs = layout.num_grid * keys + layout.num_context * layout.num_tokens
    return 4.0 * case.batch * case.heads * case.head_dim * pairs


def least_bytes(case: Case) -> float:
    """Q, K and V read once, the result written once."""
    elements = case.batch * case.heads * case.layout.num_tokens * case.head_dim
    return 4.0 * elements * case.dtype.itemsize
