"""Four times the side a model was trained at: dense at the base size, foveated on the way up.

python examples/progressive_large.py --out progressive_large.png
"""

import argparse

import torch

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="progressive_large.png")
parser.add_argument("--steps", type=int, default=25)
parser.add_argument("--side", type=int, default=256)
options = parser.parse_args()

drawn = foveate.progressive(
    foveate.load_shapes("sd"),
    "a white star right of a black square on a pink background",
    height=options.side,
    width=options.side,
    base_size=MODELS["sd"].base_size,
    steps=options.steps,
    attention=foveate.FoveatedAttnProcessor(radius=8),
    generator=torch.Generator().manual_seed(0),
    call=MODELS["sd"].call,
)
drawn.images[0].save(options.out)
print(" -> ".join(f"{width}x{height}" for height, width in drawn.sizes))
print(drawn.report)
