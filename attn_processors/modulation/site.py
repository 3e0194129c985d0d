"""One attention call as a modulation sees it: which keys are text, where the queries lie."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...kernels.coverage import Region, coverage
from ...kernels.layout import TokenLayout
from .alignment import Alignment
from .call import Call
from .plan import GroupedKeys
from .regions import partition, threshold
from .scene import Scene

__all__ = ["SceneTokens", "Site", "Text"]


@dataclass(frozen=True, slots=True)
class SceneTokens:
    """Positions on the text axis: of whole phrases, of their nouns, and of all words."""

    phrases: Mapping[str, tuple[int, ...]]
    nouns: Mapping[str, tuple[int, ...]]
    words: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """A text as the layers see it.

    embedding: [T, C]. words: positions of its words. padding: [T], True at what is; None for none.
    """

    embedding: torch.Tensor
    words: tuple[int, ...]
    padding: torch.Tensor | None

    @property
    def visible(self) -> torch.Tensor:
        """[T], True at what is no padding."""
        everything = torch.ones(len(self.embedding), dtype=torch.bool, device=self.embedding.device)
        return everything if self.padding is None else ~self.padding


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """The call of one layer in one forward.

    kind: "self", "cross", "joint" or "temporal".
    layout: of the queries; in a joint layer of the keys too. In a temporal layer, where queries and
        keys are frames and the tokens of a frame are rows, of the tokens.
    progress: place in the schedule, 0 the noisiest.
    num_keys: M. text: where the text keys begin among them; None in a self layer.
    text_length: how many keys the prompt has; in a joint layer those of further texts follow.
    padding: keys that the model hides, of one group or one a row; None where it hides none.
    scale: of the logits. dtype: of biases and factors, float32 or wider.
    tokens: of the phrases of every scene.
    mass: columns [M, C] or [b, M, C] -> attention to them [b, H, N, C], before any edit.
    stores: of the modulations that learn, what they know from earlier calls of this run.
    texts: of the further texts that modulations asked for, each as layers see it.
    project: embeddings [n, T, C] -> keys and values [n, H, T, D], as a cross layer makes them.
    beside: a prompt -> the tensors of the rows made from it in the same call.
    align: a source and an edited prompt -> which tokens they share.
    kept: what one layer leaves for those behind it in the same forward.
    """

    layer: str
    kind: str
    layout: TokenLayout
    progress: float
    num_keys: int
    text: int | None
    text_length: int
    padding: GroupedKeys | None
    scale: float
    device: torch.device
    dtype: torch.dtype
    tokens: Mapping[Scene, SceneTokens]
    mass: Callable[[torch.Tensor], torch.Tensor]
    stores: Mapping[Any, Any]
    texts: Callable[[str], Text]
    project: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    beside: Callable[[str], Call]
    align: Callable[[str, str], Alignment]
    kept: dict[Hashable, Any] = field(default_factory=dict)

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
        return self.marked(tuple(set(range(words[0], self.text_length)) - set(words)))

    def over_queries(self, on_grid: torch.Tensor, elsewhere: float) -> torch.Tensor:
        """[..., f*h*w] on the grid -> [..., N], with `elsewhere` at text and reference queries."""
        full = on_grid.new_full((*on_grid.shape[:-1], self.layout.num_tokens), elsewhere)
        full[..., self.layout.grid_slice] = on_grid
        return full

    def coverage(self, regions: Sequence[Region]) -> torch.Tensor:
        """Share of each grid token in each region, [regions, f*h*w], the same in every frame."""
        return self._in_frames(self._cover(regions)).to(self.dtype)

    def inside(self, regions: Sequence[Region], *, is_partition: bool = False) -> torch.Tensor:
        """Whether each grid token is in each region, [regions, f*h*w], the same in every frame.

        is_partition: no token is in two.
        """
        cover = self._cover(regions)
        apart = partition(cover) if is_partition else torch.stack([threshold(c) for c in cover])
        return self._in_frames(apart)

    def _cover(self, regions: Sequence[Region]) -> torch.Tensor:
        """Share of each cell of one frame in each region, [regions, h*w]."""
        return torch.stack([coverage(region, *self.grid).flatten() for region in regions])

    def _in_frames(self, cells: torch.Tensor) -> torch.Tensor:
        return cells.repeat(1, self.layout.grid[0]).to(self.device)
