"""Processes train one student of tiny Flux: accelerate launch tests/two_ranks.py OUT DATA.

Twice, the second time from the checkpoint, where the launcher asks for FSDP.
"""

import os
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import DistributedType

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


SHARDED = {"layer_steps": 0, "ema": 0, "picture_every": 0}


def train(out, data):
    distill(Tiny("flux").pipe, options(out, data, batch=1))
    (Path(out) / f"rank-{PartialState().process_index}").touch()


def train_sharded(out, data):
    state = PartialState(cpu=True)
    # accelerate shards on GPUs alone, and asks this
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    kept = Path(out) / "whole.safetensors"
    for name in ("first", "resumed"):
        distill(Tiny("flux").pipe, options(out, data, batch=1, **SHARDED))
        assert state.distributed_type == DistributedType.FSDP
        state.wait_for_everyone()
        if state.is_main_process:
            kept.rename(Path(out) / f"{name}.safetensors")
        state.wait_for_everyone()
    (Path(out) / f"rank-{state.process_index}").touch()


if __name__ == "__main__":
    (train_sharded if "ACCELERATE_USE_FSDP" in os.environ else train)(*sys.argv[1:])
