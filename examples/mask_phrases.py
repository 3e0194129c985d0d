"""Which pixels are which phrase: masks from cross- and self-attention together.

python examples/mask_phrases.py --out mask_phrases.png
"""

import argparse

import torch

import foveate
from foveate.pipelines.heat_sheet import heat_sheet
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="mask_phrases.png")
parser.add_argument("--steps", type=int, default=25)
options = parser.parse_args()

pipe = foveate.load_shapes("sd")
scene = foveate.Scene(
    "a [red circle]{circle} and a [blue square]{square} on a [teal background]{background}"
)


def draw(scene):
    return pipe(
        scene.prompt,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(0),
        **MODELS["sd"].call,
    ).images[0]


readers = [foveate.AttentionMasks(scene, power=power) for power in (0, 4)]
rows = []
for label, reader in zip(("cross-attention alone", "with self-attention"), readers, strict=True):
    with foveate.modulate(pipe, [reader]) as run:
        picture = draw(scene)
        masks = {name: mask[0] for name, mask in run.attention_masks().items()}
    rows.append((label, {scene.text(name): m.float().numpy() for name, m in masks.items()}))
    print(label, {name: int(mask.sum()) for name, mask in masks.items()}, "cells")
heat_sheet(picture, rows).save(options.out)
print(f"masks of {tuple(masks['circle'].shape)} cells: {options.out}")
