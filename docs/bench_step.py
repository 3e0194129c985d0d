"""Time one denoising step of the embedded models under dense, local and foveated attention.

    python docs/bench_step.py [--threads 2] [--repeats 3] [--sizes sd:512 flux:1024]

Methods take turns and medians are compared; the largest tensor at two sizes shows how memory grows.
"""

# ruff: noqa: T201
import argparse

import torch

from foveate import FoveatedAttnProcessor, LocalAttnProcessor, load_shapes
from foveate.pipelines.shapes.load import MODELS
from foveate.pipelines.step_cost import step_costs

METHODS = {
    "dense": None,
    "local, radius 8": LocalAttnProcessor(radius=8),
    "foveated, radius 8": FoveatedAttnProcessor(radius=8),
    "foveated, radius 8, two levels": FoveatedAttnProcessor(radius=8, levels=2),
}
PROMPT = "a red circle left of a blue square on a teal background"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", default=["sd:256", "sd:512", "flux:512", "flux:1024"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| model | px | method | tokens | s/step | against dense | keys | largest tensor, MB |")
    print("|---|---|---|---|---|---|---|---|")
    for item in options.sizes:
        name, side = item.split(":")
        size = {"height": int(side), "width": int(side)}
        pipe, call = load_shapes(name), MODELS[name].call
        costs = step_costs(pipe, METHODS, PROMPT, call=call, repeats=options.repeats, **size)
        for cost in costs:
            ratio = costs[0].seconds / cost.seconds
            print(
                f"| shapes-{name} | {side} | {cost.method} | {cost.tokens} | {cost.seconds:.2f} "
                f"| {ratio:.1f}x | {cost.keys:.0f} | {cost.largest_tensor / 1e6:.1f} |"
            )


if __name__ == "__main__":
    main()
