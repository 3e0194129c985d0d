"""FLOPs and bytes of an attention call, from the keys that its queries are compared with."""

from __future__ import annotations

from .case import Case

__all__ = ["least_bytes", "num_flops"]


def num_flops(case: Case, keys: float, backward: bool = False) -> float:
    """FLOPs of both products: `keys` for a grid query, context included; all for a text query.

    The backward pass adds five products: the scores again, and one for each of the gradients of the
    probabilities, queries, keys and values.
    """
    layout = case.layout
    pairs = layout.num_grid * keys + layout.num_context * layout.num_tokens
    products = 7 if backward else 2
    return 2.0 * products * case.batch * case.heads * case.head_dim * pairs


def least_bytes(case: Case, backward: bool = False) -> float:
    """Q, K and V read once, the result written once.

    The backward pass reads them and the result's gradient, and writes three gradients.
    """
    elements = case.batch * case.heads * case.layout.num_tokens * case.head_dim
    tensors = 12 if backward else 4
    return float(tensors * elements * case.dtype.itemsize)
