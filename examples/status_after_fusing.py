"""A call of diffusers takes the operator off; status sees it and says what to call.

python examples/status_after_fusing.py --out status_after_fusing.png
"""

import argparse

import torch

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="status_after_fusing.png")
parser.add_argument("--steps", type=int, default=25)
options = parser.parse_args()

pipe = foveate.load_shapes("sd")
handle = foveate.apply(pipe, foveate.LocalAttnProcessor(radius=8))
print(foveate.status(pipe))

pipe.unet.fuse_qkv_projections()  # gives every layer of a UNet a fused stock processor
print(foveate.status(pipe))

handle.remove()
with foveate.apply(pipe, foveate.LocalAttnProcessor(radius=8)):
    print(foveate.status(pipe))
    picture = pipe(
        "a red circle left of a blue square on a teal background",
        height=96,
        width=96,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(0),
        **MODELS["sd"].call,
    ).images[0]
picture.save(options.out)
