"""A moving shape as it comes, and with more motion, side by side in an animated picture.

python examples/boost_motion.py --out boost_motion.png
"""

import argparse

import numpy as np
import torch
from PIL import Image

import foveate
from foveate.pipelines.shapes.load import VIDEO_MODELS
from foveate.pipelines.shapes.tracks import read_clip

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="boost_motion.png")
parser.add_argument("--steps", type=int, default=15)
options = parser.parse_args()

pipe = foveate.load_shapes("motion")


def film():
    return pipe(
        "a red circle moving right on a teal background",
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(2),
        output_type="np",
        **VIDEO_MODELS["motion"].call,
    ).frames[0]


plain = film()
with foveate.modulate(pipe, [foveate.MotionBoost(alpha=0.3, beta=2.0)]):
    boosted = film()

for name, clip in (("plain", plain), ("boosted", boosted)):
    for track in read_clip(clip).tracks:
        print(f"{name}: {track.colour} {track.shape} goes {track.direction}, path {track.path:.2f}")

pictures = (np.concatenate([plain, boosted], 2) * 255).round().astype(np.uint8)
frames = [Image.fromarray(picture).resize((384, 192), Image.NEAREST) for picture in pictures]
# animated, as png, gif or webp
frames[0].save(options.out, save_all=True, append_images=frames[1:], duration=120, loop=0)
print(f"wrote {options.out}")
