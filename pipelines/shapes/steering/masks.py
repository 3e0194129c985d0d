"""How well masks of phrases fit the objects drawn: overlap with the picture read back."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline

from ....attn_processors.modulation import AttentionMasks, Scene, modulate
from ..load import MODELS
from ..quality import draw
from ..reader import trace
from .prompts import Prompt

__all__ = ["mask_overlaps"]

POWERS = (0, 1, 4)
MARGINS = (0.0, 0.1)
_SEED = 900


def mask_overlaps(
    pipe: DiffusionPipeline, name: str, asked: list[Prompt], steps: int
) -> dict[str, float]:
    """By power and margin: intersection over union of objects and their masks in the last step.

    The mean over the asked objects whose colour was drawn; cells go to pixels as they are.
    """
    options = [(power, margin) for power in POWERS for margin in MARGINS]
    readers = {
        (i, option): AttentionMasks(_scene(prompt), power=option[0], margin=option[1]).where(
            steps=(1 - 1.5 / steps, 1)
        )
        for i, prompt in enumerate(asked)
        for option in options
    }
    found: dict[str, list[float]] = {f"{power}, {margin:g}": [] for power, margin in options}
    with modulate(pipe, list(readers.values())) as run:
        asks = [prompt.ask for prompt in asked]
        call = MODELS[name].call
        pictures = draw(
            pipe, asks, size=(64, 64), steps=steps, call=call, batch=len(asked), seed=_SEED
        )
        for (i, (power, margin)), reader in readers.items():
            masks = run.read_by(reader).masks()
            found[f"{power}, {margin:g}"] += _overlaps(pictures[i], asked[i], masks)
    return {option: float(np.mean(values)) for option, values in found.items()}


def _scene(prompt: Prompt) -> Scene:
    names = [f"{colour} {shape}" for colour, shape in prompt.ask.objects]
    return Scene(prompt.ask.caption, phrases=[*names, f"{prompt.ask.background} background"])


def _overlaps(picture: np.ndarray, prompt: Prompt, masks: dict[str, torch.Tensor]) -> list[float]:
    seen, found = trace(picture), []
    for colour, shape in prompt.ask.objects:
        regions = [
            region
            for thing, region in zip(seen.reading.objects, seen.regions, strict=False)
            if thing.colour == colour
        ]
        if not regions:
            continue
        truth = torch.from_numpy(np.any(regions, 0))
        cells = masks[f"{colour} {shape}"].float()[:, None]
        mask = F.interpolate(cells, size=truth.shape, mode="nearest")[0, 0] > 0
        found.append(float((mask & truth).sum() / (mask | truth).sum()))
    return found
