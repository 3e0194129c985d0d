"""Sharper and flatter attention of the picture to itself: what keeps objects apart.

python examples/sharpen_attention.py --out sharpen_attention.png
"""

import argparse

import torch
from PIL import Image

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="sharpen_attention.png")
parser.add_argument("--steps", type=int, default=20)
options = parser.parse_args()

pipe = foveate.load_shapes("flux")
EARLY = (0, 0.2)  # where objects find their places
COLUMNS = {
    "as it comes": foveate.SelfTemperature(1.0),  # 1 changes nothing
    "flatter early": foveate.SelfTemperature(0.7).where(steps=EARLY),
    "sharper early": foveate.SelfTemperature(2.0).where(steps=EARLY),
    "sharper in all steps": foveate.SelfTemperature(2.0),
}
SEEDS = range(4)


def draw(seed):
    picture = pipe(
        "a purple circle and a green square on a pink background",
        height=64,
        width=64,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(seed),
        **MODELS["flux"].call,
    ).images[0]
    return picture.resize((128, 128), Image.Resampling.NEAREST)


sheet = Image.new("RGB", (len(COLUMNS) * 128, len(SEEDS) * 128))
for column, modulation in enumerate(COLUMNS.values()):
    with foveate.modulate(pipe, [modulation]):
        for row, seed in enumerate(SEEDS):
            sheet.paste(draw(seed), (column * 128, row * 128))
sheet.save(options.out)
print(f"{', '.join(COLUMNS)}: {options.out}")
