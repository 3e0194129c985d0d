"""Two processes train one student of tiny Flux: python tests/two_ranks.py OUT DATA.

A process of its own, because the launcher forks and what it forks must not have started threads.
"""

import sys
from pathlib import Path

from accelerate import PartialState, debug_launcher

from foveate.pipelines.distill import DistillConfig, distill
from tiny_pipelines import SIZES, Tiny


def options(out, data, **changes):
    height, width = list(SIZES["flux"])[0]
    size = {"height": height, "width": width, "text_length": 16}
    few = {"pictures": 4, "picture_steps": 1, "picture_batch": 1, "layer_steps": 1, "steps": 2}
    rates = {"layer_rate": 0.03, "rate": 0.03, "warmup": 0, "caption_dropout": 0}
    paths = {"model": "flux", "out": str(out), "data": str(data), "log_every": 1}
    chosen = {**size, **few, **rates, **paths, "student": "local", "radius": 2}
    return DistillConfig(**{**chosen, **changes})


def train(out, data):
    distill(Tiny("flux").pipe, options(out, data, batch=1))
    (Path(out) / f"rank-{PartialState().process_index}").touch()


if __name__ == "__main__":
    debug_launcher(train, tuple(sys.argv[1:]), num_processes=2)
