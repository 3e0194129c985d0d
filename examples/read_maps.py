"""Which pixels listen to which phrase: maps of a run, read without attention matrices.

python examples/read_maps.py --out read_maps.png
"""

import argparse

import torch

import foveate
from foveate.pipelines.heat_sheet import heat_sheet
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="read_maps.png")
parser.add_argument("--steps", type=int, default=25)
options = parser.parse_args()

pipe = foveate.load_shapes("sd")
scene = foveate.Scene(
    "a [red circle]{a} and a [blue square]{b} on a teal background",
    regions={"a": (0, 0, 0.5, 1), "b": (0.5, 0, 1, 1)},
)
rows = []
for label, steering in (("as it comes", []), ("bound to halves", [foveate.RegionBind(scene)])):
    with foveate.modulate(pipe, [*steering, foveate.SpanMaps(scene)]) as run:
        picture = pipe(
            scene.prompt,
            num_inference_steps=options.steps,
            generator=torch.Generator().manual_seed(0),
            **MODELS["sd"].call,
        ).images[0]
        maps = run.span_maps(size=(64, 64))
        rows.append((label, {scene.text(name): one[0].numpy() for name, one in maps.items()}))
        print(label, {name: round(float(one.mean()), 3) for name, one in maps.items()})
heat_sheet(picture, rows).save(options.out)
