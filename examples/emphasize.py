"""Words that weigh more or less, and weights that follow the schedule.

python examples/emphasize.py --out emphasize.png
"""

import argparse

import torch
from PIL import Image

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="emphasize.png")
parser.add_argument("--steps", type=int, default=25)
options = parser.parse_args()

pipe = foveate.load_shapes("flux")
scene = foveate.Scene("a [red circle]{a} and a [blue star]{b} on a pink background")
methods = {
    "as it comes": foveate.Emphasize(scene, {"a": 1.0}),  # 1 changes nothing
    "circle at a quarter": foveate.Emphasize(scene, {"a": 0.25}),
    "circle fourfold": foveate.Emphasize(scene, {"a": 4.0}),
    "circle first, red later": foveate.PhaseWeights(scene, noun=(2, 1, 1), attribute=(1, 2, 1)),
}
sheet = Image.new("RGB", (len(methods) * 192, 192))
for column, (name, modulation) in enumerate(methods.items()):
    with foveate.modulate(pipe, [modulation]):
        picture = pipe(
            scene.prompt,
            height=64,
            width=64,
            num_inference_steps=options.steps,
            generator=torch.Generator().manual_seed(1),
            **MODELS["flux"].call,
        ).images[0]
    sheet.paste(picture.resize((192, 192), Image.Resampling.NEAREST), (column * 192, 0))
    print(name)
sheet.save(options.out)
