"""The stock way: a foveate processor given to diffusers' own `set_attn_processor`.

python examples/set_attn_processor_flux.py --out set_attn_processor_flux.png
"""

import argparse

import torch

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="set_attn_processor_flux.png")
parser.add_argument("--steps", type=int, default=25)
options = parser.parse_args()

pipe = foveate.load_shapes("flux")
before = pipe.transformer.attn_processors

# Flux tells a processor where every token sits, so no grid is asked for
pipe.transformer.set_attn_processor(foveate.LocalAttnProcessor(radius=8))
picture = pipe(
    "a green triangle on a brown background",
    height=96,
    width=96,
    num_inference_steps=options.steps,
    generator=torch.Generator().manual_seed(0),
    **MODELS["flux"].call,
).images[0]
picture.save(options.out)

pipe.transformer.set_attn_processor(before)
