"""Which tokens of a call each rank of a process group holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from ..branches import Band
from ..layout import TokenLayout

__all__ = ["Range", "Shard", "even_ranges"]

Range = tuple[int, int]


def even_ranges(size: int, ranks: int) -> list[Range]:
    """`size` things over the ranks as evenly as can be, the first ones having one more."""
    base, more = divmod(size, ranks)
    ends = accumulate((base + (rank < more) for rank in range(ranks)), initial=0)
    return list(pairwise(ends))


@dataclass(frozen=True, slots=True)
class Shard:
    """What one rank holds of a call: a run of the grid's tokens, and context.

    layout: of the whole call.
    ends: where the run of each rank ends, in grid tokens in raster order.
    rank: whose shard this is.
    splits_text: each rank holds an even share of the text, as under diffusers' context parallelism;
        else every rank holds all of it, and the extra segments.
    """

    layout: TokenLayout
    ends: tuple[int, ...]
    rank: int
    splits_text: bool = False

    def __post_init__(self) -> None:
        ends = tuple(self.ends)
        object.__setattr__(self, "ends", ends)
        if not ends or any(a >= b for a, b in pairwise((0, *ends))):
            raise ValueError(f"every rank must hold a grid token, got ends={ends}")
        if ends[-1] != self.layout.num_grid:
            raise ValueError(
                f"ends must reach the last of {self.layout.num_grid} grid tokens, got {ends}"
            )
        if not 0 <= self.rank < len(ends):
            raise ValueError(f"rank must be one of {len(ends)}, got {self.rank}")
        if self.splits_text and self.layout.extra:
            raise ValueError("splits_text takes no extra segments: hold them on every rank")

    @classmethod
    def of_rows(
        cls, layout: TokenLayout, rows: Sequence[int], rank: int, *, splits_text: bool = False
    ) -> Shard:
        """Whole rows of an image, or frames of a video, `rows` of them on each rank."""
        band = Band.whole(layout.grid)
        if sum(rows) != band.stop:
            raise ValueError(
                f"rows must add up to {band.stop}, the {('frames', 'rows')[band.axis]} of "
                f"{layout.grid}, got {tuple(rows)}"
            )
        line = layout.num_grid // band.stop
        return cls(layout, tuple(accumulate(n * line for n in rows)), rank, splits_text)

    @classmethod
    def even(
        cls, layout: TokenLayout, ranks: int, rank: int, *, splits_text: bool = False
    ) -> Shard:
        """Grid tokens as evenly as can be, which may cut a row: what diffusers does."""
        if not 1 <= ranks <= layout.num_grid:
            raise ValueError(f"ranks must be 1 to {layout.num_grid} grid tokens, got {ranks}")
        ends = tuple(end for _, end in even_ranges(layout.num_grid, ranks))
        return cls(layout, ends, rank, splits_text)

    @property
    def ranks(self) -> int:
        """How many ranks share the call."""
        return len(self.ends)

    @property
    def tokens(self) -> list[Range]:
        """The grid tokens of each rank."""
        return list(pairwise((0, *self.ends)))

    @property
    def line(self) -> int:
        """Tokens of one row of an image or one frame of a video."""
        return self.layout.num_grid // Band.whole(self.layout.grid).stop

    @property
    def bands(self) -> list[Band]:
        """The rows or frames that each rank's tokens touch."""
        axis = Band.whole(self.layout.grid).axis
        return [Band(axis, a // self.line, -(-b // self.line)) for a, b in self.tokens]

    @property
    def context_shares(self) -> list[Range]:
        """The context queries that each rank answers."""
        return even_ranges(self.layout.num_context, self.ranks)

    @property
    def local(self) -> TokenLayout:
        """Token order of this rank's call, its grid tokens as one line."""
        start, stop = self.tokens[self.rank]
        first, last = self.context_shares[self.rank]
        text = last - first if self.splits_text else self.layout.text
        return TokenLayout(
            text=text,
            grid=(1, 1, stop - start),
            text_first=self.layout.text_first,
            extra=self.layout.extra,
        )

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's rows of x [B, H, N, ...], in the order of `local`."""
        grid = self.layout.grid_of(x)[:, :, slice(*self.tokens[self.rank])]
        context = self.layout.context_of(x)
        if self.splits_text:
            context = context[:, :, slice(*self.context_shares[self.rank])]
        return self.local.join(grid, context)
