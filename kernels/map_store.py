"""Maps of phrases summed over the layers of a run, by step and grid, drawn at any size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .schedule import check_window, is_within

__all__ = ["MapStore"]


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
        """Maps [b, C, h, w] of one layer, summed in float32 or wider."""
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        key = (step, tuple(maps.shape[2:]))
        total, count = self._sums.get(key, (0, 0))
        self._sums[key] = (total + maps, count + 1)

    def maps(
        self, size: tuple[int, int] | None = None, steps: tuple[float, float] = (0.0, 1.0)
    ) -> dict[str, torch.Tensor]:
        """Name -> mean over layers and steps [b, h, w]; `size` None is the largest grid read."""
        check_window(steps)
        chosen = {key: one for key, one in self._sums.items() if is_within(key[0], steps)}
        if not chosen:
            raise ValueError(
                f"no map was read in steps={steps}; run the model with the reader first, "
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
