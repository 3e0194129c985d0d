"""Gradients of local attention, tile by tile: of the queries, and of the grid's keys and values.

What sees what is symmetric: a grid key is seen by every context query and by the grid queries of
its own disc, so the key kernel walks like the forward kernel. Each program owns what it writes: no
atomics, and the same numbers in every run.
"""

import triton
import triton.language as tl

from .gradient import key_step, query_step
from .rings import differentiate_ring
from .rows import load_keys, load_rows, store_rows
from .softmax import LN2, scores
from .walk import next_tile, tile_of, tokens_of
from .windows import ELLIPSOID, part_of, sight_of, visible, walk_of

__all__ = ["local_backward_keys_kernel", "local_backward_queries_kernel"]


@triton.jit
def _shift(OUT, token, o_row, g0, g1, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """- sum_d g out."""
    out = load_rows(OUT, token, o_row, None, 0, D0, D, False)
    shift = -tl.sum(g0.to(tl.float32) * out.to(tl.float32), 1)
    if D1 > 0:
        out = load_rows(OUT, token, o_row, None, D0, D1, D, False)
        shift -= tl.sum(g1.to(tl.float32) * out.to(tl.float32), 1)
    return shift


@triton.jit(
    do_not_specialize=[
        "heads",
        "tiles",
        "frames",
        "height",
        "width",
        "halo",
        "reach",
        "extent_t",
        "extent_y",
        "extent_x",
        "step_t",
        "step_y",
        "step_x",
        "causal",
        "context",
    ]  # fmt: skip
)
def local_backward_queries_kernel(
    Q, K, V, CK, CV, K1, V1, K2, V2, RADII, OUT, GRAD, LSE, GRAD_LSE, SHIFT, DQ,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    ck_batch, ck_head, ck_row, cv_batch, cv_head, cv_row, o_batch, o_head, o_row,
    g_batch, g_head, g_row, dq_batch, dq_head, dq_row, lse_head,
    heads, tiles, frames, height, width, halo, reach,
    extent_t, extent_y, extent_x, step_t, step_y, step_x, causal, context, scale, scale2, mass,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BC: tl.constexpr,
    CELL: tl.constexpr, FRAMES: tl.constexpr, WINDOW: tl.constexpr, CONTEXT: tl.constexpr,
    LEVELS: tl.constexpr, POOL: tl.constexpr, CUT: tl.constexpr,
    UNIT: tl.constexpr, I64: tl.constexpr,
):  # fmt: skip
    """Writes DQ and SHIFT of one tile of grid queries; LSE, GRAD_LSE and SHIFT share strides."""
    M: tl.constexpr = TH * TW
    N: tl.constexpr = KH * KW
    SPLIT: tl.constexpr = D1 > 0
    pair = tl.program_id(0) // tiles
    b = (pair // heads).to(tl.int64) * UNIT
    h = (pair % heads).to(tl.int64) * UNIT
    k_row, v_row, ck_row, cv_row = k_row * UNIT, v_row * UNIT, ck_row * UNIT, cv_row * UNIT
    if RADII is not None:
        reach = tl.load(RADII + pair % heads)
        halo = reach - 1
    tile = tl.program_id(0) % tiles
    extents = (extent_t, extent_y, extent_x)
    place = None
    if WINDOW <= ELLIPSOID:
        t, y0, x0 = tile_of(tile, height, width, TH, TW, FRAMES)
    else:
        t, y0, x0, frames, height, width, place = part_of(
            tile, frames, height, width, extents, (step_t, step_y, step_x), TH, TW, FRAMES, WINDOW
        )
        context = tl.where((y0 < height) & (x0 < width), context, 0)
    qy = y0 + tl.arange(0, M) // TW
    qx = x0 + tl.arange(0, M) % TW
    ok = (qy < height) & (qx < width)
    qy = tl.minimum(qy, height - 1)
    qx = tl.minimum(qx, width - 1)
    token = tokens_of(t, qy, qx, height, width, I64, place)
    q0, q1, g0, g1 = load_keys(
        Q + b * q_batch + h * q_head, GRAD + b * g_batch + h * g_head, token,
        q_row * UNIT, g_row * UNIT, None, D, D0, D1, False,
    )  # fmt: skip
    flat = pair.to(tl.int64) * lse_head + token
    lse2 = tl.load(LSE + flat) / LN2
    shift = _shift(OUT + b * o_batch + h * o_head, token, o_row * UNIT, g0, g1, D, D0, D1)
    shift += tl.load(GRAD_LSE + flat)
    tl.store(SHIFT + flat, shift, mask=ok)
    acc0 = tl.zeros([M, D0], tl.float32)
    acc1 = tl.zeros([M, D1], tl.float32) if SPLIT else 0.0

    if CONTEXT:
        CK += b * ck_batch + h * ck_head
        CV += b * cv_batch + h * cv_head
        row = tl.arange(0, BC)
        for c in tl.range(0, context, BC):
            real = row < context - c
            k0, k1, v0, v1 = load_keys(CK, CV, c + row, ck_row, cv_row, real, D, D0, D1, True)
            s = tl.where(real[None, :], scores(q0, q1, k0, k1, SPLIT, "ieee"), -float("inf"))
            acc0, acc1 = query_step(
                s, g0, g1, k0, k1, v0, v1, lse2, shift, acc0, acc1, scale2, SPLIT
            )

    K += b * k_batch + h * k_head
    V += b * v_batch + h * v_head
    ky0, ky1, kx0, kx1, kt, kt1 = walk_of(
        t, y0, x0, frames, height, width, halo, reach, extents, causal,
        TH, TW, CELL, FRAMES, WINDOW, True,
    )  # fmt: skip
    ky = ky0
    kx = kx0
    jy = tl.arange(0, N) // KW
    jx = tl.arange(0, N) % KW
    sight = sight_of(qy, qx, height, width, extents, causal, WINDOW, True)
    for _ in tl.range(0, (kt1 - kt) * tl.cdiv(ky1 - ky0, KH) * tl.cdiv(kx1 - kx0, KW)):
        key = tokens_of(kt, ky + jy, kx + jx, height, width, I64, place)
        k0, k1, v0, v1 = load_keys(K, V, key, k_row, v_row, None, D, D0, D1, False)
        near = visible(
            sight, t - kt, ky, kx, height, width, reach, extents, causal,
            M, KH, KW, CELL, FRAMES, WINDOW, True,
        )  # fmt: skip
        s = tl.where(near, scores(q0, q1, k0, k1, SPLIT, "ieee"), -float("inf"))
        acc0, acc1 = query_step(s, g0, g1, k0, k1, v0, v1, lse2, shift, acc0, acc1, scale2, SPLIT)
        kt, ky, kx = next_tile(kt, ky, kx, ky0, ky1, kx0, kx1, KH, KW, FRAMES)

    if LEVELS > 0:
        cells = frames * tl.cdiv(height, POOL) * tl.cdiv(width, POOL)
        first = pair.to(tl.int64) * cells * D
        acc0, acc1 = differentiate_ring(
            q0, q1, g0, g1, K1 + first, V1 + first, t, y0, x0, qy, qx, frames, height, width, reach,
            lse2 - mass, shift, acc0, acc1, scale2,
            D, D0, D1, TH, TW, KH, KW, POOL, POOL, LEVELS == 1, CELL > 1, CUT, FRAMES, I64,
        )  # fmt: skip
    if LEVELS > 1:
        cells = frames * tl.cdiv(height, POOL * POOL) * tl.cdiv(width, POOL * POOL)
        first = pair.to(tl.int64) * cells * D
        acc0, acc1 = differentiate_ring(
            q0, q1, g0, g1, K2 + first, V2 + first, t, y0, x0, qy, qx, frames, height, width, reach,
            lse2 - 2 * mass, shift, acc0, acc1, scale2,
            D, D0, D1, TH, TW, KH, KW, POOL * POOL, POOL, True, True, CUT, FRAMES, I64,
        )  # fmt: skip

    DQ += b * dq_batch + h * dq_head
    store_rows(DQ, acc0 * scale, token, dq_row * UNIT, ok, 0, D0, D)
    if SPLIT:
        store_rows(DQ, acc1 * scale, token, dq_row * UNIT, ok, D0, D1, D)


@triton.jit(
    do_not_specialize=[
        "heads",
        "tiles",
        "frames",
        "height",
        "width",
        "halo",
        "reach",
        "extent_t",
        "extent_y",
        "extent_x",
        "step_t",
        "step_y",
        "step_x",
        "causal",
        "context",
    ]  # fmt: skip
)
def local_backward_keys_kernel(
    Q, K, V, GRAD, CQ, CGRAD, RADII, LSE, SHIFT, CLSE, CSHIFT, DK, DV,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    g_batch, g_head, g_row, cq_batch, cq_head, cq_row, cg_batch, cg_head, cg_row,
    dk_batch, dk_head, dk_row, dv_batch, dv_head, dv_row, lse_head,
    heads, tiles, frames, height, width, halo, reach,
    extent_t, extent_y, extent_x, step_t, step_y, step_x, causal, context, scale, scale2,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BC: tl.constexpr,
    CELL: tl.constexpr, FRAMES: tl.constexpr, WINDOW: tl.constexpr, CONTEXT: tl.constexpr,
    UNIT: tl.constexpr, I64: tl.constexpr,
):  # fmt: skip
    """Writes DK and DV of one tile of grid keys; walks context queries, then the grid's."""
    M: tl.constexpr = TH * TW
    N: tl.constexpr = KH * KW
    SPLIT: tl.constexpr = D1 > 0
    pair = tl.program_id(0) // tiles
    b = (pair // heads).to(tl.int64) * UNIT
    h = (pair % heads).to(tl.int64) * UNIT
    q_row, g_row, cq_row, cg_row = q_row * UNIT, g_row * UNIT, cq_row * UNIT, cg_row * UNIT
    if RADII is not None:
        reach = tl.load(RADII + pair % heads)
        halo = reach - 1
    tile = tl.program_id(0) % tiles
    extents = (extent_t, extent_y, extent_x)
    place = None
    if WINDOW <= ELLIPSOID:
        t, y0, x0 = tile_of(tile, height, width, TH, TW, FRAMES)
    else:
        t, y0, x0, frames, height, width, place = part_of(
            tile, frames, height, width, extents, (step_t, step_y, step_x), TH, TW, FRAMES, WINDOW
        )
        context = tl.where((y0 < height) & (x0 < width), context, 0)
    ky = y0 + tl.arange(0, M) // TW
    kx = x0 + tl.arange(0, M) % TW
    ok = (ky < height) & (kx < width)
    token = tokens_of(t, ky, kx, height, width, I64, place)
    k0, k1, v0, v1 = load_keys(
        K + b * k_batch + h * k_head, V + b * v_batch + h * v_head, token,
        k_row * UNIT, v_row * UNIT, None, D, D0, D1, False,
    )  # fmt: skip
    dk0 = tl.zeros([M, D0], tl.float32)
    dv0 = tl.zeros([M, D0], tl.float32)
    dk1 = tl.zeros([M, D1], tl.float32) if SPLIT else 0.0
    dv1 = tl.zeros([M, D1], tl.float32) if SPLIT else 0.0

    if CONTEXT:
        CQ += b * cq_batch + h * cq_head
        CGRAD += b * cg_batch + h * cg_head
        flat = pair.to(tl.int64) * context
        row = tl.arange(0, BC)
        for c in tl.range(0, context, BC):
            real = row < context - c
            q0, q1, g0, g1 = load_keys(CQ, CGRAD, c + row, cq_row, cg_row, real, D, D0, D1, True)
            # beyond the last query p = exp2(-inf) = 0
            lse2 = tl.load(CLSE + flat + c + row, mask=real, other=float("inf")) / LN2
            shift = tl.load(CSHIFT + flat + c + row, mask=real, other=0.0)
            s = scores(k0, k1, q0, q1, SPLIT, "ieee")
            dk0, dk1, dv0, dv1 = key_step(
                s, q0, q1, g0, g1, v0, v1, lse2, shift, dk0, dk1, dv0, dv1, scale2, SPLIT
            )

    Q += b * q_batch + h * q_head
    GRAD += b * g_batch + h * g_head
    LSE += pair.to(tl.int64) * lse_head
    SHIFT += pair.to(tl.int64) * lse_head
    qy0, qy1, qx0, qx1, qt, qt1 = walk_of(
        t, y0, x0, frames, height, width, halo, reach, extents, causal,
        TH, TW, CELL, FRAMES, WINDOW, False,
    )  # fmt: skip
    qy = qy0
    qx = qx0
    jy = tl.arange(0, N) // KW
    jx = tl.arange(0, N) % KW
    sight = sight_of(ky, kx, height, width, extents, causal, WINDOW, False)
    for _ in tl.range(0, (qt1 - qt) * tl.cdiv(qy1 - qy0, KH) * tl.cdiv(qx1 - qx0, KW)):
        query = tokens_of(qt, qy + jy, qx + jx, height, width, I64, place)
        q0, q1, g0, g1 = load_keys(Q, GRAD, query, q_row, g_row, None, D, D0, D1, False)
        lse2 = tl.load(LSE + query) / LN2
        shift = tl.load(SHIFT + query)
        near = visible(
            sight, t - qt, qy, qx, height, width, reach, extents, causal,
            M, KH, KW, CELL, FRAMES, WINDOW, False,
        )  # fmt: skip
        s = tl.where(near, scores(k0, k1, q0, q1, SPLIT, "ieee"), -float("inf"))
        dk0, dk1, dv0, dv1 = key_step(
            s, q0, q1, g0, g1, v0, v1, lse2, shift, dk0, dk1, dv0, dv1, scale2, SPLIT
        )
        qt, qy, qx = next_tile(qt, qy, qx, qy0, qy1, qx0, qx1, KH, KW, FRAMES)

    DK += b * dk_batch + h * dk_head
    DV += b * dv_batch + h * dv_head
    store_rows(DK, dk0 * scale, token, dk_row * UNIT, ok, 0, D0, D)
    store_rows(DV, dv0, token, dv_row * UNIT, ok, 0, D0, D)
    if SPLIT:
        store_rows(DK, dk1 * scale, token, dk_row * UNIT, ok, D0, D1, D)
        store_rows(DV, dv1, token, dv_row * UNIT, ok, D0, D1, D)
