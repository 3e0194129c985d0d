"""Weights of words that follow the schedule: nouns first, attributes after them.

python examples/weigh_phases.py --out weigh_phases.png
"""

import argparse

import torch
from PIL import Image

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="weigh_phases.png")
parser.add_argument("--steps", type=int, default=20)
options = parser.parse_args()

pipe = foveate.load_shapes("flux")
scene = foveate.Scene("a [purple circle]{a} and a [green square]{b} on a pink background")
WEIGHTS = {  # early, in the middle, late; 1 changes nothing
    "as it comes": {"noun": (1, 1, 1), "attribute": (1, 1, 1)},
    "nouns first, the default": {"noun": (1.5, 1, 1), "attribute": (1, 1.5, 1)},
    "fourfold": {"noun": (4, 1, 1), "attribute": (1, 4, 1)},
    "attributes first": {"noun": (1, 1.5, 1), "attribute": (1.5, 1, 1)},
}
SEEDS = range(4)


def draw(seed):
    picture = pipe(
        scene.prompt,
        height=64,
        width=64,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(seed),
        **MODELS["flux"].call,
    ).images[0]
    return picture.resize((128, 128), Image.Resampling.NEAREST)


sheet = Image.new("RGB", (len(WEIGHTS) * 128, len(SEEDS) * 128))
for column, weights in enumerate(WEIGHTS.values()):
    with foveate.modulate(pipe, [foveate.PhaseWeights(scene, **weights)]):
        for row, seed in enumerate(SEEDS):
            sheet.paste(draw(seed), (column * 128, row * 128))
sheet.save(options.out)
print(f"{', '.join(WEIGHTS)}: {options.out}")
