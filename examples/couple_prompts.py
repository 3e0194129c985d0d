"""A prompt for every region: one pass of the model, three prompts, each where it belongs.

python examples/couple_prompts.py --out couple_prompts.png
"""

import argparse

import torch
from PIL import Image

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="couple_prompts.png")
parser.add_argument("--steps", type=int, default=25)
options = parser.parse_args()

ONE = "a red circle on a teal background"
TWO = "a blue square on a teal background"
LEFT, RIGHT = (0.05, 0.3, 0.45, 0.7), (0.55, 0.3, 0.95, 0.7)  # x0, y0, x1, y1 of the picture
scene = foveate.Scene(
    "a red circle and a blue square on a teal background", regions={"red circle": LEFT}
)
WAYS = [
    [],
    [foveate.AttentionCouple(scene, {ONE: "red circle", TWO: RIGHT}, base=0.3)],
    [foveate.AttentionCouple(scene, {ONE: RIGHT, TWO: LEFT}, base=0.3)],
]
sheet = Image.new("RGB", (len(WAYS) * 192, 2 * 192))
for row, model in enumerate(("sd", "flux")):
    pipe = foveate.load_shapes(model)

    def draw(pipe=pipe, model=model):
        return pipe(
            scene.prompt,
            height=64,
            width=64,
            num_inference_steps=options.steps,
            generator=torch.Generator().manual_seed(3),
            **MODELS[model].call,
        ).images[0]

    pictures = [draw()]
    for modulations in WAYS[1:]:
        with foveate.modulate(pipe, modulations) as run:
            pictures.append(draw())
    print(run.explain())
    for column, picture in enumerate(pictures):
        picture = picture.resize((192, 192), Image.Resampling.NEAREST)
        sheet.paste(picture, (column * 192, row * 192))
sheet.save(options.out)
print(f"as it comes, a prompt a region, exchanged: {options.out}")
