"""What the teacher is asked to draw: a text file, or captions of the embedded models' scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..shapes.scene import sample_scene
from ..shapes.training.data import is_held_out

__all__ = ["read_prompts", "scene_prompts"]


def read_prompts(path: str | Path, number: int) -> list[str]:
    """`number` prompts from the lines of a file, from the top again where there are fewer."""
    lines = [line.strip() for line in Path(path).read_text().splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"{path} holds no prompts; expected one a line")
    return [lines[i % len(lines)] for i in range(number)]


def scene_prompts(number: int, seed: int) -> list[str]:
    """`number` captions of random scenes, none of those kept for evaluation."""
    rng = np.random.default_rng(seed)
    prompts: list[str] = []
    while len(prompts) < number:
        ask = sample_scene(rng).ask
        if not is_held_out(ask):
            prompts.append(ask.caption)
    return prompts
