"""Softmax attention of some queries over many keys, and its log-sum-exp, with the keys split.

Online softmax (arXiv:2205.14135, Algorithm 1). Where the queries alone leave a GPU idle, the keys
are cut into chunks; their partial results are merged in the order of the chunks, so a call gives
the same bits every time.
"""

import torch
import triton
import triton.language as tl

from .flash_tiles import Tiles, tiles_for, variants_of
from .launch import in_units, signature, slab, split
from .rows import head_parts, load_keys, load_rows, store_rows
from .softmax import LN2, LOG2E, scores, update
from .variants import Variant

__all__ = ["forward", "variants"]

# below every score, yet finite: the difference of two of them is 0 and not NaN
_LOWEST = tl.constexpr(-1.0e30)


@triton.jit
def _step(
    q0, q1, K, V, BIAS, k_row, v_row, start, stop, scale2, bias_scale, m, l, a0, a1,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BN: tl.constexpr,
    HAS_BIAS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One block of keys: the new maximum m, sum l and accumulators a0, a1."""
    rows = tl.arange(0, BN)
    ok = start + rows < stop
    K += tl.cast(start, tl.int64) * k_row
    V += tl.cast(start, tl.int64) * v_row
    k0, k1, v0, v1 = load_keys(K, V, rows, k_row, v_row, ok, D, D0, D1, MASKED)
    s = scores(q0, q1, k0, k1, D1 > 0, "ieee")
    if HAS_BIAS:
        s += tl.load(BIAS + start + rows, mask=ok, other=0.0)[None, :] * bias_scale
    if MASKED:
        s = tl.where(ok[None, :], s, -float("inf"))
    return update(s, v0, v1, m, l, a0, a1, scale2, D1 > 0, "ieee")


@triton.jit(do_not_specialize=["heads", "M", "N", "chunk"])
def _flash_forward_kernel(
    Q, K, V, BIAS, OUT, LSE,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    o_split, o_batch, o_head, o_row, heads, M, N, chunk, scale2, bias_scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_BIAS: tl.constexpr, TAIL: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Grid (query tiles, B H, chunks); scale2 = scale log2(e), bias_scale = 1 / scale."""
    first = tl.program_id(0) * BM
    part = tl.program_id(2)
    rows = tl.arange(0, BM)
    ok = first + rows < M
    q_row, k_row, v_row, o_row = q_row * UNIT, k_row * UNIT, v_row * UNIT, o_row * UNIT
    Q = slab(Q, q_batch, q_head, heads, UNIT) + first.to(tl.int64) * q_row
    K = slab(K, k_batch, k_head, heads, UNIT)
    V = slab(V, v_batch, v_head, heads, UNIT)
    q0 = load_rows(Q, rows, q_row, ok, 0, D0, D, True)
    q1 = load_rows(Q, rows, q_row, ok, D0, D1, D, True) if D1 > 0 else q0
    m = tl.full([BM], _LOWEST, tl.float32)
    l = tl.zeros([BM], tl.float32)
    a0 = tl.zeros([BM, D0], tl.float32)
    a1 = tl.zeros([BM, D1], tl.float32) if D1 > 0 else 0.0
    low = part * chunk
    high = tl.minimum(low + chunk, N)
    full = low + (high - low) // BN * BN
    for start in tl.range(low, full, BN):
        m, l, a0, a1 = _step(
            q0, q1, K, V, BIAS, k_row, v_row, start, high, scale2, bias_scale, m, l, a0, a1,
            D, D0, D1, BN, HAS_BIAS, False,
        )  # fmt: skip
    if TAIL:
        for start in tl.range(full, high, BN):
            m, l, a0, a1 = _step(
                q0, q1, K, V, BIAS, k_row, v_row, start, high, scale2, bias_scale, m, l, a0, a1,
                D, D0, D1, BN, HAS_BIAS, True,
            )  # fmt: skip
    alive = l > 0
    l = tl.where(alive, l, 1.0)
    inverse = 1.0 / l
    OUT = slab(OUT, o_batch, o_head, heads, UNIT) + part.to(tl.int64) * (o_split * UNIT)
    OUT += first.to(tl.int64) * o_row
    store_rows(OUT, a0 * inverse[:, None], rows, o_row, ok, 0, D0, D)
    if D1 > 0:
        store_rows(OUT, a1 * inverse[:, None], rows, o_row, ok, D0, D1, D)
    LSE += (part * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * M + first
    lse = (m * scale2 + tl.log2(l)) * LN2
    tl.store(LSE + rows, tl.where(alive, lse, -float("inf")), mask=ok)


@triton.jit(do_not_specialize=["heads", "M", "parts"])
def _flash_merge_kernel(
    PARTS, LSES, OUT, LSE, o_batch, o_head, o_row, heads, M, parts,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Grid (query tiles, B H): merges float32 PARTS [parts, B, H, M, D] in their order."""
    first = tl.program_id(0) * BM
    rows = tl.arange(0, BM)
    ok = first + rows < M
    m = tl.full([BM], _LOWEST, tl.float32)
    l = tl.zeros([BM], tl.float32)
    a = tl.zeros([BM, DP], tl.float32)
    for part in range(parts):
        base = (part * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * M + first
        lse = tl.load(LSES + base + rows, mask=ok, other=0.0)
        m_new = tl.maximum(m, lse)
        alpha = tl.exp2((m - m_new) / LN2)
        p = tl.exp2((lse - m_new) / LN2)
        l = l * alpha + p
        out = load_rows(PARTS + base * D, rows, D, ok, 0, DP, D, True)
        a = a * alpha[:, None] + out * p[:, None]
        m = m_new
    alive = l > 0
    l = tl.where(alive, l, 1.0)
    o_row *= UNIT
    OUT = slab(OUT, o_batch, o_head, heads, UNIT) + first.to(tl.int64) * o_row
    store_rows(OUT, a / l[:, None], rows, o_row, ok, 0, DP, D)
    LSE += tl.program_id(1).to(tl.int64) * M + first
    tl.store(LSE + rows, tl.where(alive, m + tl.log2(l) * LN2, -float("inf")), mask=ok)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    tiles: Tiles | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out like q [B, H, M, D] and lse [B, H, M] of q over k, v [B, H, N, D], bias [N] float32."""
    batch, heads, length, dim = q.shape
    tiles = tiles_for("forward", q) if tiles is None else tiles
    grid = (triton.cdiv(length, tiles.queries), batch * heads)
    parts, chunk = split(grid[0] * grid[1], k.shape[2], tiles.keys)
    out = torch.empty_like(q)
    lse = q.new_empty(batch, heads, length, dtype=torch.float32)
    partial, partial_lse = out.unsqueeze(0), lse
    if parts > 1:
        partial = q.new_empty(parts, *q.shape, dtype=torch.float32)
        partial_lse = lse.new_empty(parts, *lse.shape)
    d0, d1 = head_parts(dim)
    unit, strides = in_units(q, k, v, partial)
    _flash_forward_kernel[(*grid, parts)](
        q, k, v, bias, partial, partial_lse,
        *strides, heads, length, k.shape[2], chunk, scale * LOG2E, 1.0 / scale,
        D=dim, D0=d0, D1=d1, BM=tiles.queries, BN=tiles.keys,
        HAS_BIAS=bias is not None, TAIL=k.shape[2] % tiles.keys != 0, UNIT=unit,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    if parts > 1:
        rows = 32
        unit, strides = in_units(out)
        _flash_merge_kernel[(triton.cdiv(length, rows), grid[1])](
            partial, partial_lse, out, lse, *strides, heads, length, parts,
            D=dim, DP=triton.next_power_of_2(dim), BM=rows, UNIT=unit, num_warps=4,
        )  # fmt: skip
    return out, lse


def variants() -> list[Variant]:
    """Every default, and the merge of chunks."""
    found = variants_of("flash_forward", "forward", _flash_forward_kernel)
    for dim in (64, 160):
        values = {"D": dim, "DP": triton.next_power_of_2(dim), "BM": 32, "UNIT": 8}
        types = signature(_flash_merge_kernel, values, "bf16", ["PARTS", "LSES", "LSE"])
        merge = (f"flash_merge_{dim}", _flash_merge_kernel, types, values, 4, 3)
        found.append(Variant(*merge, default=True, tensor_cores=False))
    return found
