"""Gradients of the pooled keys and values of foveated attention, one tile of cells a program.

A cell is seen by the queries outside its near field, on a level before the last inside that of the
next. The program walks them all: what it writes is its own, so no atomics.
"""

import triton
import triton.language as tl

from .gradient import key_step
from .rings import log2_share
from .rows import load_keys, store_rows
from .softmax import LN2, scores
from .walk import box, near_of, next_tile, tile_of, tokens_of

__all__ = ["foveated_backward_cells_kernel"]


@triton.jit(do_not_specialize=["heads", "tiles", "frames", "height", "width", "reach"])
def foveated_backward_cells_kernel(
    Q, K, V, GRAD, LSE, SHIFT, DK, DV,
    q_batch, q_head, q_row, g_batch, g_head, g_row, lse_head,
    heads, tiles, frames, height, width, reach, scale, scale2, mass,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    U: tl.constexpr, POOL: tl.constexpr, LAST: tl.constexpr, PARTITION: tl.constexpr,
    CUT: tl.constexpr, FRAMES: tl.constexpr, UNIT: tl.constexpr, I64: tl.constexpr,
):  # fmt: skip
    """Writes DK and DV [B, H, cells, D] of one tile of cells of side U; `mass` is this level's."""
    M: tl.constexpr = TH * TW
    N: tl.constexpr = KH * KW
    SPLIT: tl.constexpr = D1 > 0
    pair = tl.program_id(0) // tiles
    b = (pair // heads).to(tl.int64) * UNIT
    h = (pair % heads).to(tl.int64) * UNIT
    rows = tl.cdiv(height, U)
    columns = tl.cdiv(width, U)
    t, y0, x0 = tile_of(tl.program_id(0) % tiles, rows, columns, TH, TW, FRAMES)
    ky = y0 + tl.arange(0, M) // TW
    kx = x0 + tl.arange(0, M) % TW
    ok = (ky < rows) & (kx < columns)
    cell = tokens_of(t, ky, kx, rows, columns, I64)
    first = pair.to(tl.int64) * frames * rows * columns * D
    k0, k1, v0, v1 = load_keys(K + first, V + first, cell, D, D, None, D, D0, D1, False)
    dk0 = tl.zeros([M, D0], tl.float32)
    dv0 = tl.zeros([M, D0], tl.float32)
    dk1 = tl.zeros([M, D1], tl.float32) if SPLIT else 0.0
    dv1 = tl.zeros([M, D1], tl.float32) if SPLIT else 0.0
    if CUT:
        lacking = log2_share(ky, kx, height, width, U) / scale2

    Q += b * q_batch + h * q_head
    GRAD += b * g_batch + h * g_head
    LSE += pair.to(tl.int64) * lse_head
    SHIFT += pair.to(tl.int64) * lse_head
    qy0, qy1, qx0, qx1, qt, qt1 = _queries_walked(
        t, y0, x0, frames, height, width, reach, TH, TW, U, POOL, LAST
    )
    qy = qy0
    qx = qx0
    jy = tl.arange(0, N) // KW
    jx = tl.arange(0, N) % KW
    for _ in tl.range(0, (qt1 - qt) * tl.cdiv(qy1 - qy0, KH) * tl.cdiv(qx1 - qx0, KW)):
        query = tokens_of(qt, qy + jy, qx + jx, height, width, I64)
        q0, q1, g0, g1 = load_keys(
            Q, GRAD, query, q_row * UNIT, g_row * UNIT, None, D, D0, D1, False
        )
        lse2 = tl.load(LSE + query) / LN2 - mass
        shift = tl.load(SHIFT + query)
        s = scores(k0, k1, q0, q1, SPLIT, "ieee")
        if CUT:
            s += lacking[:, None]
        dt2 = (t - qt) * (t - qt)
        seen = ((jy < height - qy) & (jx < width - qx))[None, :]
        if PARTITION:
            inner = reach * (U // POOL)
            within = (inner * inner - dt2).to(tl.float32)
            seen = seen & ~near_of(ky * U, kx * U, qy, qx, height, width, within, M, KH, KW, U, U)
        if not LAST:
            within = (reach * U * reach * U - dt2).to(tl.float32)
            seen = seen & near_of(
                ky * U, kx * U, qy, qx, height, width, within, M, KH, KW, U * POOL, U * POOL
            )
        s = tl.where(seen, s, -float("inf"))
        dk0, dk1, dv0, dv1 = key_step(
            s, q0, q1, g0, g1, v0, v1, lse2, shift, dk0, dk1, dv0, dv1, scale2, SPLIT
        )
        qt, qy, qx = next_tile(qt, qy, qx, qy0, qy1, qx0, qx1, KH, KW, FRAMES)

    store_rows(DK + first, dk0 * scale, cell, D, ok, 0, D0, D)
    store_rows(DV + first, dv0, cell, D, ok, 0, D0, D)
    if SPLIT:
        store_rows(DK + first, dk1 * scale, cell, D, ok, D0, D1, D)
        store_rows(DV + first, dv1, cell, D, ok, D0, D1, D)


@triton.jit
def _queries_walked(
    t, y0, x0, frames, height, width, reach,
    TH: tl.constexpr, TW: tl.constexpr, U: tl.constexpr, POOL: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Rows, columns and frames of the tokens that may see a tile of cells, each begin and end."""
    if LAST:
        return 0, height, 0, width, 0, frames
    else:
        NEXT: tl.constexpr = U * POOL
        halo = (reach * U - 2) // NEXT * NEXT + NEXT
        qy0, qy1 = box(y0 * U, height, halo, TH * U, NEXT)
        qx0, qx1 = box(x0 * U, width, halo, TW * U, NEXT)
        qt, qt1 = box(t, frames, reach * U - 1, 1, 1)
        return qy0, qy1, qx0, qx1, qt, qt1
