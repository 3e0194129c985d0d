"""One denoising step of the embedded models under dense, local and foveated attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...attn_processors import FoveatedAttnProcessor, LocalAttnProcessor
from ..shapes.load import MODELS, load_shapes
from ..step_cost import step_costs

__all__ = ["ModelStep", "time_models"]

PROMPT = "a red circle left of a blue square on a teal background"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelStep:
    """A model at a size in pixels under one method; the other fields are those of StepCost."""

    model: str
    pixels: int
    method: str
    tokens: int
    keys: float
    seconds: float
    speed: float
    largest_tensor: int


def time_models(
    name: str, pixels: int, radii: Sequence[int], repeats: int, device: str
) -> list[ModelStep]:
    """A row for each method; speed is dense attention's time over the method's."""
    pipe, size = load_shapes(name).to(device), {"height": pixels, "width": pixels}
    methods = {"dense": None}
    for radius in radii:
        methods[f"local, radius {radius}"] = LocalAttnProcessor(radius=radius)
        for levels in (1, 2):
            processor = FoveatedAttnProcessor(radius=radius, levels=levels)
            methods[f"foveated, radius {radius}, {levels} level{'s' * (levels > 1)}"] = processor
    costs = step_costs(
        pipe,
        methods,
        PROMPT,
        call=MODELS[name].call,
        repeats=repeats,
        title=f"shapes-{name}, {pixels} px",
        **size,
    )
    return [
        ModelStep(
            model=f"shapes-{name}",
            pixels=pixels,
            method=cost.method,
            tokens=cost.tokens,
            keys=cost.keys,
            seconds=cost.seconds,
            speed=costs[0].seconds / cost.seconds,
            largest_tensor=cost.largest_tensor,
        )
        for cost in costs
    ]
