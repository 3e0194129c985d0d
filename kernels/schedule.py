"""Windows of the schedule: (start, end) in fractions of a run, from 0, the noisiest, to 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .inputs import is_number

__all__ = ["check_fractions", "check_window", "is_pair", "is_within"]


def check_fractions(name: str, window: tuple[float, float]) -> None:
    """Raise ValueError unless `window` is (start, end) in fractions of the run."""
    if not is_pair(window) or not 0 <= window[0] < window[1] <= 1:
        raise ValueError(f"{name} must be (start, end) with 0 <= start < end <= 1, got {window!r}")


def check_window(steps: tuple[float, float]) -> None:
    """Raise ValueError unless `steps` is a window that may be empty."""
    if not is_pair(steps) or not 0 <= steps[0] <= steps[1] <= 1:
        raise ValueError(f"steps must be (start, end) with 0 <= start <= end <= 1, got {steps!r}")


def is_pair(window: Any) -> bool:
    """Whether it is two numbers."""
    return isinstance(window, Sequence) and len(window) == 2 and all(map(is_number, window))


def is_within(progress: float, steps: tuple[float, float]) -> bool:
    """Whether this fraction of the schedule lies in the window; one that ends at 1 has the end."""
    start, end = steps
    return start <= progress < end or (end == 1 and start <= progress)
