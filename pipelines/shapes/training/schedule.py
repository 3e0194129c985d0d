"""Which picture size a training step sees: small first, then mixes around the base size."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

__all__ = ["Curriculum", "compiled_if_common"]

COMMON = 64  # pixels; most steps are no larger
SCENES = {32: 20_000, 64: 30_000, 96: 2_000, 128: 2_000}  # scenes kept per size


@dataclass(frozen=True, slots=True)
class Curriculum:
    """Stages of (share of the training at which it ends, its mix).

    A mix is {pixels: (batch, probability)}; its probabilities sum to 1.
    """

    stages: tuple[tuple[float, dict[int, tuple[int, float]]], ...]

    def __post_init__(self) -> None:
        for _, mix in self.stages:
            total = sum(probability for _, probability in mix.values())
            if abs(total - 1) > 1e-6:
                raise ValueError(f"probabilities of a mix must sum to 1, got {total} in {mix}")

    def at(self, progress: float, generator: torch.Generator) -> tuple[int, int]:
        """(pixels, batch) of a step at `progress` in 0..1."""
        mix = next((mix for end, mix in self.stages if progress < end), self.stages[-1][1])
        weights = torch.tensor([probability for _, probability in mix.values()])
        side = list(mix)[int(torch.multinomial(weights, 1, generator=generator))]
        return side, mix[side][0]

    def set_sizes(self) -> dict[int, int]:
        """{pixels: scenes to prepare}."""
        return {side: SCENES[side] for _, mix in self.stages for side in mix}


def compiled_if_common(side: int) -> AbstractContextManager:
    """Run compiled modules as they are at the common sizes, eagerly at the rare larger ones.

    A compilation for one size takes minutes.
    """
    return torch.compiler.set_stance("default" if side <= COMMON else "force_eager")
