"""The operators the study compares, at one radius and at one cost."""

from __future__ import annotations

from ....attn_processors import FoveatedAttnProcessor, LocalAttnProcessor
from ....attn_processors.base import AttnProcessor
from ....kernels.layout import TokenLayout

__all__ = ["RADIUS", "methods", "slug"]

# tokens, and the side of a pooled cell: 16 pixels in both models, four and eight pixels to a token
RADIUS = {"sd": 4, "flux": 2}


def methods(model: str, layout: TokenLayout) -> dict[str, AttnProcessor]:
    """Name -> processor; `local, equal cost` needs as many keys at `layout` as `foveated`."""
    radius = RADIUS[model]
    foveated = FoveatedAttnProcessor(radius=radius, pool=radius)
    return {
        "local": LocalAttnProcessor(radius=radius),
        "local, equal cost": LocalAttnProcessor(radius=_equal_radius(foveated, layout)),
        "pooled, no mass": FoveatedAttnProcessor(radius=radius, pool=radius, mass=False),
        "foveated": foveated,
    }


def slug(method: str) -> str:
    """A method's name in the names of files."""
    return method.replace(", ", "-").replace(" ", "-")


def _equal_radius(foveated: FoveatedAttnProcessor, layout: TokenLayout) -> int:
    """Smallest radius whose disc needs at least the keys of `foveated`."""
    wanted = foveated.count_keys(layout).needed
    radius = foveated.radius
    while LocalAttnProcessor(radius=radius).count_keys(layout).needed < wanted:
        radius += 1
    return radius
