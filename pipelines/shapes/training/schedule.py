"""Which picture size a training step sees: small first, then the base size, with some larger."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Curriculum"]

SCENES = {32: 20_000, 64: 30_000, 96: 2_000, 128: 2_000}  # scenes kept per size


@dataclass(frozen=True, slots=True)
class Curriculum:
    """`stages`: (until this share of the training, pixels, batch).

    In the last stage a step is of an `extra` (pixels, batch) size with probability `extra_share`.
    """

    stages: tuple[tuple[float, int, int], ...]
    extra: tuple[tuple[int, int], ...]
    extra_share: float

    def at(self, progress: float, generator: torch.Generator) -> tuple[int, int]:
        """(pixels, batch) at `progress` in 0..1."""
        draw, which = torch.rand(2, generator=generator).tolist()
        last = len(self.stages) - 1
        index = next((i for i, stage in enumerate(self.stages) if progress < stage[0]), last)
        if index == last and draw < self.extra_share:
            return self.extra[int(which * len(self.extra))]
        return self.stages[index][1:]

    def set_sizes(self) -> dict[int, int]:
        sides = [side for _, side, _ in self.stages] + [side for side, _ in self.extra]
        return {side: SCENES[side] for side in sides}
