"""Score an embedded model on captions it never saw, at its base size, and write its model card.

python -P -m foveate.pipelines.shapes.training.evaluate sd --folder FOLDER --card card.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from ..load import MODELS, load_shapes
from ..metrics import summarise
from ..quality import draw, score_all
from .data import held_out_asks

__all__ = ["evaluate", "main"]


def evaluate(
    pipe: DiffusionPipeline,
    name: str,
    *,
    number: int,
    objects: Sequence[int] = (1, 2, 3),
    steps: int = 25,
    seed: int = 100,
) -> tuple[dict, list[np.ndarray]]:
    """Figures over `number` captions of each number of objects, and the pictures."""
    side = MODELS[name].base_size
    scores, pictures = [], []
    for num_objects in objects:
        asks = held_out_asks(number, num_objects, seed + num_objects)
        drawn = draw(pipe, asks, size=(side, side), steps=steps, call=MODELS[name].call, seed=seed)
        scores += score_all(drawn, asks)
        pictures.append(drawn)
    return {key: asdict(value) for key, value in summarise(scores).items()}, pictures


def contact_sheet(pictures: np.ndarray, columns: int) -> Image.Image:
    rows = [np.concatenate(pictures[i : i + columns], 1) for i in range(0, len(pictures), columns)]
    return Image.fromarray((np.concatenate(rows) * 255).round().astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=tuple(MODELS))
    parser.add_argument("--folder", type=Path, default=None, help="default: the shipped weights")
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--card", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.folder is None:
        pipe = load_shapes(arguments.name)
    else:
        pipe = DiffusionPipeline.from_pretrained(
            arguments.folder, dtype=torch.float32, local_files_only=True
        )
    figures, pictures = evaluate(
        pipe,
        arguments.name,
        number=arguments.number,
        objects=arguments.objects,
        steps=arguments.steps,
    )
    card = {
        "model": MODELS[arguments.name].folder,
        "prompts": arguments.number,
        "steps": arguments.steps,
        "call": MODELS[arguments.name].call,
        "figures": figures,
    }
    arguments.card.write_text(json.dumps(card, indent=1) + "\n")
    sheet = np.concatenate([drawn[:16] for drawn in pictures])
    contact_sheet(sheet, 16).save(arguments.card.with_suffix(".png"))


if __name__ == "__main__":
    main()
