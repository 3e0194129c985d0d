"""A place for every phrase: two objects in boxes, and then with the boxes exchanged.

python examples/bind_regions.py --out bind_regions.png
"""

import argparse

import torch
from PIL import Image

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="bind_regions.png")
parser.add_argument("--steps", type=int, default=25)
options = parser.parse_args()

pipe = foveate.load_shapes("flux")
MARKED = "a [red circle]{a} and a [blue square]{b} on a teal background"
LEFT, RIGHT = (0.05, 0.3, 0.45, 0.7), (0.55, 0.3, 0.95, 0.7)  # x0, y0, x1, y1 of the picture


def draw(prompt):
    return pipe(
        prompt,
        height=64,
        width=64,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(3),
        **MODELS["flux"].call,
    ).images[0]


scene = foveate.Scene(MARKED, regions={"a": LEFT, "b": RIGHT})
pictures = [draw(scene.prompt)]
for regions in ({"a": LEFT, "b": RIGHT}, {"a": RIGHT, "b": LEFT}):
    scene = foveate.Scene(MARKED, regions=regions)
    with foveate.modulate(pipe, [foveate.RegionBind(scene)]) as run:
        pictures.append(draw(scene.prompt))
print(run.explain())

row = Image.new("RGB", (3 * 192, 192))
for i, picture in enumerate(pictures):
    row.paste(picture.resize((192, 192), Image.Resampling.NEAREST), (i * 192, 0))
row.save(options.out)
print(f"as it comes, in boxes, boxes exchanged: {options.out}")
