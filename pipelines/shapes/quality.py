"""Draw many prompts with one pipeline and read the pictures back: quality as numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from diffusers import DiffusionPipeline
from tqdm import trange

from .metrics import Score, score
from .scene import Ask

__all__ = ["batches", "call_for", "draw", "score_all"]


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
    """One picture or clip per ask, float32 [number, height, width, 3] in 0..1.

    Clips are [number, frames, height, width, 3]. The noise of number i depends on seed + i alone.
    """
    height, width = size
    pipe.set_progress_bar_config(disable=True)
    pictures = []
    for prompts, generators in batches(asks, batch, seed):
        result = pipe(
            prompts,
            height=height,
            width=width,
            num_inference_steps=steps,
            generator=generators,
            output_type="np",
            **call_for(len(prompts), call),
        )
        pictures.append(result.frames if "frames" in result else result.images)
    return np.concatenate(pictures)


def batches(
    asks: Sequence[Ask], batch: int, seed: int
) -> Iterator[tuple[list[str], list[torch.Generator]]]:
    """Captions, `batch` at a time, with a generator for each, under a progress bar."""
    for start in trange(0, len(asks), batch, desc="draw", mininterval=1):
        part = asks[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        yield [ask.caption for ask in part], generators


def call_for(number: int, call: dict) -> dict:
    """Call arguments of a model (`MODELS[name].call`) for a batch of so many prompts."""
    if "negative_prompt" not in call:
        return call
    return {**call, "negative_prompt": [call["negative_prompt"]] * number}


def score_all(pictures: np.ndarray, asks: Sequence[Ask]) -> list[Score]:
    return [score(picture, ask) for picture, ask in zip(pictures, asks, strict=True)]
