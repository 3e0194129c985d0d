"""Teacher and student side by side: what a training shows of itself on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import DiffusionPipeline
from PIL import Image

__all__ = ["draw_row", "sheet"]

_SIDE = 160  # pixels of a picture on the sheet
_SEED = 1_000_000


@torch.no_grad()
def draw_row(
    pipe: DiffusionPipeline, prompts: Sequence[str], steps: int, call: Mapping[str, object]
) -> list[Image.Image]:
    """A picture for every prompt, from the same noise each time."""
    options = dict(call)
    if "negative_prompt" in options:
        options["negative_prompt"] = [options["negative_prompt"]] * len(prompts)
    generators = [torch.Generator().manual_seed(_SEED + i) for i in range(len(prompts))]
    return pipe(list(prompts), num_inference_steps=steps, generator=generators, **options).images


def sheet(*rows: Sequence[Image.Image]) -> Image.Image:
    """One picture of all, a row below the other."""
    whole = Image.new("RGB", (_SIDE * len(rows[0]), _SIDE * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            scale = _SIDE / max(picture.size)
            fitted = picture.resize([max(1, round(n * scale)) for n in picture.size])
            whole.paste(fitted, (x * _SIDE, y * _SIDE))
    return whole
