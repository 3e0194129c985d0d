"""Attention computed in two thirds of the steps and forecast in the others.

python examples/broadcast.py --out broadcast.png
"""

import argparse

import torch

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="broadcast.png")
parser.add_argument("--steps", type=int, default=25)
options = parser.parse_args()

pipe = foveate.load_shapes("flux")


def draw():
    return pipe(
        "a yellow star left of a blue square on a gray background",
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        **MODELS["flux"].call,
    ).images


dense = draw()
# the file of a measured plan goes here as well: `foveate calibrate --model shapes-flux ...`
with foveate.broadcast(pipe, foveate.FractionPlan(every=2), store="int8") as handle:
    forecast = draw()
    print(handle.report())
error = (forecast - dense).square().mean()
print(f"{-10 * error.clamp(min=1e-10).log10():.1f} dB to dense")
side_by_side = torch.cat((dense, forecast), dim=3)
pipe.image_processor.numpy_to_pil(pipe.image_processor.pt_to_numpy(side_by_side))[0].save(
    options.out
)
