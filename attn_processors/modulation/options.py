"""Checks of options that several modulations have."""

from __future__ import annotations

from collections.abc import Mapping

from ...kernels.inputs import is_number
from .scene import Scene

__all__ = ["read_strengths"]


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
