"""Where a sampling is: the step that a noise level belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Steps", "read_steps"]


@dataclass(frozen=True, slots=True)
class Steps:
    """index: of this step, from 0. count: steps of the sampling."""

    index: int
    count: int

    @property
    def progress(self) -> float:
        """Part of the steps that lie before this one."""
        return self.index / self.count


def read_steps(sigmas: Sequence[float], sigma: float) -> Steps | None:
    """The step of `sigma` in the schedule, whose last entry is where the sampling ends.

    Samplers of higher order evaluate between two entries too: that is the step of the first.
    """
    count = len(sigmas) - 1
    if count < 1:
        return None
    reached = [i for i, level in enumerate(sigmas[:-1]) if level >= sigma * (1 - 1e-5)]
    return Steps(reached[-1] if reached else 0, count)
