"""Neighbourhood attention: a grid token sees the context and a box of grid tokens around it.

The box holds `kernel_size` tokens, `dilation` apart; at a border it moves inward, so that it is
never cut (Neighborhood Attention Transformer, arXiv:2204.07143; dilated, arXiv:2209.15001; NATTEN's
causal axes look back alone and are cut at the start).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import NamedTuple

import torch

from .branches import Branch, answer, axis_order, from_axes, to_axes
from .counts import KeyCount
from .inputs import check_axes, check_impl, check_tensors, why_not_attention
from .layout import TokenLayout
from .partial import partial_attention
from .reference import reference_neighborhood
from .tiles import Span, tile_shape, tiled_attention, visited

__all__ = ["neighborhood_attention", "neighborhood_keys"]

Sizes = tuple[int, int, int]
Flags = tuple[bool, bool, bool]


def neighborhood_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    layout: TokenLayout,
    kernel_size: Sizes = (1, 7, 7),
    dilation: Sizes = (1, 1, 1),
    is_causal: Flags = (False, False, False),
    scale: float | None = None,
    impl: str | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attend each grid token of q, k, v [B, H, N, D] to the context and its box; out [B, H, N, D].

    The options are over (frames, rows, columns), in tokens; an axis with fewer tokens than its
    kernel is seen whole. Context queries are dense over all keys. `return_lse` adds lse [B, H, N].
    """
    check_tensors(q, k, v, layout)
    check_box(kernel_size, dilation, is_causal)
    impl = check_impl(impl, q, lambda: why_not_attention(q, k, v, scale))
    if impl == "torch":
        grid = (layout.grid_of(x) for x in (q, k, v))
        box = _boxes(*grid, layout.grid, kernel_size, dilation, is_causal, scale)
        return answer(q, k, v, layout, [box], scale, return_lse)
    if impl == "triton":
        from .triton.neighborhood import neighborhood_attention as attend
    else:
        attend = reference_neighborhood
    out, lse = attend(q, k, v, layout, kernel_size, dilation, is_causal, scale)
    return (out, lse) if return_lse else out


def neighborhood_keys(
    layout: TokenLayout,
    kernel_size: Sizes = (1, 7, 7),
    dilation: Sizes = (1, 1, 1),
    is_causal: Flags = (False, False, False),
) -> KeyCount:
    """Keys per grid query of `neighborhood_attention`, the context included."""
    check_box(kernel_size, dilation, is_causal)
    needed = seen = 0.0
    for sizes in _class_sizes(layout.grid, dilation):
        axes = _axes(sizes, kernel_size, is_causal)
        tokens = prod(sizes)
        needed += prod(axis.pairs() for axis in axes)
        seen += tokens * (tokens if _covers(axes) else visited(axes))
    context = layout.num_context
    return KeyCount(context + needed / layout.num_grid, context + seen / layout.num_grid)


def check_box(kernel_size: Sizes, dilation: Sizes, is_causal: Flags) -> None:
    """Raise ValueError unless the three options are over (frames, rows, columns)."""
    check_axes("kernel_size", kernel_size)
    check_axes("dilation", dilation)
    is_triple = isinstance(is_causal, Sequence) and len(is_causal) == 3
    if not is_triple or not all(isinstance(flag, bool) for flag in is_causal):
        raise ValueError(
            f"is_causal must be three booleans (frames, rows, columns), got {is_causal!r}"
        )


class _Axis(NamedTuple):
    """One axis of `size` tokens whose box holds `kernel` of them, in tiles: as `tiles.Axis`."""

    size: int
    tile: int
    kernel: int
    causal: bool
    unit: int = 1

    @property
    def before(self) -> int:
        """Keys before the query, away from the borders."""
        return self.kernel - 1 if self.causal else self.kernel // 2

    @property
    def last(self) -> int:
        """Where the last box begins."""
        return self.size - 1 if self.causal else self.size - self.kernel

    @property
    def whole(self) -> Span:
        """All queries and keys at hand."""
        return Span(0, self.size, 0, self.size)

    def span(self, q0: int, q1: int) -> Span:
        """The keys of queries q0 to q1."""
        first, final = (min(max(q - self.before, 0), self.last) for q in (q0, q1 - 1))
        return Span(q0, q1, first, q1 if self.causal else final + self.kernel)

    def spans(self) -> list[Span]:
        """One span per tile."""
        return [self.span(q, min(q + self.tile, self.size)) for q in range(0, self.size, self.tile)]

    def runs(self) -> list[tuple[Span, int]]:
        """(span of the first tile, number of equal tiles): each end as one tile, and the middle."""
        after = 0 if self.causal else (self.kernel - 1) // 2
        first, last = -(-self.before // self.tile), (self.size - after) // self.tile
        if last <= first:
            return [(self.span(0, self.size), 1)]
        start, stop = first * self.tile, last * self.tile
        ends = [(self.span(0, start), 1)] if start else []
        tail = [(self.span(stop, self.size), 1)] if stop < self.size else []
        return [*ends, (self.span(start, start + self.tile), last - first), *tail]

    def pairs(self) -> int:
        """Pairs of a query and a key that it sees."""
        spans = (self.span(q, q + 1) for q in range(self.size))
        return sum(span.k1 - span.k0 for span in spans)

    def sees(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Whether each query sees each key, [queries, keys]."""
        first = (queries - self.before).clamp(0, self.last)
        stop = queries + 1 if self.causal else first + self.kernel
        return (first[:, None] <= keys) & (keys < stop[:, None])


def _axes(sizes: Sizes, kernel_size: Sizes, is_causal: Flags) -> list[_Axis]:
    """The axes of a grid, longest first."""
    order = axis_order(sizes)
    lengths = [sizes[axis] for axis in order]
    return [
        _Axis(size, tile, min(kernel_size[axis], size), is_causal[axis])
        for axis, size, tile in zip(order, lengths, tile_shape(lengths), strict=True)
    ]


def _covers(axes: Sequence[_Axis]) -> bool:
    return all(axis.kernel == axis.size and not (axis.causal and axis.size > 1) for axis in axes)


def _boxes(q, k, v, grid, kernel_size, dilation, is_causal, scale) -> Branch:
    """The branch of grid tokens over their boxes: q, k, v, out [B, H, f*h*w, D] and lse.

    Tokens a multiple of `dilation` apart are a grid of their own, whose boxes have no gaps.
    """
    q, k, v = (x.unflatten(2, grid) for x in (q, k, v))
    out = torch.empty_like(q)
    lse = q.new_empty(q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32))
    for offsets in product(*(range(min(pair)) for pair in zip(grid, dilation, strict=True))):
        every = (slice(o, None, step) for o, step in zip(offsets, dilation, strict=True))
        part = (slice(None), slice(None), *every)
        sizes = tuple(q[part].shape[2:5])
        flat = (x[part].flatten(2, 4) for x in (q, k, v))
        piece = _box(*flat, sizes, kernel_size, is_causal, scale)
        out[part], lse[part] = (x.unflatten(2, sizes) for x in piece)
    return out.flatten(2, 4), lse.flatten(2, 4)


def _box(q, k, v, grid, kernel_size, is_causal, scale) -> Branch:
    """The branch of a grid without dilation."""
    axes = _axes(grid, kernel_size, is_causal)
    if _covers(axes):
        return partial_attention(q, k, v, None, scale)
    dtype = torch.promote_types(q.dtype, torch.float32)

    def bias(queries: Sequence[torch.Tensor], keys: Sequence[torch.Tensor]) -> torch.Tensor:
        a, b, c = (axis.sees(*both) for axis, *both in zip(axes, queries, keys, strict=True))
        rows = a[:, None, None, :, None, None] & b[:, None, None, :, None]  # [q, q, 1, k, k, 1]
        hidden = ~(rows & c[:, None, None, :]).flatten(3).flatten(0, 2)
        return torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, -torch.inf)

    q, k, v = (to_axes(x, grid) for x in (q, k, v))
    out, lse = tiled_attention(q, k, v, axes, bias, scale)
    return from_axes(out, grid), from_axes(lse, grid)


def _class_sizes(grid: Sizes, dilation: Sizes) -> Iterator[Sizes]:
    """Sizes of the grids that dilation makes of one."""
    lengths = (
        [len(range(o, size, step)) for o in range(min(size, step))]
        for size, step in zip(grid, dilation, strict=True)
    )
    return product(*lengths)
