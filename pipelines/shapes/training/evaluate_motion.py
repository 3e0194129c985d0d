"""Score the video model on captions it never saw, at its base size, and write its model card.

python -P -m foveate.pipelines.shapes.training.evaluate_motion --folder FOLDER --card card.json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from ..clip_metrics import score_clip, summarise_clips
from ..load import VIDEO_MODELS, load_motion, weights_folder
from ..quality import draw
from .data import held_out_clip_asks
from .evaluate import contact_sheet

__all__ = ["main"]

SEED = 100
SHOWN = (8, 8)  # clips, and frames of each, in the picture beside the card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=weights_folder("motion"))
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--card", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    known = VIDEO_MODELS["motion"]
    asks = held_out_clip_asks(arguments.number, SEED)
    clips = draw(
        load_motion(arguments.folder),
        asks,
        size=(known.base_size, known.base_size),
        steps=arguments.steps,
        call=known.call,
        batch=4,
        seed=SEED,
    )
    scores = [score_clip(clip, ask) for clip, ask in zip(clips, asks, strict=True)]
    card = {
        "model": known.folder,
        "prompts": arguments.number,
        "steps": arguments.steps,
        "call": known.call,
        "figures": {name: asdict(value) for name, value in summarise_clips(scores).items()},
    }
    arguments.card.write_text(json.dumps(card, indent=1) + "\n")
    times = np.linspace(0, clips.shape[1] - 1, SHOWN[1]).round().astype(int)
    shown = np.concatenate(clips[: SHOWN[0], times])
    contact_sheet(shown, SHOWN[1]).save(arguments.card.with_suffix(".png"))


if __name__ == "__main__":
    main()
