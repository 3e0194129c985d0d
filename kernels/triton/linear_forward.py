"""Linear attention over all tokens, forward: the state of the keys, then the answer to each query.

S = 1/N sum_j phi(k_j) v_j^T and z = 1/N sum_j phi(k_j); out_i = phi(q_i) S / (phi(q_i) z + eps)
(arXiv:2409.02097, Eq. 5, and its published code, which adds eps to the mean). Sums are float32; S
is a mean before it is rounded to the inputs' type, so that float16 cannot overflow.
"""

import torch
import triton
import triton.language as tl

from .launch import in_units, slab, split
from .linear_maps import features
from .linear_tiles import (
    Tiles,
    empty_rows,
    load_block,
    padded,
    store_block,
    tiles_for,
    variants_of,
)
from .variants import Variant

__all__ = ["output", "state", "variants"]


@triton.jit(do_not_specialize=["heads", "N", "chunk"])
def _linear_state_kernel(
    K, V, WEIGHT_S, WEIGHT_Z, S, Z,
    k_batch, k_head, k_row, v_batch, v_head, v_row, heads, N, chunk,
    DK: tl.constexpr, DKP: tl.constexpr, DV: tl.constexpr, BV: tl.constexpr, BN: tl.constexpr,
    MAP: tl.constexpr, WEIGHTED: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Grid (value tiles, B H, chunks): sums of phi(k) v^T and phi(k) over a chunk, weighted."""
    part = tl.program_id(2)
    rows = tl.arange(0, BN)
    columns = tl.arange(0, DKP)
    inside = columns < DK
    values = tl.program_id(0) * BV + tl.arange(0, BV)
    k_row, v_row = k_row * UNIT, v_row * UNIT
    K = slab(K, k_batch, k_head, heads, UNIT)
    V = slab(V, v_batch, v_head, heads, UNIT)
    flat = tl.program_id(1).to(tl.int64) * N
    s = tl.zeros([DKP, BV], tl.float32)
    z = tl.zeros([BN, DKP], tl.float32)
    stop = tl.minimum(part * chunk + chunk, N)
    for start in tl.range(part * chunk, stop, BN):
        ok = start + rows < stop
        start64 = tl.cast(start, tl.int64)
        k = load_block(K + start64 * k_row, rows, k_row, ok, columns, inside)
        v = load_block(V + start64 * v_row, rows, v_row, ok, values, values < DV)
        f = features(k.to(tl.float32), ok, inside, MAP)
        if WEIGHTED:
            z += f * tl.load(WEIGHT_Z + flat + start + rows, mask=ok, other=0.0)[:, None]
            f *= tl.load(WEIGHT_S + flat + start + rows, mask=ok, other=0.0)[:, None]
        else:
            z += f
        s = tl.dot(tl.trans(f.to(k.dtype)), v, s, input_precision="ieee")
    base = (part * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * DK
    store_block(S + base * DV, s, columns, DV, inside, values, values < DV)
    if tl.program_id(0) == 0:
        tl.store(Z + base + columns, tl.sum(z, 0), mask=inside)


@triton.jit(do_not_specialize=["heads", "N", "chunk", "eps"])
def _linear_output_kernel(
    Q, S, Z, OUT, q_batch, q_head, q_row, o_batch, o_head, o_row, heads, N, chunk, eps,
    DK: tl.constexpr, DKP: tl.constexpr, DV: tl.constexpr, BV: tl.constexpr, BN: tl.constexpr,
    MAP: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Grid (chunks of tokens, B H, value tiles); S in the type of Q, Z in float32."""
    rows = tl.arange(0, BN)
    columns = tl.arange(0, DKP)
    inside = columns < DK
    values = tl.program_id(2) * BV + tl.arange(0, BV)
    q_row, o_row = q_row * UNIT, o_row * UNIT
    Q = slab(Q, q_batch, q_head, heads, UNIT)
    OUT = slab(OUT, o_batch, o_head, heads, UNIT)
    base = tl.program_id(1).to(tl.int64) * DK
    s = load_block(S + base * DV, columns, DV, inside, values, values < DV)
    z = tl.load(Z + base + columns, mask=inside, other=0.0)
    begin = tl.program_id(0) * chunk
    stop = tl.minimum(begin + chunk, N)
    for start in tl.range(begin, stop, BN):
        ok = start + rows < stop
        start64 = tl.cast(start, tl.int64)
        q = load_block(Q + start64 * q_row, rows, q_row, ok, columns, inside)
        f = features(q.to(tl.float32), ok, inside, MAP)
        below = tl.sum(f * z[None, :], 1) + eps
        above = tl.dot(f.to(s.dtype), s, input_precision="ieee")
        out = above / tl.where(ok, below, 1.0)[:, None]
        store_block(OUT + start64 * o_row, out, rows, o_row, ok, values, values < DV)


def state(
    k: torch.Tensor,
    v: torch.Tensor,
    feature_map: str,
    weights: tuple[torch.Tensor, torch.Tensor] | None = None,
    factor: float | None = None,
    tiles: Tiles | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """S [B, H, K, V] and z [B, H, K] in float32 of k [B, H, N, K] and v [B, H, N, V].

    `weights`, each [B, H, N] float32, multiply phi(k) in S and in z; `factor` is 1 / N if None.
    """
    batch, heads, length, dim = k.shape
    if tiles is None:
        tiles = tiles_for("state", k, v.shape[-1], "plain" if weights is None else "weighted")
    grid = (triton.cdiv(v.shape[-1], tiles.values), batch * heads)
    # a part of S is as much to write and read as some hundred tokens
    parts, chunk = split(grid[0] * grid[1], length, tiles.tokens, 16)
    s = k.new_empty(parts, batch, heads, dim, v.shape[-1], dtype=torch.float32)
    z = k.new_empty(parts, batch, heads, dim, dtype=torch.float32)
    unit, strides = in_units(k, v)
    _linear_state_kernel[(*grid, parts)](
        k, v, *((None, None) if weights is None else weights), s, z, *strides, heads, length, chunk,
        DK=dim, DKP=padded(dim), DV=v.shape[-1], BV=tiles.values,
        BN=tiles.tokens, MAP=feature_map, WEIGHTED=weights is not None, UNIT=unit,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    factor = 1.0 / max(length, 1) if factor is None else factor
    return s.sum(0).mul_(factor), z.sum(0).mul_(factor)


def output(
    q: torch.Tensor,
    s: torch.Tensor,
    z: torch.Tensor,
    feature_map: str,
    eps: float,
    tiles: Tiles | None = None,
) -> torch.Tensor:
    """out [B, H, N, V] of q [B, H, N, K] from the state s [B, H, K, V] and z [B, H, K]."""
    batch, heads, length, dim = q.shape
    tiles = tiles_for("output", q, s.shape[-1]) if tiles is None else tiles
    out = empty_rows(q, s.shape[-1])
    blocks = triton.cdiv(s.shape[-1], tiles.values)
    parts, chunk = split(batch * heads * blocks, length, tiles.tokens, least_blocks=1)
    unit, strides = in_units(q, out)
    _linear_output_kernel[(parts, batch * heads, blocks)](
        q, s.to(q.dtype).contiguous(), z.contiguous(), out, *strides, heads, length, chunk, eps,
        DK=dim, DKP=padded(dim), DV=s.shape[-1], BV=tiles.values,
        BN=tiles.tokens, MAP=feature_map, UNIT=unit,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return out


def variants() -> list[Variant]:
    """Every default of both kernels, and the state of weighted tokens that the backward needs."""
    plain = {"WEIGHTED": False, "WEIGHT_S": None, "WEIGHT_Z": None}
    weighted = {"WEIGHTED": True}
    return [
        *variants_of("linear_state", "state", _linear_state_kernel, plain),
        *variants_of("linear_state_weighted", "state", _linear_state_kernel, weighted),
        *variants_of("linear_output", "output", _linear_output_kernel, {}),
    ]
