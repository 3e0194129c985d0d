"""One object a pixel: each place of the picture listens to one phrase, without any boxes.

python examples/focus_objects.py --out focus_objects.png
"""

import argparse

import torch
from PIL import Image

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="focus_objects.png")
parser.add_argument("--steps", type=int, default=25)
options = parser.parse_args()

pipe = foveate.load_shapes("flux")
# two pictures that come with an object too many
SCENES = {
    909: foveate.Scene("a [purple square]{a} and a [blue triangle]{b} on a brown background"),
    916: foveate.Scene("a [orange circle]{a} and a [green star]{b} on a pink background"),
}


def draw(scene, seed):
    picture = pipe(
        scene.prompt,
        height=64,
        width=64,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(seed),
        **MODELS["flux"].call,
    ).images[0]
    return picture.resize((192, 192), Image.Resampling.NEAREST)


sheet = Image.new("RGB", (2 * 192, len(SCENES) * 192))
for row, (seed, scene) in enumerate(SCENES.items()):
    sheet.paste(draw(scene, seed), (0, row * 192))
    with foveate.modulate(pipe, [foveate.ObjectFocus(scene)]) as run:
        sheet.paste(draw(scene, seed), (192, row * 192))
print(run.explain())
sheet.save(options.out)
print(f"as it comes, and focused: {options.out}")
