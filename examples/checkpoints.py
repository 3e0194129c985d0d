"""Published weights: a file in CLEAR's format, written here, loaded onto a stock pipeline.

python examples/checkpoints.py --out checkpoints.png
"""

import argparse
import re
import tempfile
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="checkpoints.png")
parser.add_argument("--steps", type=int, default=25)
options = parser.parse_args()

pipe = foveate.load_shapes("flux")


def draw():
    return pipe(
        "a red circle left of a blue square on a teal background",
        height=64,
        width=64,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(0),
        **MODELS["flux"].call,
    ).images[0]


# the keys of CLEAR's files are those of the model; here the values are too, but for a little noise
trained = re.compile(r"attn\.(to_q|to_k|to_v|to_out\.0)\.")
tensors = {
    key: value + 0.02 * value.std(correction=0) * torch.randn_like(value)
    for key, value in pipe.transformer.state_dict().items()
    if trained.search(key)
}
with tempfile.TemporaryDirectory() as folder:
    save_file(tensors, Path(folder) / "clear_local_8.safetensors")
    processor = foveate.LocalAttnProcessor.from_pretrained(folder, window=8)
    before = draw()
    with foveate.apply(pipe, processor) as handle:
        pictures = [before, draw()]
        print(str(handle.report()).splitlines()[0])
assert draw() == before  # the model's own weights were never touched

row = Image.new("RGB", (len(pictures) * 64, 64))
for i, picture in enumerate(pictures):
    row.paste(picture, (i * 64, 0))
row.save(options.out)
print(f"dense, local with the file's projections: {options.out}")
