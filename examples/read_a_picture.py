"""Quality as a number: draw a caption, read the picture back, score it.

python examples/read_a_picture.py --out read_a_picture.png
"""

import argparse

import numpy as np
import torch

import foveate
from foveate.pipelines.shapes.load import MODELS
from foveate.pipelines.shapes.metrics import score
from foveate.pipelines.shapes.reader import read
from foveate.pipelines.shapes.scene import parse_caption

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="read_a_picture.png")
parser.add_argument("--steps", type=int, default=25)
options = parser.parse_args()

caption = "a red circle left of a blue square on a teal background"
picture = foveate.load_shapes("sd")(
    caption,
    height=64,
    width=64,
    num_inference_steps=options.steps,
    generator=torch.Generator().manual_seed(0),
    **MODELS["sd"].call,
).images[0]
picture.save(options.out)

reading = read(np.asarray(picture))
print(f"background: {reading.background}; unreadable: {reading.unreadable}")
for thing in reading.objects:
    print(f"{thing.colour} {thing.shape} at ({thing.x:.2f}, {thing.y:.2f}) of width and height")
result = score(np.asarray(picture), parse_caption(caption))
print(f"BIND {result.bind}  COUNT {result.count}  REL {result.rel}")
