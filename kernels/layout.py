"""Where each token of an attention call sits: context (text, references), image or video grid.

Shape key, used in every docstring of this package: B batch, H heads, N tokens, D head dim,
T text tokens, f h w the grid (frames, rows, columns), raster order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Segment", "TokenLayout"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens beside the text and the grid, such as a reference image.

    Every query sees it and its own queries see everything, like text. `grid` is its
    (frames, rows, columns).
    """

    length: int
    kind: str = "reference"
    grid: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        _check_count("Segment.length", self.length, least=1)
        if self.grid is None:
            return
        grid = _checked_grid("Segment.grid", self.grid)
        if grid[0] * grid[1] * grid[2] != self.length:
            raise ValueError(f"Segment.grid must hold length={self.length} tokens, got {grid}")
        object.__setattr__(self, "grid", grid)


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Token order of one call: text and grid (text first or last), then the extra segments.

    `grid` is (frames, rows, columns), its tokens in raster order. Frozen and hashable, so it keys
    caches.
    """

    text: int = 0
    grid: tuple[int, int, int] = (1, 1, 1)
    text_first: bool = True
    extra: tuple[Segment, ...] = ()

    def __post_init__(self) -> None:
        _check_count("TokenLayout.text", self.text, least=0)
        object.__setattr__(self, "grid", _checked_grid("TokenLayout.grid", self.grid))
        object.__setattr__(self, "extra", tuple(self.extra))
        for segment in self.extra:
            if not isinstance(segment, Segment):
                raise ValueError(f"TokenLayout.extra must hold Segment objects, got {segment!r}")

    @property
    def num_grid(self) -> int:
        """Tokens of the grid."""
        frames, height, width = self.grid
        return frames * height * width

    @property
    def num_context(self) -> int:
        """Tokens every query sees: the text and the extra segments."""
        return self.text + sum(segment.length for segment in self.extra)

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole call, N."""
        return self.num_grid + self.num_context

    @property
    def grid_slice(self) -> slice:
        """Where the grid tokens lie in the sequence."""
        start = self.text if self.text_first else 0
        return slice(start, start + self.num_grid)

    def grid_of(self, x: torch.Tensor) -> torch.Tensor:
        """The grid rows of x [B, H, N, D], as a view."""
        return x[..., self.grid_slice, :]

    def context_of(self, x: torch.Tensor) -> torch.Tensor:
        """The context rows of x [B, H, N, D], in sequence order."""
        return torch.cat(
            (x[..., : self.grid_slice.start, :], x[..., self.grid_slice.stop :, :]), -2
        )

    def join(self, grid: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Put grid and context rows [B, H, *, ...] back in sequence order; undoes the two above."""
        before, after = context.split(
            (self.grid_slice.start, self.num_context - self.grid_slice.start), 2
        )
        return torch.cat((before, grid, after), 2)

    def coords(self, device: torch.device | str | None = None) -> torch.Tensor:
        """Grid coordinates (frame, row, column) of each grid token, [f*h*w, 3], int64."""
        axes = (torch.arange(size, device=device) for size in self.grid)
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def _check_count(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def _checked_grid(name: str, grid: tuple[int, int, int]) -> tuple[int, int, int]:
    grid = tuple(grid)
    if len(grid) != 3:
        raise ValueError(
            f"{name} must be (frames, rows, columns), got {grid}; an image is (1, rows, columns)"
        )
    for size in grid:
        _check_count(name, size, least=1)
    return grid
