"""SpanMaps: how much each pixel attends to each phrase, exactly and without attention maps.

The mass of a phrase is attention to values that are 1 at its tokens and 0 elsewhere, so one more
call of the same kernel gives it in queries x phrases memory, with gradients. Heads are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from .base import Reader
from .scene import Scene
from .scope import Scope
from .site import Site

__all__ = ["MapStore", "SpanMaps"]


class SpanMaps(Reader):
    """Reads the maps of the scene's phrases in every cross and joint layer, as they are edited."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)

    def new_store(self) -> MapStore:
        return MapStore(self.scene.phrases)

    def read(
        self, site: Site, mass: Callable[[torch.Tensor], torch.Tensor], store: MapStore
    ) -> None:
        """Add the maps of one call to the store; `mass` gives those of columns [M, C]."""
        tokens = site.tokens[self.scene].phrases
        columns = torch.stack([site.marked(tokens[name]) for name in self.scene.phrases], 1)
        maps = mass(columns.to(site.dtype)).mean(1)[:, site.layout.grid_slice]  # [b, f*h*w, C]
        planes = maps.unflatten(1, site.layout.grid).mean(1)  # [b, h, w, C]
        store.add(site.progress, planes.permute(0, 3, 1, 2))


class MapStore:
    """Sums of maps over the layers of one run, by step and grid."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.clear()

    def clear(self) -> None:
        self._sums: dict[tuple[float, tuple[int, int]], tuple[torch.Tensor, int]] = {}

    @property
    def steps(self) -> list[float]:
        """The places in the schedule that were read."""
        return sorted({step for step, _ in self._sums})

    def add(self, step: float, maps: torch.Tensor) -> None:
        """Maps [b, C, h, w] of one layer."""
        key = (step, tuple(maps.shape[2:]))
        total, count = self._sums.get(key, (0, 0))
        self._sums[key] = (total + maps, count + 1)

    def maps(
        self, size: tuple[int, int] | None = None, steps: tuple[float, float] = (0.0, 1.0)
    ) -> dict[str, torch.Tensor]:
        """Name -> mean over layers and steps [b, h, w]; `size` None is the largest grid read."""
        window = Scope().narrowed(steps=steps)
        chosen = {key: one for key, one in self._sums.items() if window.is_now(key[0])}
        if not chosen:
            raise ValueError(
                f"no map was read in steps={steps}; run the pipeline inside of modulate first, "
                f"steps read: {[round(step, 3) for step in self.steps]}"
            )
        size = (
            max((grid for _, grid in chosen), key=lambda g: g[0] * g[1]) if size is None else size
        )
        planes = [_resized(total, size) for total, _ in chosen.values()]
        mean = sum(planes) / sum(count for _, count in chosen.values())
        return {name: mean[:, i] for i, name in enumerate(self.names)}


def _resized(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", antialias=True)
