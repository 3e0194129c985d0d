"""One attention call as a modulation sees it: which keys are text, where the queries lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ...kernels.layout import TokenLayout
from .scene import Scene

__all__ = ["SceneTokens", "Site"]


@dataclass(frozen=True, slots=True)
class SceneTokens:
    """Positions on the text axis: of whole phrases, of their nouns, and of all words."""

    phrases: Mapping[str, tuple[int, ...]]
    nouns: Mapping[str, tuple[int, ...]]
    words: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """The call of one layer in one forward.

    kind: "self", "cross" or "joint".
    layout: of the queries; in a joint layer of the keys too.
    progress: place in the schedule, 0 the noisiest.
    num_keys: M. text: where the text keys begin among them; None in a self layer.
    scale: of the logits. dtype: of biases and factors, float32 or wider.
    tokens: of the phrases of every scene.
    mass: columns of 0 and 1 [M, C] -> attention to them [b, H, N, C], before any edit.
    """

    layer: str
    kind: str
    layout: TokenLayout
    progress: float
    num_keys: int
    text: int | None
    scale: float
    device: torch.device
    dtype: torch.dtype
    tokens: Mapping[Scene, SceneTokens]
    mass: Callable[[torch.Tensor], torch.Tensor]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the picture."""
        return self.layout.grid[1:]

    def keys(self, positions: tuple[int, ...]) -> torch.Tensor:
        """Indices of text tokens among the keys."""
        return torch.tensor(positions, dtype=torch.int64, device=self.device) + self.text

    def marked(self, positions: tuple[int, ...]) -> torch.Tensor:
        """[M], True at these text tokens."""
        mask = torch.zeros(self.num_keys, dtype=torch.bool, device=self.device)
        mask[self.keys(positions)] = True
        return mask

    def ends(self, scene: Scene) -> torch.Tensor:
        """[M], True at the text tokens behind the first word that stand for no word."""
        words = self.tokens[scene].words
        length = self.num_keys if self.kind == "cross" else self.layout.text
        return self.marked(tuple(set(range(words[0], length)) - set(words)))

    def over_queries(self, on_grid: torch.Tensor, elsewhere: float) -> torch.Tensor:
        """[..., f*h*w] on the grid -> [..., N], with `elsewhere` at text and reference queries."""
        full = on_grid.new_full((*on_grid.shape[:-1], self.layout.num_tokens), elsewhere)
        full[..., self.layout.grid_slice] = on_grid
        return full

    def coverage(self, scene: Scene) -> torch.Tensor:
        """Share of each grid token in each region, [regions, f*h*w], the same in every frame."""
        cover = scene.coverage(*self.grid).flatten(1).repeat(1, self.layout.grid[0])
        return cover.to(self.device, self.dtype)
