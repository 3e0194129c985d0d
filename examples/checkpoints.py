"""Published weights: files in CLEAR's and in LinFusion's format, written here, on stock pipelines.

python examples/checkpoints.py --out checkpoints.png
"""

import argparse
import json
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
pipes = {name: foveate.load_shapes(name) for name in ("flux", "sd")}
folder = tempfile.TemporaryDirectory()


def draw(name):
    size = {"height": 64, "width": 64, "num_inference_steps": options.steps}
    prompt = "a red circle left of a blue square on a teal background"
    seed = torch.Generator().manual_seed(0)
    return pipes[name](prompt, **size, generator=seed, **MODELS[name].call).images[0]


# the keys of CLEAR's files are those of the model; here the values are too, but for a little noise
trained = re.compile(r"attn\.(to_q|to_k|to_v|to_out\.0)\.")
own = {k: x for k, x in pipes["flux"].transformer.state_dict().items() if trained.search(k)}
noisy = {k: x + 0.02 * x.std(correction=0) * torch.randn_like(x) for k, x in own.items()}
save_file(noisy, Path(folder.name, "clear_local_8.safetensors"))
clear = foveate.LocalAttnProcessor.from_pretrained(folder.name, window=8)

# LinFusion's are numbered by a list of layers; the values are those of a student in the package
weights = foveate.load_student("shapes-sd-linear").weights
modules = [(name, pipes["sd"].unet.get_submodule(name)) for name in weights.names]
modules_list = [
    {"module_name": n, "dim_n": m.to_q.in_features, "heads": m.heads, "projection_mid_dim": None}
    for n, m in modules
]
Path(folder.name, "config.json").write_text(json.dumps({"modules_list": modules_list}))
save_file(weights.state_dict(), Path(folder.name, "diffusion_pytorch_model.safetensors"))
linfusion = foveate.LinearAttnProcessor.from_pretrained(folder.name)

row = Image.new("RGB", (4 * 64, 64))
for i, (name, processor) in enumerate({"flux": clear, "sd": linfusion}.items()):
    dense = draw(name)
    row.paste(dense, (2 * i * 64, 0))
    with foveate.apply(pipes[name], processor):
        row.paste(draw(name), ((2 * i + 1) * 64, 0))
    assert draw(name) == dense  # the model's own weights were never touched
row.save(options.out)
print(f"dense and CLEAR on shapes-flux, dense and LinFusion on shapes-sd: {options.out}")
