"""Attention of a token grid to the keys around each query, in tiles.

Queries are cut into tiles of a few rows and columns. For every strip of columns the keys are laid
out once with the halo its queries can see; the key window of each tile down that strip is then an
overlapping view of the strip, so one batched call of a fused kernel serves all its tiles, and they
share one bias. Tiles whose window would leave the grid are merged into one taller tile at each end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from .partial import partial_attention

__all__ = ["Axis", "Span", "concat", "tile_shape", "tiled_attention", "visited", "within"]

Partial = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class Span(NamedTuple):
    """Queries q0 <= i < q1 of one axis and keys k0 <= j < k1; key j begins at token j * unit."""

    q0: int
    q1: int
    k0: int
    k1: int
    unit: int = 1

    def queries(self, device: torch.device) -> torch.Tensor:
        """Token positions of the queries."""
        return torch.arange(self.q0, self.q1, device=device)

    def keys(self, device: torch.device) -> torch.Tensor:
        """Token positions of the first token of each key."""
        return torch.arange(self.k0, self.k1, device=device) * self.unit


class Axis(NamedTuple):
    """One axis of the grid: `size` tokens, one key every `unit` of them, in tiles of `tile` tokens.

    A tile sees `halo` keys on either side of the cells of `cell` tokens that it touches. `tile` is
    a multiple of `cell`, and that of `unit`. The queries at hand are those from `start` to `stop`,
    the keys at hand those that they see.
    """

    size: int
    tile: int
    halo: int
    unit: int = 1
    cell: int = 1
    start: int = 0
    stop: int | None = None

    @property
    def whole(self) -> Span:
        """All queries and keys at hand."""
        return self.span(self.start, self.size if self.stop is None else self.stop)

    def span(self, q0: int, q1: int) -> Span:
        """The keys of queries q0 to q1, cut at the border."""
        keys = -(-self.size // self.unit)
        first, last = q0 // self.cell * self.cell, -(-q1 // self.cell) * self.cell
        k0, k1 = first // self.unit - self.halo, -(-last // self.unit) + self.halo
        return Span(q0, q1, max(0, k0), min(keys, k1), self.unit)

    def spans(self) -> list[Span]:
        """One span per tile."""
        start, stop, *_ = self.whole
        return [self.span(q, min(q + self.tile, stop)) for q in range(start, stop, self.tile)]

    def runs(self) -> list[tuple[Span, int]]:
        """(span of the first tile, number of equal tiles): each end as one tile, and the middle."""
        q0, q1, *_ = whole = self.whole
        first = max(-(-self.halo * self.unit // self.tile), -(-q0 // self.tile))
        last = (self.size // self.unit - self.halo) * self.unit // self.tile
        last = min(last, q1 // self.tile)
        if last <= first:
            return [(whole, 1)]
        start, stop = first * self.tile, last * self.tile
        ends = [(self.span(q0, start), 1)] if q0 < start else []
        tail = [(self.span(stop, q1), 1)] if stop < q1 else []
        return [*ends, (self.span(start, start + self.tile), last - first), *tail]


def within(
    queries: Sequence[torch.Tensor],
    keys: Sequence[torch.Tensor],
    cells: Sequence[int],
    reach: int,
    weights: Sequence[int] = (1, 1, 1),
) -> torch.Tensor:
    """Whether the cells of a query and of a key are closer than `reach` tokens, [queries, keys].

    `queries` and `keys` are token positions along each axis, `cells` the cell's sides. The distance
    is that of the two cells' nearest tokens: with sides of 1, the open ball of radius `reach`. Its
    square along each axis counts `weights` times.
    """
    rank = len(cells)
    total = 0
    for axis, (query, key, cell, weight) in enumerate(
        zip(queries, keys, cells, weights, strict=True)
    ):
        gap = ((query[:, None] // cell - key // cell).abs().sub(1) * cell + 1).clamp_min(0)
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = gap.shape
        total = total + (weight * gap * gap).view(shape)
    return (total < reach * reach).flatten(rank).flatten(0, rank - 1)


def tile_shape(sizes: Sequence[int], cells: Sequence[int] = (1, 1, 1)) -> list[int]:
    """Tile sides along (rows, a, b): about 32 tokens in whole cells, flat along a."""
    across = min(8, sizes[2])
    return [
        -(-side // cell) * cell for side, cell in zip((32 // across, 1, across), cells, strict=True)
    ]


def tiled_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    axes: Sequence[Axis],
    bias: Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], torch.Tensor],
    scale: float | None = None,
    empty_rows: bool = False,
    attend: Partial = partial_attention,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend q [B, H, rows, a, b, D] to the windows of k, v [B, H, keys of rows, of a, of b, D].

    `axes` describes (rows, a, b): q and k, v hold the queries and the keys of each axis's `whole`.
    `bias(queries, keys)` is [queries, keys] for token positions; it may depend on where in the grid
    the tile lies only where its window is cut, and may leave a query without keys only with
    `empty_rows`. `attend` is called as `partial_attention` is, tile by tile, and may take its
    place. Returns out and lse in the shape of q.
    """
    _, first, second = axes
    seen: dict[tuple[tuple[int, ...], ...], torch.Tensor] = {}

    def shared_bias(spans: Sequence[Span]) -> torch.Tensor:
        key = tuple(map(_relative, spans, axes))
        if key not in seen:
            queries = [span.queries(q.device) for span in spans]
            seen[key] = bias(queries, [span.keys(q.device) for span in spans])
        return seen[key]

    blocks = []
    for a in first.spans():
        strips = [
            _strip(q, k, v, axes, a, b, shared_bias, scale, empty_rows, attend)
            for b in second.spans()
        ]
        blocks.append(concat(strips, 4))
    return concat(blocks, 3)


def _strip(q, k, v, axes, a, b, bias, scale, empty_rows, attend):
    """All tiles down the rows of one strip, the queries and keys of spans a and b."""
    rows = axes[0]
    held, first, second = (axis.whole for axis in axes)
    q = q[:, :, :, a.q0 - first.q0 : a.q1 - first.q0, b.q0 - second.q0 : b.q1 - second.q0]
    rect = slice(a.k0 - first.k0, a.k1 - first.k0), slice(b.k0 - second.k0, b.k1 - second.k0)
    k, v = (x[:, :, :, rect[0], rect[1]] for x in (k, v))
    across = k.shape[3] * k.shape[4]
    k, v = (x.reshape(x.shape[0] * x.shape[1], -1, x.shape[-1]).contiguous() for x in (k, v))
    pieces = []
    for span, count in rows.runs():
        step, length = rows.tile // rows.unit * across, (span.k1 - span.k0) * across
        start, row = (span.k0 - held.k0) * across, span.q0 - held.q0
        stop = start + length + (count - 1) * step
        keys, values = (x[:, start:stop].unfold(1, length, step).transpose(-1, -2) for x in (k, v))
        block = q[:, :, row : row + count * (span.q1 - span.q0)]
        tiles = block.reshape(k.shape[0], count, -1, q.shape[-1])
        out, lse = attend(tiles, keys, values, bias((span, a, b)), scale, empty_rows)
        shape = block.shape[:-1]
        pieces.append((out.reshape(*shape, v.shape[-1]), lse.reshape(shape)))
    return concat(pieces, 2)


def _relative(span: Span, axis: Axis) -> tuple[int, ...]:
    """What a bias depends on: where the keys lie from the queries, and whether the last is cut."""
    cut = axis.size % axis.unit if span.k1 * axis.unit > axis.size else 0
    return span.q1 - span.q0, span.k0 * span.unit - span.q0, span.k1 - span.k0, cut


def concat(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor]], dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Join (out, lse) parts along a dimension of both."""
    if len(parts) == 1:
        return parts[0]
    outs, lses = zip(*parts, strict=True)
    return torch.cat(outs, dim), torch.cat(lses, dim)


def visited(axes: Sequence[Axis]) -> float:
    """Keys a query is compared with in `tiled_attention`, mean over the queries."""
    rows, *across = axes
    total = sum((s.q1 - s.q0) * (s.k1 - s.k0) * count for s, count in rows.runs())
    for axis in across:
        total *= sum((s.q1 - s.q0) * (s.k1 - s.k0) for s in axis.spans())
    return total / (rows.size * across[0].size * across[1].size)
