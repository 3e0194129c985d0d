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
parser.add_argument("--steps", type=int, default=20)
options = parser.parse_args()

# its text encoder knows the words of a prompt and not their order: which colour is whose?
pipe = foveate.load_shapes("sd-bow")
SCENES = [
    foveate.Scene("a [red circle]{a} and a [blue square]{b} on a teal background"),
    foveate.Scene("a [orange triangle]{a} and a [green star]{b} on a pink background"),
]
SEEDS = range(4)


def draw(scene, seed):
    picture = pipe(
        scene.prompt,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(seed),
        **MODELS["sd-bow"].call,
    ).images[0]
    return picture.resize((128, 128), Image.Resampling.NEAREST)


sheet = Image.new("RGB", (len(SEEDS) * 128, 2 * len(SCENES) * 128))
for i, scene in enumerate(SCENES):
    for column, seed in enumerate(SEEDS):
        sheet.paste(draw(scene, seed), (column * 128, 2 * i * 128))
        with foveate.modulate(pipe, [foveate.ObjectFocus(scene)]) as run:
            sheet.paste(draw(scene, seed), (column * 128, (2 * i + 1) * 128))
print(run.explain())
sheet.save(options.out)
print(f"rows: as it comes, focused, for each of two prompts: {options.out}")
