"""The operators that are compared: foveated with its like, and every processor untrained."""

from __future__ import annotations

from ....attn_processors import (
    AgentAttnProcessor,
    FoveatedAttnProcessor,
    LinearAttnProcessor,
    LocalAttnProcessor,
    NeighborhoodAttnProcessor,
    WindowAttnProcessor,
)
from ....attn_processors.base import AttnProcessor
from ....kernels.layout import TokenLayout
from ..load import MODELS

__all__ = ["RADIUS", "methods", "slug", "top_layout", "untrained"]

# tokens, and the side of a pooled cell: 16 pixels in both models, four and eight pixels to a token
RADIUS = {"sd": 4, "flux": 2}


def top_layout(name: str, side: int) -> TokenLayout:
    """The layout with the most tokens in a forward at `side` pixels."""
    tokens = side // MODELS[name].token
    if name == "sd":
        return TokenLayout(grid=(1, tokens, tokens))
    return TokenLayout(text=MODELS[name].call["max_sequence_length"], grid=(1, tokens, tokens))


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


def untrained(model: str, layout: TokenLayout) -> dict[str, AttnProcessor]:
    """Name -> processor at settings that cost about the same on a grid like `layout`'s.

    The agents are a quarter of the tokens, on grids above 256 tokens at most 256.
    """
    radius = RADIUS[model]
    side = 2 * radius - 1
    return {
        "local": LocalAttnProcessor(radius=radius),
        "foveated": FoveatedAttnProcessor(radius=radius, pool=radius),
        "neighbourhood": NeighborhoodAttnProcessor(kernel_size=(1, side, side)),
        "windows": WindowAttnProcessor(),
        "windows, moving": WindowAttnProcessor(seed=0, wrap=True),
        "agent": AgentAttnProcessor(agents=min(256, layout.num_grid // 4)),
        "linear": LinearAttnProcessor(),
        "linear, affine": LinearAttnProcessor(feature_map="identity", affine=True),
        "window and linear": LinearAttnProcessor(radius=radius, gate=1.0),
    }


def slug(method: str) -> str:
    """A method's name in the names of files."""
    kept = "".join(c if c.isalnum() or c == "." else "-" for c in method.lower())
    return "-".join(part for part in kept.split("-") if part)


def _equal_radius(foveated: FoveatedAttnProcessor, layout: TokenLayout) -> int:
    """Smallest radius whose disc needs at least the keys of `foveated`."""
    wanted = foveated.count_keys(layout).needed
    radius = foveated.radius
    while LocalAttnProcessor(radius=radius).count_keys(layout).needed < wanted:
        radius += 1
    return radius
