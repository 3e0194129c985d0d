"""Ranks of a gloo group measure sequence parallelism: python tests/sequence_ranks.py FOLDER.

Two ranks, then four, forked from one process that has imported everything and has started no
threads. Each writes what it measured to FOLDER/{ranks}-{rank}.json; test_sequence.py judges.
"""

import json
import sys
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing
from diffusers import ContextParallelConfig
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput

import foveate
from foveate.kernels import TokenLayout, foveated_attention, local_attention
from foveate.kernels.sequence import (
    Exchange,
    Shard,
    foveated_bytes,
    local_bytes,
    sequence_foveated_attention,
    sequence_local_attention,
)
from oracles import LargestTensor, make_qkv
from tiny_families import TinyFamily
from tiny_pipelines import Tiny

OPERATORS = {
    "local": (local_attention, sequence_local_attention, local_bytes),
    "foveated": (foveated_attention, sequence_foveated_attention, foveated_bytes),
}
NOT_OF_COST = ("mass", "pool_weight")
WIDE = {"grid": (1, 11, 16), "text": 6}
TALL = {"grid": (1, 16, 6), "text": 7, "text_first": False}
VIDEO = {"grid": (5, 4, 6), "text": 3}
EDGE = [[0.4, 0.1], [0.3, 0.2]]
# (operator, layout, rows of each rank in a group of two or four or None, splits_text, options)
CASES = [
    ("local", WIDE, {2: (2, 9), 4: (1, 2, 7, 1)}, False, {"radius": 3}),
    ("local", WIDE, None, True, {"radius": (2, 5)}),
    ("local", TALL, {2: (15, 1), 4: (2, 1, 12, 1)}, True, {"radius": 6}),
    ("local", VIDEO, None, True, {"radius": 3}),
    ("local", {"grid": (1, 7, 5)}, None, False, {"radius": 30}),
    ("foveated", WIDE, {2: (2, 9), 4: (1, 2, 7, 1)}, True, {"radius": 2, "pool": 3}),
    ("foveated", WIDE, None, False, {"radius": 1, "pool": 2, "levels": 2}),
    ("foveated", TALL, None, True, {"radius": 2, "pool": 2, "levels": 3, "mass": False}),
    ("foveated", TALL, None, False, {"radius": 2, "pool": 2, "pool_weight": EDGE}),
    ("foveated", VIDEO, None, True, {"radius": 1, "pool": 3, "partition": False}),
]


def operators(exchange):
    """How far each case is from one process, and the bytes it took."""
    return [measure(exchange, *case) for case in CASES]


def measure(exchange, name, layout, rows, splits_text, options):
    plain, split, predict = OPERATORS[name]
    layout, rank = TokenLayout(**layout), exchange.rank
    shard = Shard.even(layout, exchange.ranks, rank, splits_text=splits_text)
    if rows is not None:
        shard = Shard.of_rows(layout, rows[exchange.ranks], rank, splits_text=splits_text)
    row = {"case": f"{name} {layout.grid} {options}"}
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(0)
        qkv = make_qkv(layout, batch=2, dim=8, dtype=dtype, requires_grad=True)
        given = dict(options)
        if "pool_weight" in given:
            given["pool_weight"] = torch.tensor(given["pool_weight"], dtype=dtype)
        impl = "reference" if dtype == torch.float64 else "torch"
        want = plain(*qkv, layout=layout, impl=impl, **given)
        exchange.received = 0
        out = split(*map(shard.cut, qkv), shard=shard, exchange=exchange, **given)
        row["received"] = exchange.received
        row[str(dtype)] = relative(out, shard.cut(want))
        if dtype == torch.float64:
            row["gradient"] = gradient_error(qkv, want, out, shard)
    cost = {key: value for key, value in options.items() if key not in NOT_OF_COST}
    row["predicted"] = predict(shard, heads=2, dim=8, dtype=torch.float32, batch=2, **cost)
    return row


def gradient_error(qkv, want, out, shard):
    """How far the ranks' gradients add up to those of one process."""
    loss = torch.randn_like(want)
    wanted = torch.autograd.grad((want * loss).sum(), qkv)
    ours = torch.stack(torch.autograd.grad((out * share(loss, shard)).sum(), qkv))
    dist.all_reduce(ours)
    return max(map(relative, ours, wanted))


def share(loss, shard):
    """This rank's part of the loss; text that every rank holds counts once in all."""
    loss = shard.cut(loss)
    if shard.splits_text or shard.layout.num_context == 0:
        return loss
    context = shard.local.context_of(loss) / shard.ranks
    return shard.local.join(shard.local.grid_of(loss), context)


def relative(a, b):
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def memory(exchange):
    """Elements of the largest tensor for each of 4096 tokens of one head of 8."""
    layout = TokenLayout(text=8, grid=(1, 64, 64))
    shard = Shard.even(layout, exchange.ranks, exchange.rank)
    qkv = map(shard.cut, make_qkv(layout, heads=1, dim=8, dtype=torch.float32))
    with LargestTensor() as largest:
        sequence_foveated_attention(*qkv, shard=shard, exchange=exchange, radius=4, levels=2)
    return largest.elements / layout.num_tokens


def split_model(model, plan=None, **degrees):
    """diffusers' own call; it counts accelerators to choose a device, and a CPU has none."""
    with mock.patch("torch.accelerator.device_count", return_value=1):
        model.enable_parallelism(config=ContextParallelConfig(**degrees), cp_plan=plan)


def degrees_of(ranks):
    return {"ulysses_degree": 2, "ring_degree": ranks // 2}


def pipelines(exchange):
    """A split model with apply last, and in two ranks also with apply first."""
    near, options = foveate.LocalAttnProcessor(radius=3), {"radius": 2, "pool": 2}
    rows = [picture(exchange, near, local_bytes, {"radius": 3}, apply_first=False)]
    if exchange.ranks == 2:
        pooled = foveate.FoveatedAttnProcessor(**options)
        rows.append(picture(exchange, pooled, foveated_bytes, options, apply_first=True))
    return rows


def picture(exchange, processor, bytes_of, options, *, apply_first):
    """What a split model draws beside a whole one."""
    tiny = Tiny("flux")
    dense = tiny()
    with foveate.apply(tiny.pipe, processor):
        want = tiny()
    if not apply_first:
        split_model(tiny.model, **degrees_of(exchange.ranks))
    handle = foveate.apply(tiny.pipe, processor)
    if apply_first:
        split_model(tiny.model, **degrees_of(exchange.ranks))
    got, report = tiny(), handle.report()
    layout = TokenLayout(text=16, grid=(1, 8, 12))
    shard = Shard.even(layout, exchange.ranks, exchange.rank, splits_text=True)
    once = bytes_of(shard, heads=2, dim=16, dtype=torch.float32, **options)
    return {
        "error": float((got - want).abs().max()),
        "change": float((want - dense).abs().max()),
        "received": report.received_bytes,
        "predicted": sum(row.forwards for row in report.layers) * once,
        "forwards": [row.forwards for row in report.layers],
        "status": str(foveate.status(tiny.pipe)),
    }


def video(exchange):
    """A Wan whose ranks hold parts of frames."""
    tiny = TinyFamily("wan")
    dense = tiny(steps=1)
    with foveate.apply(tiny.pipe, foveate.LocalAttnProcessor(radius=3)):
        want = tiny(steps=1)
    split_model(tiny.model, **degrees_of(exchange.ranks))
    with foveate.apply(tiny.pipe, foveate.LocalAttnProcessor(radius=3)) as handle:
        got = tiny(steps=1)
        report = handle.report()
    return {
        "error": float((got - want).abs().max()),
        "change": float((want - dense).abs().max()),
        "ran": [row.operator for row in report.layers if row.kind == "self"],
    }


def broadcast(exchange):
    """Bytes received in each step of a broadcast run."""
    inner = foveate.LocalAttnProcessor(radius=2)
    tiny, received = Tiny("flux"), []
    with foveate.apply(tiny.pipe, foveate.BroadcastAttnProcessor(inner)):
        want = tiny(steps=8)
    split_model(tiny.model, **degrees_of(exchange.ranks))
    with foveate.apply(tiny.pipe, foveate.BroadcastAttnProcessor(inner)) as handle:

        def note(pipe, step, timestep, arguments):
            received.append(handle.report().received_bytes)
            return arguments

        got = tiny(steps=8, callback_on_step_end=note)
        arms = [row.row for row in handle.report().companions[0].layers]
    return {"error": float((got - want).abs().max()), "received": received, "arms": arms}


def refusals(exchange):
    """What is said where an operator cannot run split; {who was asked: what was said}."""
    tiny = Tiny("flux")
    dense = tiny()
    said = {}
    late = foveate.apply(tiny.pipe, foveate.LinearAttnProcessor())
    split_model(tiny.model, **degrees_of(exchange.ranks))
    said["error to dense"] = float((tiny() - dense).abs().max())
    said["report"] = str(late.report())
    said["status"] = str(foveate.status(tiny.pipe))
    late.remove()
    said["apply"] = refusal(lambda: foveate.apply(tiny.pipe, foveate.LinearAttnProcessor()))
    with foveate.modulate(tiny.pipe, [foveate.SelfTemperature(2.0)]):
        said["modulate"] = refusal(tiny)
    with foveate.apply(tiny.pipe, foveate.LocalAttnProcessor(radius=3, impl="reference")):
        said["impl"] = refusal(tiny)
    tiny.model.set_attn_processor(foveate.LocalAttnProcessor(radius=3, grid=(8, 12)))
    said["set_attn_processor"] = refusal(tiny)
    said["status by hand"] = str(foveate.status(tiny.pipe))
    said["no part in it"] = refusal(split_sd3())
    return said


def split_sd3():
    """Its stock processors do not exchange anything; 93 text tokens are split unevenly."""
    tokens = ContextParallelInput(split_dim=1)
    plan = {
        "transformer_blocks.0": {"hidden_states": tokens, "encoder_hidden_states": tokens},
        "proj_out": ContextParallelOutput(gather_dim=1),
    }
    tiny = Tiny("sd3")
    split_model(tiny.model, plan, ulysses_degree=2, ulysses_anything=True)
    foveate.apply(tiny.pipe, foveate.LocalAttnProcessor(radius=3))
    return tiny


def refusal(call):
    try:
        call()
    except (NotImplementedError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def run(rank, ranks, folder):
    store = dist.FileStore(f"{folder}/store-{ranks}", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    exchange = Exchange(dist.group.WORLD)
    # dense attention of diffusers cannot share two heads between four ranks
    checks = (operators, pipelines)
    if ranks == 2:
        checks += (memory, video, broadcast, refusals)
    found = {check.__name__: check(exchange) for check in checks}
    (Path(folder) / f"{ranks}-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for ranks in (2, 4):
        torch.multiprocessing.start_processes(
            run, (ranks, sys.argv[1]), nprocs=ranks, start_method="fork"
        )
