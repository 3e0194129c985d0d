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

# a radius for each head; a UNet's layers differ in heads
radii = {2: (4, 16), 4: (2, 4, 8, 16)}
per_head = {
    name: foveate.LocalAttnProcessor(radius=radii[layer.heads])
    for name, layer in pipe.unet.named_modules()
    if name.endswith("attn1")
}
with foveate.apply(pipe, per_head):
    multi_scale = draw()
assert draw() == dense  # leaving the blocks undid it, bit for bit

row = Image.new("RGB", (3 * 96, 96))
for i, picture in enumerate((dense, local, multi_scale)):
    row.paste(picture, (i * 96, 0))
row.save(options.out)
print(f"dense, local, a radius for each head: {options.out}")
