"""Where each token of an attention call sits: context tokens (text, references) and the image or video grid.

Shape key, used in every docstring of this package: B batch, H heads, N tokens, D head dim, T text tokens,
f h w the grid (frames, rows, columns), raster order.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Segment", "TokenLayout"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens beside the text and the grid, such as a reference image.

    Every query sees it and its own queries see everything, like text.
    """

    length: int
    kind: str = "reference"
    grid: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Token order of one attention call: text and grid (text first or last), then the extra segments.

    `grid` is (frames, rows, columns); its tokens are in raster order. Frozen and hashable, so it keys caches.
    """

    text: int = 0
    grid: tuple[int, int, int] = (1, 1, 1)
    text_first: bool = True
    extra: tuple[Segment, ...] = ()
