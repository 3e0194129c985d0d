"""Two processes train one student of tiny Flux: python tests/two_ranks.py OUT DATA [sharded].

A process of its own, because the launcher forks and what it forks must not have started threads.
"""

import os
import sys
from pathlib import Path

from accelerate import PartialState, debug_launcher
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
    """Under FSDP 2; then again from the checkpoint."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
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
    out, data, *sharded = sys.argv[1:]
    debug_launcher(train_sharded if sharded else train, (out, data), num_processes=2)
