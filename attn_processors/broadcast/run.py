"""The schedule a denoiser is driven by: who holds it, and when it begins anew."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from .schedule import Schedule, read_schedule

__all__ = ["Run"]


class Run:
    """Watches a scheduler, or the scheduler that a pipeline holds at the time.

    Every `set_timesteps` makes a new tensor, so another object is another run.
    """

    def __init__(self, source: object) -> None:
        self._source: weakref.ref | None = weakref.ref(source)
        self._timesteps: torch.Tensor | None = None

    def begun(self) -> Schedule | None:
        """The schedule, if a run has begun since the last time; else None."""
        scheduler = self._scheduler()
        if scheduler is None or scheduler.timesteps is self._timesteps:
            return None
        schedule = read_schedule(scheduler)
        # held, so that no other tensor can take its identity
        self._timesteps = scheduler.timesteps
        return schedule

    def _scheduler(self) -> Any:
        source = None if self._source is None else self._source()
        return getattr(source, "scheduler", source)

    def __getstate__(self) -> dict[str, Any]:
        # weak references do not pickle
        return {"_source": None, "_timesteps": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Run:
        # a copied pipeline has a scheduler of its own; memo knows the copy being made
        new = object.__new__(Run)
        memo[id(self)] = new
        source = None if self._source is None else self._source()
        new._timesteps = None
        new._source = None if source is None else weakref.ref(memo.get(id(source), source))
        return new
