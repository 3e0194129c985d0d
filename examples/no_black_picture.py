"""An operator that overflows does not make the picture black: its layers go dense, and say why.

python examples/no_black_picture.py --out no_black_picture.png
"""

import argparse
from pathlib import Path

import torch

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="no_black_picture.png")
parser.add_argument("--steps", type=int, default=25)
options = parser.parse_args()


class Overflowing(foveate.LocalAttnProcessor):
    """Stands for a kernel that is wrong on some device."""

    def attend(self, q, k, v, *, layout, scale):
        return super().attend(q, k, v, layout=layout, scale=scale) * torch.inf


pipe = foveate.load_shapes("sd")
rules = {"up_blocks.*": Overflowing(radius=4), "*": foveate.LocalAttnProcessor(radius=4)}
with foveate.apply(pipe, rules) as handle:
    picture = pipe(
        "a red circle left of a blue square on a teal background",
        height=64,
        width=64,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(0),
        **MODELS["sd"].call,
    ).images[0]
    report = handle.report()
print(report)
picture.save(options.out)
Path(options.out).with_suffix(".json").write_text(report.to_json())
