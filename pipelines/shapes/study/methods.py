"""The operators the study compares, at one radius and at one cost."""

from __future__ import annotations

from ....attn_processors import FoveatedAttnProcessor, LocalAttnProcessor
from ....attn_processors.base import AttnProcessor
from ....kernels.layout import TokenLayout

__all__ = ["POOL", "RADIUS", "methods"]

RADIUS = 4
POOL = 4


def methods(layout: TokenLayout) -> dict[str, AttnProcessor]:
    """Name -> processor; `local, equal cost` needs as many keys at `layout` as `foveated`."""
    foveated = FoveatedAttnProcessor(radius=RADIUS, pool=POOL)
    return {
        "local": LocalAttnProcessor(radius=RADIUS),
        "local, equal cost": LocalAttnProcessor(radius=_equal_radius(foveated, layout)),
        "pooled, no mass": FoveatedAttnProcessor(radius=RADIUS, pool=POOL, mass=False),
        "foveated": foveated,
    }


def _equal_radius(foveated: FoveatedAttnProcessor, layout: TokenLayout) -> int:
    """Smallest radius whose disc needs at least the keys of `foveated`, or covers the grid."""
    wanted = foveated.count_keys(layout).needed
    largest = sum(layout.grid)
    return next(
        radius
        for radius in range(RADIUS, largest + 1)
        if LocalAttnProcessor(radius=radius).count_keys(layout).needed >= wanted
        or radius == largest
    )
