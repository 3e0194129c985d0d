"""Edit a picture by editing its prompt: what the prompts share stays where it is.

python examples/edit_prompt.py --out edit_prompt.png
"""

import argparse

import torch
from PIL import Image

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="edit_prompt.png")
parser.add_argument("--steps", type=int, default=20)
options = parser.parse_args()

pipe = foveate.load_shapes("sd")
SOURCE = "a red circle and a blue square on a teal background"
edited = foveate.Scene("a yellow circle and a blue square on a teal background", phrases=["yellow"])
EDITS = [
    foveate.AttentionReplace(SOURCE, edited).where(steps=(0, 0.8)),
    foveate.SelfAttentionReplace(SOURCE, edited).where(steps=(0, 0.4)),
]
SEEDS = range(3)


def draw(seed):
    """The source and the edited prompt, of the same noise."""
    return pipe(
        [SOURCE, edited.prompt],
        num_inference_steps=options.steps,
        generator=[torch.Generator().manual_seed(seed) for _ in range(2)],
        **MODELS["sd"].call,
    ).images


sheet = Image.new("RGB", (len(SEEDS) * 128, 3 * 128))
for column, seed in enumerate(SEEDS):
    source, alone = draw(seed)
    with foveate.modulate(pipe, EDITS) as run:
        _, together = draw(seed)
    for row, picture in enumerate((source, alone, together)):
        picture = picture.resize((128, 128), Image.Resampling.NEAREST)
        sheet.paste(picture, (column * 128, row * 128))
print(run.explain())
sheet.save(options.out)
print(f"rows: source, the edited prompt alone, edited with the source's attention: {options.out}")
