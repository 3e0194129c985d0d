"""Phrases with values of their own: what a phrase says alone, and not mixed with its neighbours.

python examples/structure_text.py --out structure_text.png
"""

import argparse

import torch
from PIL import Image

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="structure_text.png")
parser.add_argument("--steps", type=int, default=20)
options = parser.parse_args()


def noun_phrases(prompt):
    """Stands for a parser: what follows an article, up to the next word that joins phrases."""
    parts = prompt.replace(" and ", " on ").split(" on ")
    return [part.removeprefix("a ") for part in parts]


pipe = foveate.load_shapes("sd")
scene = foveate.Scene(
    "a purple circle and a green square on a pink background", parser=noun_phrases
)
SEEDS = range(3)


def draw(seed):
    picture = pipe(
        scene.prompt,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(seed),
        **MODELS["sd"].call,
    ).images[0]
    return picture.resize((128, 128), Image.Resampling.NEAREST)


sheet = Image.new("RGB", (len(SEEDS) * 128, 3 * 128))
for column, seed in enumerate(SEEDS):
    sheet.paste(draw(seed), (column * 128, 0))
    for row, conjunction in enumerate((False, True), start=1):
        structure = foveate.StructuredText(scene, conjunction=conjunction)
        with foveate.modulate(pipe, [structure]) as run:
            sheet.paste(draw(seed), (column * 128, row * 128))
print(run.explain())
sheet.save(options.out)
print(f"rows: as it comes, StructuredText, conjunction; {list(scene.phrases)}: {options.out}")
