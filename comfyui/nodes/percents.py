"""The two inputs that say in which part of a sampling a node acts."""

from __future__ import annotations

from comfy_api.latest import io

__all__ = ["percents"]


def percents(start: float, end: float, at_start: str, at_end: str) -> list[io.Input]:
    """start_percent and end_percent with these defaults and tooltips."""
    return [
        io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)
        for name, default, tooltip in (
            ("start_percent", start, at_start),
            ("end_percent", end, at_end),
        )
    ]
