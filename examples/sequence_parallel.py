"""One picture drawn by two processes, each holding half of its rows.

python examples/sequence_parallel.py --out sequence_parallel.png    (alone: nothing is split)
torchrun --nproc-per-node 2 examples/sequence_parallel.py --out sequence_parallel.png
"""

import argparse
import os
from unittest import mock

import torch
from diffusers import ContextParallelConfig

import foveate
from foveate.pipelines.shapes.load import MODELS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", default="sequence_parallel.png")
parser.add_argument("--steps", type=int, default=25)
options = parser.parse_args()

ranks, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
pipe = foveate.load_shapes("flux")


def split():
    config = ContextParallelConfig(ulysses_degree=ranks)
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
        pipe.to(torch.accelerator.current_accelerator())
        pipe.transformer.enable_parallelism(config=config)
        return
    # diffusers numbers devices by the accelerators there are, and a CPU has none
    with mock.patch("torch.accelerator.device_count", return_value=1):
        pipe.transformer.enable_parallelism(config=config)


if ranks > 1:
    torch.distributed.init_process_group()
    split()

with foveate.apply(pipe, foveate.FoveatedAttnProcessor(radius=2, pool=2)) as handle:
    image = pipe(
        "a yellow star left of a blue square on a gray background",
        height=128,
        width=128,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(0),
        **MODELS["flux"].call,
    ).images[0]
    print(f"rank {rank} of {ranks}: {handle.report()}".splitlines()[0])

if rank == 0:
    image.save(options.out)
if ranks > 1:
    torch.distributed.destroy_process_group()
