"""Neighbourhood attention: plain boxes in one half of the layers, boxes with gaps in the other.

python examples/apply_neighborhood.py --out apply_neighborhood.png
"""

import argparse

import torch

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="apply_neighborhood.png")
parser.add_argument("--steps", type=int, default=25)
options = parser.parse_args()

pipe = foveate.load_shapes("sd")
# both boxes hold 49 keys: the first sees detail, the second three times as far
near = foveate.NeighborhoodAttnProcessor(kernel_size=(1, 7, 7))
far = foveate.NeighborhoodAttnProcessor(kernel_size=(1, 7, 7), dilation=(1, 3, 3))
with foveate.apply(pipe, {"down_blocks.*": near, "*": far}) as handle:
    picture = pipe(
        "a green star above a yellow square on a brown background",
        height=96,
        width=96,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(0),
        **MODELS["sd"].call,
    ).images[0]
    print(handle.report())
picture.save(options.out)
