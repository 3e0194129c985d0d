"""Foveated attention with options by layer, and only in the later part of the schedule.

python examples/apply_foveated.py --out apply_foveated.png
"""

import argparse

import torch

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="apply_foveated.png")
parser.add_argument("--steps", type=int, default=25)
options = parser.parse_args()

pipe = foveate.load_shapes("flux")
handle = foveate.apply(
    pipe,
    {
        "single_transformer_blocks.*": foveate.FoveatedAttnProcessor(radius=4),
        "transformer_blocks.*": foveate.FoveatedAttnProcessor(radius=8),
    },
    steps=(0.2, 1.0),  # the first fifth of the steps settles the composition: leave it dense
)
picture = pipe(
    "a yellow star above a purple circle on a gray background",
    height=96,
    width=96,
    num_inference_steps=options.steps,
    generator=torch.Generator().manual_seed(0),
    **MODELS["flux"].call,
).images[0]
print(handle.report())  # which layer ran what, how often, on how many keys, and why not
handle.remove()
picture.save(options.out)
