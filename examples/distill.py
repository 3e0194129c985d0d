"""A small student of a stock pipeline, trained layer by layer in a minute or two.

python examples/distill.py --out distill.png
"""

import argparse
import tempfile

import torch
from PIL import Image

import foveate
from foveate.pipelines.distill import DistillConfig, distill
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="distill.png")
parser.add_argument("--steps", type=int, default=100)
options = parser.parse_args()

pipe = foveate.load_shapes("flux")
call = MODELS["flux"].call
with tempfile.TemporaryDirectory() as folder:
    config = DistillConfig(
        model="shapes-flux",
        out=folder,
        student="local",
        radius=2,
        pictures=2 * options.steps,
        picture_steps=6,
        layer_steps=options.steps,
        layer_rate=2e-3,
        steps=0,
        batch=8,
        mixed_precision="bf16",
    )
    student = foveate.load_student(distill(pipe, config, call=call, base_size=64), pipe)


def draw():
    return pipe(
        "a red circle left of a blue square on a teal background",
        height=64,
        width=64,
        num_inference_steps=min(options.steps, 25),
        generator=torch.Generator().manual_seed(0),
        **call,
    ).images[0]


row = Image.new("RGB", (3 * 64, 64))
row.paste(draw(), (0, 0))
for place, processor in enumerate([foveate.LocalAttnProcessor(radius=2), student], start=1):
    with foveate.apply(pipe, processor):
        row.paste(draw(), (place * 64, 0))
row.save(options.out)
print(f"dense, untrained, distilled: {options.out}")
