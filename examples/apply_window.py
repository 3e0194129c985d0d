"""HiDiffusion's windows: a quarter of the picture each, moved from step to step.

python examples/apply_window.py --out apply_window.png
"""

import argparse

import torch

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="apply_window.png")
parser.add_argument("--steps", type=int, default=25)
options = parser.parse_args()

pipe = foveate.load_shapes("sd")
# windows of half the rows and columns; the seed draws where they begin in each step
windows = foveate.WindowAttnProcessor(seed=0, wrap=True)
with foveate.apply(pipe, windows, min_tokens=576) as handle:
    picture = pipe(
        "a purple triangle on a white background",
        height=96,
        width=96,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(0),
        **MODELS["sd"].call,
    ).images[0]
    print(handle.report())
picture.save(options.out)
