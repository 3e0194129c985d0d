"""Draw many prompts with one pipeline and read the pictures back: quality as numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DiffusionPipeline
from tqdm import trange

from .metrics import Score, score
from .scene import Ask

__all__ = ["draw", "score_all"]


def draw(
    pipe: DiffusionPipeline,
    asks: Sequence[Ask],
    *,
    size: tuple[int, int],
    steps: int,
    call: dict,
    batch: int = 25,
    seed: int = 0,
) -> np.ndarray:
    """One picture per ask, float32 [number, height, width, 3] in 0..1.

    The noise of picture i depends on seed + i alone.
    """
    height, width = size
    pipe.set_progress_bar_config(disable=True)
    pictures = []
    for start in trange(0, len(asks), batch, desc="draw", mininterval=1):
        part = asks[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        options = dict(call)
        if "negative_prompt" in options:
            options["negative_prompt"] = [options["negative_prompt"]] * len(part)
        result = pipe(
            [ask.caption for ask in part],
            height=height,
            width=width,
            num_inference_steps=steps,
            generator=generators,
            output_type="np",
            **options,
        )
        pictures.append(result.images)
    return np.concatenate(pictures)


def score_all(pictures: np.ndarray, asks: Sequence[Ask]) -> list[Score]:
    return [score(picture, ask) for picture, ask in zip(pictures, asks, strict=True)]
