"""Agent attention in the early steps of a stock pipeline, as AgentSD schedules it.

python examples/apply_agent.py --out apply_agent.png
"""

import argparse

import torch

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="apply_agent.png")
parser.add_argument("--steps", type=int, default=25)
options = parser.parse_args()

pipe = foveate.load_shapes("sd")
# AgentSD's sharper second pass and its share of each token's own value
agent = foveate.AgentAttnProcessor(agents=64, scale2_exponent=0.15, shortcut=0.075)
with foveate.apply(pipe, agent, steps=(0, 0.4)) as handle:
    picture = pipe(
        "a red circle left of a blue square on a teal background",
        height=96,
        width=96,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(0),
        **MODELS["sd"].call,
    ).images[0]
    # where 64 agents are half the tokens or more, the report says that they save nothing
    print(handle.report())
picture.save(options.out)
