"""Picks the fastest of the candidate tiles of a kernel that run and give the right numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from triton import TritonError

from ...kernels.triton.slots import Slot
from ...kernels.triton.tuned import save
from ..bench.timing import Stopwatch, interleave
from .case import Case, Run

__all__ = ["Tuned", "describe", "keep", "tune"]

# two right results in bfloat16 differ by thousandths, wrong indices by tenths
_WRONG = 0.02


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """Median seconds of a call with each of the tiles that ran, why the others did not count."""

    seconds: Mapping[Any, float]
    shipped: Any
    skipped: Mapping[Any, str]

    @property
    def fastest(self) -> Any:
        """The tiles with the least seconds."""
        return min(self.seconds, key=self.seconds.get)

    @property
    def gain(self) -> float:
        """How many times faster than with the shipped tiles a call is."""
        return self.seconds[self.shipped] / self.seconds[self.fastest]


def tune(case: Case, seconds_of: Stopwatch, rounds: int) -> Tuned:
    """Times the candidates in turns, once each has run and agreed with the shipped tiles.

    What the shipped tiles raise comes through: then nothing else can be trusted either.
    """
    run, shipped = case.prepare(), case.slot.shipped
    expected = run(shipped)
    reasons = {x: _why_not(run, x, expected) for x in case.candidates if x != shipped}
    skipped = {tiles: reason for tiles, reason in reasons.items() if reason}
    right = [tiles for tiles in case.candidates if tiles not in skipped]
    calls = {describe(tiles): partial(run, tiles) for tiles in right}
    taken = interleave(calls, rounds, seconds_of, show=False)
    seconds = {tiles: median(taken[describe(tiles)]) for tiles in right}
    return Tuned(seconds=seconds, shipped=shipped, skipped=skipped)


def keep(path: Path, slot: Slot, tuned: Tuned, device: str) -> None:
    """Writes the fastest tiles where launches of later processes look them up."""
    measured = {
        "milliseconds": 1e3 * tuned.seconds[tuned.fastest],
        "shipped_milliseconds": 1e3 * tuned.seconds[tuned.shipped],
        "device": device,
        "torch": torch.__version__,
    }
    save(path, slot.key, asdict(tuned.fastest), measured)


def describe(tiles: Any) -> str:
    """The fields of tiles in one line."""
    return " ".join(f"{name}={value}" for name, value in asdict(tiles).items())


def _why_not(run: Run, tiles: Any, expected: Sequence[torch.Tensor]) -> str:
    """Why tiles do not count; empty when they do."""
    # a compiler pass that fails is a RuntimeError, too much shared memory a TritonError
    try:
        found = run(tiles)
    except (TritonError, RuntimeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    error = max(_deviation(x, y) for x, y in zip(found, expected, strict=True))
    return "" if error <= _WRONG else f"differs from the shipped tiles by {error:.1e}"


def _deviation(x: torch.Tensor, y: torch.Tensor) -> float:
    """Relative root mean square; infinite where x is not finite."""
    deviation = ((x.float() - y.float()).norm() / y.float().norm()).item()
    return deviation if deviation >= 0 else float("inf")
