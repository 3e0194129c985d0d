"""What a run of the benchmark is asked for, and what it does where it is not asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from .case import Case

__all__ = ["DEFAULTS", "Settings"]

Grid = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Shapes, radii in tokens, rounds of timing, threads of a CPU, whether gradients are timed."""

    grids: tuple[Grid, ...]
    radii: tuple[int, ...]
    heads: int
    head_dim: int
    dtype: torch.dtype
    batch: int = 1
    text: int = 0
    rounds: int = 7
    threads: int = 1
    device: str = "cpu"
    flex: bool = True
    backward: bool = False

    def __post_init__(self) -> None:
        for name in ("heads", "head_dim", "batch", "rounds", "threads"):
            _check(name, getattr(self, name), 1)
        _check("text", self.text, 0)
        for name in ("grids", "radii"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one, got none")
        for radius in self.radii:
            _check("radius", radius, 1)

    def case(self, grid: Grid) -> Case:
        """The shape at one of the grids."""
        return Case(
            grid=grid,
            text=self.text,
            batch=self.batch,
            heads=self.heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            device=self.device,
        )

    @contextmanager
    def applied_threads(self) -> Iterator[None]:
        """Runs PyTorch on the threads asked for."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _check(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name.replace('_', '-')} must be >= {least}, got {value}")


def _squares(*sides: int) -> tuple[Grid, ...]:
    return tuple((side, side) for side in sides)


_CPU = Settings(
    grids=_squares(32, 64, 128),
    radii=(8, 16),
    heads=2,
    head_dim=64,
    dtype=torch.float32,
)
_GPU = Settings(
    grids=_squares(64, 128, 256),
    radii=(8, 16),
    heads=24,
    head_dim=128,
    dtype=torch.bfloat16,
    rounds=20,
)
# by part and kind of device; the plan has the shape of a Flux layer, text included
DEFAULTS = {
    ("operators", "cpu"): _CPU,
    ("operators", "gpu"): _GPU,
    ("numerics", "cpu"): replace(_CPU, grids=_squares(16, 32, 64), radii=(8,)),
    ("numerics", "gpu"): replace(_GPU, grids=_squares(16, 32, 64), radii=(8,)),
    ("pipelines", "cpu"): replace(_CPU, radii=(8,), rounds=3),
    ("pipelines", "gpu"): replace(_GPU, radii=(8,), rounds=5),
    ("plan", "gpu"): replace(_GPU, grids=_squares(64, 128, 256, 512), radii=(8, 16, 32), text=512),
}
