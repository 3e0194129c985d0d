"""Shared by the operator tests: seeded tensors, dense attention in plain formulas, tolerances."""

from fractions import Fraction
from itertools import product

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# float32 against the oracle, as everywhere in the suite
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}
FLOAT64 = {"rtol": 1e-10, "atol": 1e-12}


def make_qkv(layout, heads=2, dim=16, batch=1, dtype=torch.float64, requires_grad=False):
    """Random q, k, v [batch, heads, N, dim] for a layout."""
    shape = (batch, heads, layout.num_tokens, dim)
    return [torch.randn(shape, dtype=dtype, requires_grad=requires_grad) for _ in range(3)]


def dense(q, k, v, visible=None, scale=None):
    """softmax over the visible keys, in plain formulas."""
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) * (
        q.shape[-1] ** -0.5 if scale is None else scale
    )
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return torch.einsum("bhnm,bhmd->bhnd", scores.softmax(-1), v)


def ellipsoid_mask(layout, radius, frames_radius):
    """What local attention on a video sees, [N, N], in exact fractions."""
    radii = (frames_radius, radius, radius)
    inside = torch.empty(layout.grid, dtype=torch.bool)
    for gaps in product(*map(range, layout.grid)):
        squares = (Fraction(gap, most) ** 2 for gap, most in zip(gaps, radii, strict=True))
        inside[gaps] = sum(squares) < 1
    where = layout.coords()
    visible = torch.ones(layout.num_tokens, layout.num_tokens, dtype=torch.bool)
    gaps = (where[:, None] - where).abs().unbind(-1)
    visible[layout.grid_slice, layout.grid_slice] = inside[gaps]
    return visible


class LargestTensor(TorchDispatchMode):
    """Notes the most elements of any storage an operation returns, and the bytes of new ones."""

    elements = 0
    new_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {x.untyped_storage().data_ptr() for x in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for leaf in _tensors(result):
            storage = leaf.untyped_storage()
            self.elements = max(self.elements, storage.nbytes() // leaf.element_size())
            self.new_bytes += 0 if storage.data_ptr() in given else storage.nbytes()
        return result


class NoFloat64(TorchDispatchMode):
    """A device without float64, as MPS is."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if any(leaf.dtype == torch.float64 for leaf in _tensors(result)):
            raise TypeError(f"{func} makes a float64 tensor")
        return result


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
