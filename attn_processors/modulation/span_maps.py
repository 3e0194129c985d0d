"""SpanMaps: how much each pixel attends to each phrase, exactly and without attention maps.

The mass of a phrase is attention to values that are 1 at its tokens and 0 elsewhere, so one more
call of the same kernel gives it in queries x phrases memory, with gradients. Heads are averaged.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...kernels.map_store import MapStore
from .base import Reader
from .scene import Scene
from .site import Site

__all__ = ["SpanMaps"]


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
