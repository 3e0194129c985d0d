"""Linear attention in a stock pipeline: untrained forms, and the far field of a window.

python examples/linear.py --out linear.png
"""

import argparse

import torch
from PIL import Image

import foveate
from foveate.attn_processors import LinearLayer, LinearWeights
from foveate.pipelines.shapes.load import MODELS

FORMS = {name: {"feature_map": name} for name in ("elu", "relu", "focused")} | {
    "affine": {"feature_map": "identity", "affine": True},
    "rank_augment": {"rank_augment": True},
}
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="linear.png")
parser.add_argument("--steps", type=int, default=25)
parser.add_argument("--form", nargs="+", choices=FORMS, default=[*FORMS])
options = parser.parse_args()

pipe = foveate.load_shapes("sd")


def draw():
    return pipe(
        "a red circle left of a blue square on a teal background",
        height=96,
        width=96,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(0),
        **MODELS["sd"].call,
    ).images[0]


# LinFusion's projections, as they are before training: copies of the model's own, with g = 0
names = [name for name, _ in pipe.unet.named_modules() if name.endswith("attn1")]
layers = {name: LinearLayer.from_attention(pipe.unet.get_submodule(name)) for name in names}
forms = [FORMS[name] for name in options.form]
processors = [foveate.LinearAttnProcessor(**forms[0], weights=LinearWeights(layers))]
processors += [foveate.LinearAttnProcessor(**form) for form in forms]
processors.append(foveate.LinearAttnProcessor(radius=4, feature_map="hedgehog", gate=1.0))
pictures = [draw()]
for processor in processors:
    with foveate.apply(pipe, processor) as handle:
        pictures.append(draw())
        print(str(handle.report()).splitlines()[0])
assert pictures[1] == pictures[2]  # what starts at zero changes nothing

row = Image.new("RGB", (len(pictures) * 96, 96))
for i, picture in enumerate(pictures):
    row.paste(picture, (i * 96, 0))
row.save(options.out)
print(f"dense, untrained projections, {', '.join(options.form)}, window and linear: {options.out}")
