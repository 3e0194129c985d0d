"""Local attention in a stock Stable Diffusion pipeline, and off again.

python examples/apply_local.py --out apply_local.png
"""

import argparse

import torch
from PIL import Image

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="apply_local.png")
parser.add_argument("--steps", type=int, default=25)
options = parser.parse_args()

pipe = foveate.load_shapes("sd")


def draw():
    return pipe(
        "a red circle left of a blue square on a teal background",
        height=96,
        width=96,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(0),
        **MODELS["sd"].call,
    ).images[0]


dense = draw()
with foveate.apply(pipe, foveate.LocalAttnProcessor(radius=8)) as handle:
    local = draw()
    print(handle.report())
assert draw() == dense  # leaving the block undid it, bit for bit

both = Image.new("RGB", (2 * 96, 96))
both.paste(dense, (0, 0))
both.paste(local, (96, 0))
both.save(options.out)
print(f"dense and local side by side: {options.out}")
