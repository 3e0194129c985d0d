"""Words that weigh more or less than the model gives them.

python examples/emphasize.py --out emphasize.png
"""

import argparse

import torch
from PIL import Image

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="emphasize.png")
parser.add_argument("--steps", type=int, default=20)
options = parser.parse_args()

pipe = foveate.load_shapes("flux")
scene = foveate.Scene("a [red circle]{circle} and a blue star on a pink background")
STRENGTHS = (0.1, 0.5, 1.0, 2.0, 4.0)  # 1 changes nothing
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


sheet = Image.new("RGB", (len(STRENGTHS) * 128, len(SEEDS) * 128))
for column, strength in enumerate(STRENGTHS):
    with foveate.modulate(pipe, [foveate.Emphasize(scene, {"circle": strength})]):
        for row, seed in enumerate(SEEDS):
            sheet.paste(draw(seed), (column * 128, row * 128))
sheet.save(options.out)
print(f"the circle's weight times {', '.join(map(str, STRENGTHS))}: {options.out}")
