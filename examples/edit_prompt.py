"""Edit a picture by editing its prompt: what the prompts share stays where it is.

python examples/edit_prompt.py --out edit_prompt.png
"""

import argparse
import contextlib

import torch
from PIL import Image

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="edit_prompt.png")
parser.add_argument("--steps", type=int, default=20)
options = parser.parse_args()

pipe = foveate.load_shapes("sd")
source = foveate.Scene("a [red circle]{circle} and a blue square on a teal background")
swapped = foveate.Scene("a [yellow circle]{a} and a blue square on a teal background")
longer = foveate.Scene("a red circle and a blue square and a [white star]{c} on a teal background")
REPLACE = [
    foveate.AttentionReplace(source, swapped).where(steps=(0, 0.8)),
    foveate.SelfAttentionReplace(source, swapped).where(steps=(0, 0.4)),
]
REFINE = [foveate.AttentionRefine(source, longer).where(steps=(0, 0.8))]
REWEIGHT = [foveate.AttentionReweight(source, {"circle": -2})]
ROWS = [
    ("source", source, []),
    ("a word swapped, alone", swapped, []),
    ("a word swapped, AttentionReplace", swapped, REPLACE),
    ("words added, alone", longer, []),
    ("words added, AttentionRefine", longer, REFINE),
    ("AttentionReweight, circle times -2", source, REWEIGHT),
]
SEEDS, SIDE = range(6), 96


def draw(scene, seed):
    """The picture of a scene, drawn beside the source from the same noise."""
    return pipe(
        [source.prompt, scene.prompt],
        num_inference_steps=options.steps,
        generator=[torch.Generator().manual_seed(seed) for _ in range(2)],
        **MODELS["sd"].call,
    ).images[1]


pipe.set_progress_bar_config(disable=True)
sheet = Image.new("RGB", (len(SEEDS) * SIDE, len(ROWS) * SIDE))
for row, (label, scene, edits) in enumerate(ROWS):
    with foveate.modulate(pipe, edits) if edits else contextlib.nullcontext():
        for column, seed in enumerate(SEEDS):
            picture = draw(scene, seed).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(picture, (column * SIDE, row * SIDE))
    print(f"row {row + 1}: {label}")
sheet.save(options.out)
