"""One picture against its prompt and its boxes.

BIND, COUNT, LEAK as in metrics.py
SWAP    1 when every object is there with the colour of the other, else 0
PLACED  share of the asked objects whose colour has its largest component centred in their box
IOU     of that component's bounding box with the asked box, 0 where there is none; mean of both
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext

import numpy as np
from diffusers import DiffusionPipeline

from ....attn_processors.modulation import modulate
from ..load import MODELS
from ..metrics import score
from ..quality import draw
from ..reader import Reading, trace
from .methods import COST_ALONE, METHODS, SHARED
from .prompts import Box, Prompt, bounds

__all__ = ["BATCH", "COLUMNS", "draw_batch", "row_of"]

COLUMNS = ("bind", "swap", "count", "leak", "placed", "iou")
BATCH = 10
SEED = 900


def draw_batch(
    pipe: DiffusionPipeline, name: str, method: str, batch: list[Prompt], start: int, steps: int
) -> np.ndarray:
    """The pictures of prompts number `start` and on, whose noise is the same for every method."""
    if method in SHARED:
        active = SHARED[method]
    else:
        make = (METHODS | COST_ALONE)[method]
        active = [] if make is None else [one for prompt in batch for one in make(prompt)]
    with modulate(pipe, active) if active else nullcontext():
        return draw(
            pipe,
            [prompt.ask for prompt in batch],
            size=(64, 64),
            steps=steps,
            call=MODELS[name].call,
            batch=BATCH,
            seed=SEED + start,
        )


def row_of(picture: np.ndarray, prompt: Prompt) -> dict[str, float | None]:
    """The metrics of one picture; LEAK is None where the picture is unreadable."""
    got = score(picture, prompt.ask)
    placed, ious = [], []
    seen = trace(picture)
    for (colour, _), box in zip(prompt.ask.objects, prompt.boxes, strict=True):
        found = [
            (thing, region)
            for thing, region in zip(seen.reading.objects, seen.regions, strict=False)
            if thing.colour == colour
        ]
        if not found:
            placed.append(0.0)
            ious.append(0.0)
            continue
        thing, region = found[0]
        placed.append(float(box[0] < thing.x < box[2] and box[1] < thing.y < box[3]))
        ious.append(_iou(bounds(region), box))
    return {
        "bind": got.bind,
        "swap": _is_swapped(seen.reading, prompt),
        "count": got.count,
        "leak": got.leak,
        "placed": float(np.mean(placed)),
        "iou": float(np.mean(ious)),
    }


def _is_swapped(reading: Reading, prompt: Prompt) -> int:
    (colour, shape), (colour2, shape2) = prompt.ask.objects
    found = Counter((thing.colour, thing.shape) for thing in reading.objects)
    missing = Counter([(colour2, shape), (colour, shape2)]) - found
    return int(reading.unreadable is None and not missing)


def _iou(one: Box, two: Box) -> float:
    sides = [max(0.0, min(one[i + 2], two[i + 2]) - max(one[i], two[i])) for i in (0, 1)]
    both = sides[0] * sides[1]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return both / (sum(areas) - both)
