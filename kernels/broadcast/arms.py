"""What a layer can do in one evaluation of the model, and rows of it over a whole run.

A row has one letter for each evaluation of the schedule, such as `###=#=##`.
"""

from __future__ import annotations

__all__ = ["ARMS", "COMPUTE", "CORRECT", "FORECAST", "LEGEND", "REUSE", "check_row", "last_read"]

COMPUTE = "#"
REUSE = "="  # the last computed output (order 0)
FORECAST = "~"  # extrapolated over the timesteps of the last two computed outputs (order 1)
CORRECT = "+"  # the operator's output now, plus what it lacked to dense when last computed
ARMS = COMPUTE + REUSE + FORECAST + CORRECT
LEGEND = "# computed, = reused, ~ forecast, + corrected"


def check_row(row: str, length: int) -> None:
    """Raise ValueError unless `row` has `length` known letters and computes first."""
    if len(row) != length or set(row) - set(ARMS):
        raise ValueError(f"expected {length} letters of {ARMS!r} ({LEGEND}), got {row!r}")
    if row and row[0] != COMPUTE:
        raise ValueError(f"the first evaluation has nothing to reuse and must compute, got {row!r}")


def last_read(row: str, index: int) -> int:
    """The last evaluation that reads an output computed at `index`; `index` itself if none does.

    The output serves the evaluations up to the next computed one, and as the older of two those
    after it that forecast.
    """
    own = _end_of_segment(row, index)
    following = _end_of_segment(row, own + 1)
    is_older = FORECAST in row[own + 2 : following + 1]
    return following if is_older else own


def _end_of_segment(row: str, index: int) -> int:
    """The last evaluation after `index` before the next computed one."""
    end = index
    while end + 1 < len(row) and row[end + 1] != COMPUTE:
        end += 1
    return end
