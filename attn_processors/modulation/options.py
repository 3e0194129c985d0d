"""Checks of options that several modulations have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

from .scene import Scene

__all__ = ["is_number", "read_strengths"]


def is_number(value: object) -> bool:
    """Whether it is a finite real number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def read_strengths(scene: Scene, strengths: object) -> dict[str, float]:
    """Phrase of the scene -> factor, of at least one."""
    if not isinstance(strengths, Mapping) or not strengths:
        raise ValueError(
            "strengths must be a mapping of phrases to factors, such as "
            f"{{{next(iter(scene.phrases))!r}: 2.0}}, got {strengths!r}"
        )
    for name, strength in strengths.items():
        scene.check_name(name)
        if not is_number(strength):
            raise ValueError(f"the strength of {name!r} must be a number, got {strength!r}")
    return dict(strengths)
