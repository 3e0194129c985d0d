"""AttentionMasks: which pixels belong to which phrase, by cross- and self-attention together.

The masks of AttenCraft (arXiv:2405.17965): a phrase's map C in cross-attention says roughly where
it is, self-attention S spreads that over all pixels that look alike, and with pixel maps scaled to
0..1 after each step

    M = S^4 C^2,    a pixel is the phrase's whose M exceeds all others by a margin.

S is the mean over heads and layers of one grid and is never made: S^4 C^2 is attention to C^2, four
times over, from the queries and keys of that step, which are what is kept. The power of 4 is the
paper's, for latents 64 x 64; the default is 0, which fits the objects of the embedded models best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from .base import Reader
from .scene import Scene
from .site import Site

__all__ = ["AttentionMasks", "MaskStore"]


class AttentionMasks(Reader):
    """Reads what `run.attention_masks()` needs, in the last step of its window.

    self_tokens, cross_tokens: the grids read are the largest of at most so many tokens (32 x 32 and
        16 x 16 in the paper, of latents 64 x 64).
    power: how often self-attention is applied. cross_power: exponent of the maps of the phrases.
    margin: how much the map of a phrase must exceed the others, of 1.

    The scene needs two phrases or more; one for the background makes better masks. The map of a
    phrase is the largest of its tokens'.
    """

    kinds = frozenset({"self", "cross", "joint"})

    def __init__(
        self,
        scene: Scene,
        *,
        self_tokens: int = 1024,
        cross_tokens: int = 256,
        power: int = 0,
        cross_power: float = 2.0,
        margin: float = 0.1,
    ) -> None:
        super().__init__(scene)
        if len(scene.phrases) < 2:
            raise ValueError(f"AttentionMasks compares phrases, and {scene!r} has one; mark more")
        if not isinstance(power, int) or power < 0:
            raise ValueError(f"power must be an integer >= 0, got {power!r}")
        if not 0 <= margin < 1:
            raise ValueError(f"margin must lie in [0, 1), got {margin!r}")
        self.self_tokens = self_tokens
        self.cross_tokens = cross_tokens
        self.power = power
        self.cross_power = cross_power
        self.margin = margin

    def new_store(self) -> MaskStore:
        return MaskStore(self)

    def read(
        self, site: Site, mass: Callable[[torch.Tensor], torch.Tensor], store: MaskStore
    ) -> None:
        store.begin(site.progress)
        tokens = site.layout.num_grid
        if site.kind != "cross" and tokens <= self.self_tokens:
            # without a power the grid alone matters, and queries and keys can go
            store.keep(site.grid, _Spread(mass, site) if self.power else None)
        if site.kind != "self" and tokens <= self.cross_tokens:
            phrases = site.tokens[self.scene].phrases.values()
            marked = [site.marked((i,)) for positions in phrases for i in positions]
            maps = mass(torch.stack(marked, 1).to(site.dtype)).mean(1)[:, site.layout.grid_slice]
            planes = maps.mT.unflatten(2, site.layout.grid).mean(2)
            store.add(site.grid, planes, [len(positions) for positions in phrases])


class _Spread:
    """One layer's attention between pixels, as a map of columns [b, f*h*w, C]."""

    def __init__(self, mass: Callable[[torch.Tensor], torch.Tensor], site: Site) -> None:
        self._mass = mass
        self._site = site

    def __call__(self, columns: torch.Tensor) -> torch.Tensor:
        site, pixels = self._site, self._site.layout.grid_slice
        # the last column is the whole mass of the pixels: 1, but where text is attended to as well
        whole = columns.new_zeros(*columns.shape[:1], site.num_keys, columns.shape[2] + 1)
        whole[:, pixels, :-1] = columns
        whole[:, pixels, -1] = 1
        out = self._mass(whole)[:, :, pixels]
        return (out[..., :-1] / out[..., -1:]).mean(1)


class MaskStore:
    """The maps of the phrases and the self-attention of one step."""

    def __init__(self, reader: AttentionMasks) -> None:
        self._reader = reader
        self.clear()

    def clear(self) -> None:
        self._step: float | None = None
        self._counts: list[int] = []
        self._maps: dict[tuple[int, int], list[torch.Tensor]] = {}
        self._spreads: dict[tuple[int, int], list[_Spread | None]] = {}

    def begin(self, step: float) -> None:
        """Forget the step before this one."""
        if step != self._step:
            self.clear()
            self._step = step

    def add(self, grid: tuple[int, int], maps: torch.Tensor, counts: list[int]) -> None:
        """Maps [b, tokens, h, w] of one layer, and how many tokens each phrase has."""
        self._counts = counts
        self._maps.setdefault(grid, []).append(maps)

    def keep(self, grid: tuple[int, int], spread: _Spread | None) -> None:
        self._spreads.setdefault(grid, []).append(spread)

    def scores(self) -> torch.Tensor:
        """M of every phrase, [b, phrases, h, w] in 0..1."""
        reader = self._reader
        maps = self._largest(self._maps, "cross_tokens", reader.cross_tokens)
        spreads = self._largest(self._spreads, "self_tokens", reader.self_tokens)
        grid = next(g for g, kept in self._spreads.items() if kept is spreads)
        tokens = torch.stack(maps).mean(0).split(self._counts, 1)
        mean = torch.stack([part.amax(1) for part in tokens], 1)  # [b, phrases, h, w]
        if mean.shape[2:] != grid:
            mean = F.interpolate(mean, size=grid, mode="bicubic")
        columns = _scaled((mean**reader.cross_power).flatten(2).mT)  # [b, h*w, phrases]
        for _ in range(reader.power):
            # the scale is free, as self-attention hands on a constant unchanged
            columns = _scaled(torch.stack([spread(columns) for spread in spreads]).mean(0))
        return columns.mT.unflatten(2, grid)

    def masks(self) -> dict[str, torch.Tensor]:
        """Name -> [b, h, w], True at the phrase's pixels."""
        scores = self.scores()
        top, winner = scores.topk(2, 1)
        is_clear = top[:, 0] - top[:, 1] > self._reader.margin
        names = self._reader.scene.phrases
        return {name: is_clear & (winner[:, 0] == i) for i, name in enumerate(names)}

    def _largest(self, found: Mapping, name: str, limit: int) -> list:
        if not found:
            raise ValueError(
                f"no layer of at most {name}={limit} tokens was read; run the pipeline inside of "
                f"modulate first, or raise {name}"
            )
        return found[max(found, key=lambda grid: grid[0] * grid[1])]


def _scaled(columns: torch.Tensor) -> torch.Tensor:
    """Each column of [b, h*w, phrases] to 0..1."""
    low, high = columns.amin(1, keepdim=True), columns.amax(1, keepdim=True)
    return (columns - low) / (high - low).clamp_min(torch.finfo(columns.dtype).tiny)
