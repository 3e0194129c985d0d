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

MARKED = "a [red circle]{a} and a [blue square]{b} on a teal background"
LEFT, RIGHT = (0.05, 0.3, 0.45, 0.7), (0.55, 0.3, 0.95, 0.7)  # x0, y0, x1, y1 of the picture
SCENES = [
    foveate.Scene(MARKED, regions={"a": LEFT, "b": RIGHT}),
    foveate.Scene(MARKED, regions={"a": RIGHT, "b": LEFT}),
]
sheet = Image.new("RGB", (3 * 192, 2 * 192))
for row, model in enumerate(("sd-bow", "flux")):
    pipe = foveate.load_shapes(model)

    def draw(pipe=pipe, model=model):
        return pipe(
            SCENES[0].prompt,
            height=64,
            width=64,
            num_inference_steps=options.steps,
            generator=torch.Generator().manual_seed(3),
            **MODELS[model].call,
        ).images[0]

    pictures = [draw()]
    for scene in SCENES:
        with foveate.modulate(pipe, [foveate.RegionBind(scene)]) as run:
            pictures.append(draw())
    print(run.explain())
    for column, picture in enumerate(pictures):
        picture = picture.resize((192, 192), Image.Resampling.NEAREST)
        sheet.paste(picture, (column * 192, row * 192))
sheet.save(options.out)
print(f"as it comes, in boxes, boxes exchanged: {options.out}")
