"""Time local and foveated attention against dense attention and FlexAttention on this machine.

    python docs/bench_local.py [--threads 1] [--rounds 5] [--no-flex]

Candidates are interleaved round by round and medians compared, so that a slow moment of the machine
falls on all of them. With --threads 1 the figures are processor time, which other processes disturb
least; with more threads they are wall time. FlexAttention compiles and builds its masks first.
"""

# ruff: noqa: T201
import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from foveate.kernels import (
    TokenLayout,
    foveated_attention,
    foveated_keys,
    local_attention,
    local_keys,
)

CASES = ((128, 2, (8, 16)), (64, 8, (8,)), (256, 2, (8,)))


def coordinates(index, side, tile):
    """Row and column of a token, raster (tile 1) or square tiles; sides are powers of two.

    Shifts, because FlexAttention's CPU code runs them far faster than divisions or a table.
    """
    t, s = tile.bit_length() - 1, side.bit_length() - 1
    block, inside = index >> (2 * t), index & (tile**2 - 1)
    row, column = block >> (s - t), block & ((side >> t) - 1)
    return (row << t) + (inside >> t), (column << t) + (inside & (tile - 1))


def flex(q, k, v, side, radius, tile, compiled):
    """A FlexAttention call over the disc and the seconds of its mask; q, k, v are in its order."""

    def visible(b, h, i, j):
        (yi, xi), (yj, xj) = coordinates(i, side, tile), coordinates(j, side, tile)
        return (yi - yj) ** 2 + (xi - xj) ** 2 < radius**2

    start = time.perf_counter()
    make_mask = torch.compile(create_block_mask, dynamic=False)
    size = {"device": q.device, "BLOCK_SIZE": 64}
    mask = make_mask(visible, None, None, side**2, side**2, **size)
    compiled(q, k, v, block_mask=mask)
    return lambda: compiled(q, k, v, block_mask=mask), time.perf_counter() - start


def candidates(side, heads, radii, with_flex):
    """name -> (call, note), on random tensors."""
    layout = TokenLayout(grid=(1, side, side))
    q, k, v = (torch.randn(1, heads, side**2, 64) for _ in range(3))
    calls = {}
    if side <= 128:
        calls["dense"] = (lambda: F.scaled_dot_product_attention(q, k, v), f"{side**2} keys")
    for r in radii:
        needed, visited = local_keys(layout, r)
        note = f"{needed:.0f} keys needed, {visited:.0f} visited"
        calls[f"local r={r}"] = (
            lambda r=r: local_attention(q, k, v, layout=layout, radius=r),
            note,
        )
    for levels in (1, 2):
        needed, visited = foveated_keys(layout, 8, levels=levels)
        note = f"{needed:.0f} keys needed, {visited:.0f} visited"
        calls[f"foveated r=8 levels={levels}"] = (
            lambda levels=levels: foveated_attention(q, k, v, layout=layout, levels=levels),
            note,
        )
    if with_flex and side <= 128:
        compiled = torch.compile(flex_attention, dynamic=False)
        for r in radii:
            for tile in (1, 8):
                call, seconds = flex(q, k, v, side, r, tile, compiled)
                order = "raster" if tile == 1 else "8x8 tiles"
                calls[f"flex {order} r={r}"] = (call, f"mask and compilation {seconds:.0f} s")
    return calls


def measure(calls, rounds, clock):
    """Median seconds of each call, one call of each per round."""
    seconds = {name: [] for name in calls}
    for call, _ in calls.values():
        call()
    for _ in range(rounds):
        for name, (call, _) in calls.items():
            start = clock()
            call()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-flex", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    with torch.no_grad():
        for side, heads, radii in CASES:
            print(f"\n{side} x {side}, {heads} heads of 64, {options.threads} threads")
            calls = candidates(side, heads, radii, not options.no_flex)
            seconds = measure(calls, options.rounds, clock)
            for name, median in seconds.items():
                ratio = f"{seconds['dense'] / median:5.1f}x" if "dense" in seconds else "     -"
                print(f"{name:24} {1e3 * median:8.1f} ms {ratio}   {calls[name][1]}")


if __name__ == "__main__":
    main()
