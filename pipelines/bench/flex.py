"""FlexAttention, compiled, over CLEAR's disc: tokens in raster order, and in tiles of 8 by 8.

In tile order a block of the mask is a patch of the picture and far fewer blocks are touched. The
inputs are taken to be in that order already: the permutation is not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from ...kernels import local_attention, local_keys
from .blocks import raster_block_keys, square_block_keys
from .candidate import Candidate, Prepared
from .case import Case

__all__ = ["TILE", "flex_candidates"]

TILE = 8


def flex_candidates(case: Case, radius: int) -> list[Candidate]:
    """The two orders; their keys visited are those of the blocks that the mask keeps."""
    # the faster of 64 and 128 where each was measured
    block = 64 if case.device == "cpu" else 128
    return [
        Candidate(
            method=f"flex {order}, radius {radius}",
            impl="flex",
            needed=local_keys(case.layout, radius).needed,
            visited=_visited(case, radius, tile, block),
            prepare=partial(_prepare, case, radius, tile, block),
            exact=partial(local_attention, layout=case.layout, radius=radius, impl="reference"),
        )
        for order, tile in (("raster", 1), (f"{TILE}x{TILE} tiles", TILE))
    ]


def _visited(case: Case, radius: int, tile: int, block: int) -> float | None:
    """None where blocks are no patches of the grid alone."""
    patch = (TILE, block // TILE)
    if case.text % block:
        return None
    if tile == 1:
        return case.text + raster_block_keys(case.grid, radius, block)
    if any(size % side for size, side in zip(case.grid, patch, strict=True)):
        return None
    return case.text + square_block_keys(case.grid, radius, patch)


def _fits(case: Case, tile: int) -> bool:
    return all(side % tile == 0 for side in case.grid)


def _prepare(
    case: Case,
    radius: int,
    tile: int,
    block: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
) -> Prepared:
    if not _fits(case, tile):
        raise ValueError(f"a grid of {case.name} is not made of {tile}x{tile} tiles")
    tokens = case.layout.num_tokens
    visible = _visible(case, radius, tile)
    attention = torch.compile(flex_attention, dynamic=False)
    build = partial(
        torch.compile(create_block_mask, dynamic=False),
        visible, None, None, tokens, tokens, device=case.device, BLOCK_SIZE=block,
    )  # fmt: skip
    # one compilation for each candidate of a case: the default limit of 8 is for other uses
    with torch._dynamo.config.patch(recompile_limit=256):
        start = time.perf_counter()
        attend = partial(attention, block_mask=build())
        attend(q, k, v)
        ready = time.perf_counter()
        build()
    order = _order(case, tile).to(q.device)
    back = order.argsort()
    return Prepared(
        attend,
        arrange=lambda x: x[:, :, order],
        restore=lambda x: x[:, :, back],
        mask_seconds=time.perf_counter() - ready,
        preparation_seconds=ready - start,
    )


def _visible(case: Case, radius: int, tile: int) -> Callable[..., torch.Tensor]:
    """The mask as FlexAttention asks for it: context sees and is seen, the grid in discs."""
    text, width = case.text, case.grid[1]

    def visible(b, h, i, j):
        (yi, xi), (yj, xj) = (
            _coordinates(i - text, width, tile),
            _coordinates(j - text, width, tile),
        )
        near = (yi - yj) ** 2 + (xi - xj) ** 2 < radius**2
        return near if text == 0 else near | (i < text) | (j < text)

    return visible


def _coordinates(index, width, tile):
    """Row and column of a token. Shifts where they do: divisions are several times slower."""
    if width & (width - 1):
        block, inside = index // tile**2, index % tile**2
        row, column = block // (width // tile), block % (width // tile)
        return row * tile + inside // tile, column * tile + inside % tile
    t, w = tile.bit_length() - 1, width.bit_length() - 1
    block, inside = index >> (2 * t), index & (tile**2 - 1)
    row, column = block >> (w - t), block & ((width >> t) - 1)
    return (row << t) + (inside >> t), (column << t) + (inside & (tile - 1))


def _order(case: Case, tile: int) -> torch.Tensor:
    """Raster index of the token at each place of the sequence, context first."""
    text, (height, width) = case.text, case.grid
    raster = torch.arange(height * width).view(height // tile, tile, width // tile, tile)
    return torch.cat((torch.arange(text), text + raster.transpose(1, 2).flatten()))
