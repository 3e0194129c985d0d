"""Attention on one rank's shard: exchange, the operator's own branches, exact text queries.

Every rank of the group calls with its own shard; the output is this rank's rows of what one process
would compute. It runs the torch path of the operators on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from ..branches import Branch, axis_order, from_axes, to_axes
from ..field import Field
from ..foveated import all_cells, check_foveated, partition_levels, pool_level
from ..inputs import check_tensors
from ..local import check_radius, disc, discs
from ..merge import merge
from ..partial import partial_attention
from .exchange import Exchange, Piece, collect
from .plan import cell_grid, cell_line, cell_side, foveated_rows, local_rows
from .shard import Range, Shard

__all__ = ["sequence_foveated_attention", "sequence_local_attention"]

# (q of the band, what was needed of each piece) -> the branches of the band's queries
Branches = Callable[[torch.Tensor, Sequence[Sequence[torch.Tensor]]], list[Branch]]


def sequence_local_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    shard: Shard,
    exchange: Exchange,
    radius: int | Sequence[int] = 16,
    scale: float | None = None,
) -> torch.Tensor:
    """`local_attention` of a call split over ranks: q, k, v, out [B, H, N of `shard.local`, D].

    Rows within the radius come from the ranks that hold them, be they neighbours or not. Gradients
    are those of the sum of every rank's loss; every rank must run the backward pass.
    """
    _check(q, k, v, shard, exchange)
    check_radius(radius, q.shape[1])
    grid, band = shard.layout.grid, shard.bands[shard.rank]
    keys = shard.local.grid_of(k), shard.local.grid_of(v)

    def branches(q: torch.Tensor, got: Sequence[Sequence[torch.Tensor]]) -> list[Branch]:
        return [discs(q, *got[0], grid, radius, scale, band=band)]

    pieces = [Piece(keys, *local_rows(shard, radius))]
    return _attend(q, k, v, shard, exchange, pieces, branches, scale)


def sequence_foveated_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    shard: Shard,
    exchange: Exchange,
    radius: int = 8,
    pool: int = 4,
    levels: int = 1,
    mass: bool = True,
    partition: bool = True,
    pool_weight: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """`foveated_attention` of a call split over ranks: q, k, v, out [B, H, N of `shard.local`, D].

    As `sequence_local_attention`; each rank pools its own tokens, and cells are exchanged. A cell
    that lies on several ranks is the sum of what each has of it.
    """
    _check(q, k, v, shard, exchange)
    weight = check_foveated(shard.layout, radius, pool, levels, partition, pool_weight)
    field = Field(shard.layout.grid, radius, pool, levels)
    band = shard.bands[shard.rank]
    keys = shard.local.grid_of(k), shard.local.grid_of(v)
    first, *coarse = foveated_rows(shard, field, partition)
    pieces = [Piece(keys, *first)]
    for level, rows in enumerate(coarse, 1):
        cells = tuple(_own_cells(x, shard, field, level, weight) for x in keys)
        pieces.append(Piece(cells, *rows))

    def branches(q: torch.Tensor, got: Sequence[Sequence[torch.Tensor]]) -> list[Branch]:
        near, *far = got
        cells = [
            [_cell_axes(x, shard, field, level) for x in pair] for level, pair in enumerate(far, 1)
        ]
        if partition:
            return partition_levels(q, *near, cells, field, mass, scale, band)
        discs = disc(q, *near, field.grid, radius, scale, band=band)
        return [discs, all_cells(q, cells[0], field, mass, scale)]

    return _attend(q, k, v, shard, exchange, pieces, branches, scale)


def _check(q, k, v, shard, exchange) -> None:
    if not isinstance(shard, Shard) or not isinstance(exchange, Exchange):
        raise ValueError(f"expected a Shard and an Exchange, got {shard!r} and {exchange!r}")
    if (shard.rank, shard.ranks) != (exchange.rank, exchange.ranks):
        raise ValueError(
            f"the shard is of rank {shard.rank} of {shard.ranks}, but the exchange is on rank "
            f"{exchange.rank} of {exchange.ranks}"
        )
    check_tensors(q, k, v, shard.local)


def _attend(q, k, v, shard, exchange, pieces, branches: Branches, scale) -> torch.Tensor:
    """Exchange the pieces, run the branches, and add what the context adds."""
    local, whole = shard.local, shard.layout.num_context
    context = [local.context_of(x) for x in (q, k, v)]
    if shard.splits_text and whole:
        pieces = [*pieces, Piece(tuple(context), shard.context_shares, _all(whole, shard))]
    got = collect(exchange, pieces)
    if shard.splits_text and whole:
        *got, context = got
    grid = [local.grid_of(x) for x in (q, k, v)]
    found = [_unboxed(branch, shard) for branch in branches(_boxed(grid[0], shard), got)]
    if whole == 0:
        return merge(*zip(*found, strict=True))[0]
    found.append(partial_attention(grid[0], *context[1:], None, scale))
    out, _ = merge(*zip(*found, strict=True))
    answers = _context_queries(context, grid[1:], shard, exchange, scale)
    if not shard.splits_text:
        share = Piece((answers,), shard.context_shares, _all(whole, shard))
        ((answers,),) = collect(exchange, [share])
    return local.join(out, answers)


def _context_queries(context, keys, shard, exchange, scale) -> torch.Tensor:
    """This rank's share of the context queries, dense over the keys of every rank."""
    q, *own = context
    mine = slice(*shard.context_shares[shard.rank])
    partial = partial_attention(q, *keys, None, scale)
    rest = partial_attention(q[:, :, mine], *own, None, scale)
    outs, lses = ([*_shares(x, shard, exchange), y] for x, y in zip(partial, rest, strict=True))
    return merge(outs, lses)[0]


def _shares(x: torch.Tensor, shard: Shard, exchange: Exchange) -> list[torch.Tensor]:
    """From x [B, H, context queries, ...] of every rank the share of this rank, in rank order."""
    me, shares = shard.rank, [x[:, :, slice(*each)] for each in shard.context_shares]
    sends = [[] if rank == me else [share] for rank, share in enumerate(shares)]
    shapes = [[] if rank == me else [shares[me].shape] for rank in range(shard.ranks)]
    got = exchange.swap(sends, shapes)
    return [shares[me] if rank == me else got[rank][0] for rank in range(shard.ranks)]


def _all(size: int, shard: Shard) -> list[Range]:
    return [(0, size)] * shard.ranks


def _boxed(x: torch.Tensor, shard: Shard) -> torch.Tensor:
    """This rank's grid tokens [B, H, n, D] with zeros up to whole rows or frames."""
    (start, stop), band = shard.tokens[shard.rank], shard.bands[shard.rank]
    before, after = start - band.start * shard.line, band.stop * shard.line - stop
    return F.pad(x, (0, 0, before, after)) if before or after else x


def _unboxed(branch: Branch, shard: Shard) -> Branch:
    """Undoes `_boxed` on out and lse."""
    (start, stop), band = shard.tokens[shard.rank], shard.bands[shard.rank]
    before = start - band.start * shard.line
    out, lse = (x[:, :, before : before + stop - start] for x in branch)
    return out, lse


def _own_cells(x, shard, field, level, weight) -> torch.Tensor:
    """What this rank's tokens [B, H, n, D] add to the cells they lie in, [B, H, cells, D]."""
    band, grid = shard.bands[shard.rank], field.grid
    side, size = cell_side(shard, field, level), grid[band.axis]
    stop = min(-(-band.stop // side) * side, size)
    x = to_axes(_boxed(x, shard), grid, band.of(grid))
    ends = [0] * 8
    place = 2 * (3 - axis_order(grid).index(band.axis))
    ends[place : place + 2] = band.start % side, stop - band.stop
    return from_axes(pool_level(F.pad(x, ends), field, level, weight), grid)


def _cell_axes(x, shard, field, level) -> torch.Tensor:
    """Cells [B, H, n, D] in raster order as [B, H, r, a, b, D]."""
    sizes, axis = list(cell_grid(field, level)), shard.bands[shard.rank].axis
    sizes[axis] = x.shape[2] // cell_line(shard, field, level)
    return to_axes(x, field.grid, tuple(sizes))
