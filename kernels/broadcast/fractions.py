"""The portable row: every n-th evaluation computes, inside a window on the fraction of the run."""

from __future__ import annotations

from .arms import COMPUTE, FORECAST, REUSE

__all__ = ["MIN_EVALUATIONS", "TAIL", "check_every", "fraction_row"]

MIN_EVALUATIONS = 8
TAIL = 2  # evaluations at the end that compute: what is wrong there nothing repairs


def fraction_row(
    count: int, *, every: int, window: tuple[float, float], letter: str, is_noisy: bool
) -> str:
    """A row of arms for `count` evaluations: `letter` where it does not compute.

    The window is on i / count. The last two evaluations compute. Runs of fewer than 8 evaluations
    compute everything. Where every step adds noise, outputs are reused and not forecast, every
    second one.
    """
    if count < MIN_EVALUATIONS:
        return COMPUTE * count
    if is_noisy:
        every, letter = min(every, 2), REUSE if letter == FORECAST else letter
    start, end = window
    inside = [i for i in range(count) if start <= i / count < end and 0 < i < count - TAIL]
    skipped = {i for place, i in enumerate(inside) if place % every}
    return "".join(letter if i in skipped else COMPUTE for i in range(count))


def check_every(name: str, every: object) -> None:
    """Raise ValueError unless `every` counts steps."""
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"{name} must be an integer >= 1 (1 computes always), got {every!r}")
