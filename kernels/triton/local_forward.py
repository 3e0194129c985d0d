"""Local attention of one tile of grid queries in one Triton program: context keys, then its disc.

CLEAR's disc (arXiv:2412.16112) or, with CELL > 1, the near field of foveated attention. Tiles are
two-dimensional and read from raster order: nothing is permuted and no mask is stored. K, V, CK, CV
are pointers, or with TMA tensor descriptors whose boxes are the key tiles: [B, H, frames * rows,
columns, D] and [B, H, tokens, D].
"""

import triton
import triton.language as tl

from .rings import attend_ring
from .rows import load_keys, load_rows, store_rows
from .softmax import LN2, scores, update
from .walk import next_tile, tile_of, tokens_of
from .windows import ELLIPSOID, part_of, sight_of, visible, walk_of

__all__ = ["attend_context", "attend_near", "local_forward_kernel"]


@triton.jit
def _context_step(
    q0, q1, CK, CV, b, h, first, ck_row, cv_row, context, m, l, acc0, acc1, scale2,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BC: tl.constexpr,
    MASKED: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Take BC context keys from `first` on; MASKED where they may run over the end."""
    row = tl.arange(0, BC)
    real = row < context - first
    if TMA:
        k0 = CK.load([b, h, first, 0]).reshape([BC, D0])
        v0 = CV.load([b, h, first, 0]).reshape([BC, D0])
        k1, v1 = k0, v0
    else:
        k0, k1, v0, v1 = load_keys(CK, CV, first + row, ck_row, cv_row, real, D, D0, D1, MASKED)
    s = scores(q0, q1, k0, k1, D1 > 0, "ieee")
    if MASKED:
        s = tl.where(real[None, :], s, -float("inf"))
    return update(s, v0, v1, m, l, acc0, acc1, scale2, D1 > 0, "ieee")


@triton.jit
def attend_context(
    q0, q1, CK, CV, b, h, ck_row, cv_row, context, m, l, acc0, acc1, scale2,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BC: tl.constexpr,
    TAIL: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Take all context keys, those that do not fill a block first."""
    full = context // BC * BC
    if TAIL:
        # a descriptor reads whole blocks; with pointers a few keys take fewer registers
        FEW: tl.constexpr = BC if TMA else 16
        for c in tl.range(full, context, FEW, num_stages=1):
            m, l, acc0, acc1 = _context_step(
                q0, q1, CK, CV, b, h, c, ck_row, cv_row, context, m, l, acc0, acc1, scale2,
                D, D0, D1, FEW, True, TMA,
            )  # fmt: skip
    for c in tl.range(0, full, BC):
        m, l, acc0, acc1 = _context_step(
            q0, q1, CK, CV, b, h, c, ck_row, cv_row, context, m, l, acc0, acc1, scale2,
            D, D0, D1, BC, False, TMA,
        )  # fmt: skip
    return m, l, acc0, acc1


@triton.jit
def attend_near(
    q0, q1, K, V, b, h, k_row, v_row, t, y0, x0, qy, qx, frames, height, width, halo, reach,
    extents, causal, place, m, l, acc0, acc1, scale2,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    CELL: tl.constexpr, FRAMES: tl.constexpr, WINDOW: tl.constexpr,
    TMA: tl.constexpr, I64: tl.constexpr,
):  # fmt: skip
    """Take the tokens that the queries see: for a disc, whose cells are closer than `reach`."""
    N: tl.constexpr = KH * KW
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
        if TMA:
            k0 = K.load([b, h, kt * height + ky, kx, 0]).reshape([N, D0])
            v0 = V.load([b, h, kt * height + ky, kx, 0]).reshape([N, D0])
            k1, v1 = k0, v0
        else:
            key = tokens_of(kt, ky + jy, kx + jx, height, width, I64, place)
            k0, k1, v0, v1 = load_keys(K, V, key, k_row, v_row, None, D, D0, D1, False)
        near = visible(
            sight, t - kt, ky, kx, height, width, reach, extents, causal,
            TH * TW, KH, KW, CELL, FRAMES, WINDOW, True,
        )  # fmt: skip
        s = tl.where(near, scores(q0, q1, k0, k1, D1 > 0, "ieee"), -float("inf"))
        m, l, acc0, acc1 = update(s, v0, v1, m, l, acc0, acc1, scale2, D1 > 0, "ieee")
        kt, ky, kx = next_tile(kt, ky, kx, ky0, ky1, kx0, kx1, KH, KW, FRAMES)
    return m, l, acc0, acc1


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
def local_forward_kernel(
    Q, K, V, CK, CV, K1, V1, K2, V2, RADII, OUT, LSE,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    ck_batch, ck_head, ck_row, cv_batch, cv_head, cv_row, o_batch, o_head, o_row, lse_head,
    heads, tiles, frames, height, width, halo, reach,
    extent_t, extent_y, extent_x, step_t, step_y, step_x, causal, context, scale2, mass,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BC: tl.constexpr,
    CELL: tl.constexpr, FRAMES: tl.constexpr, WINDOW: tl.constexpr,
    CONTEXT: tl.constexpr, TAIL: tl.constexpr,
    LEVELS: tl.constexpr, POOL: tl.constexpr, CUT: tl.constexpr,
    TMA: tl.constexpr, UNIT: tl.constexpr, I64: tl.constexpr,
):  # fmt: skip
    """Writes OUT [*, D] and LSE of one tile; program (pair of batch and head) * tiles + tile.

    K1, V1, K2, V2 [B, H, cells, D] are the pooled keys of as many LEVELS; `mass` is the log2 of a
    cell's tokens, of level 1, or 0. With CELL = 1 each query sees them all.
    """
    M: tl.constexpr = TH * TW
    SPLIT: tl.constexpr = D1 > 0
    pair = tl.program_id(0) // tiles
    b = pair // heads
    h = pair % heads
    b64 = b.to(tl.int64) * UNIT
    h64 = h.to(tl.int64) * UNIT
    q_row, o_row = q_row * UNIT, o_row * UNIT
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
    qy = tl.minimum(qy, height - 1)  # a row too many repeats a real one: it sees keys, too
    qx = tl.minimum(qx, width - 1)
    token = tokens_of(t, qy, qx, height, width, I64, place)
    Q += b64 * q_batch + h64 * q_head
    q0 = load_rows(Q, token, q_row, None, 0, D0, D, False)
    q1 = load_rows(Q, token, q_row, None, D0, D1, D, False) if SPLIT else q0

    m = tl.full([M], -1.0e30, tl.float32)
    l = tl.zeros([M], tl.float32)
    acc0 = tl.zeros([M, D0], tl.float32)
    acc1 = tl.zeros([M, D1], tl.float32) if SPLIT else 0.0

    if not TMA:
        CK += b64 * ck_batch + h64 * ck_head
        CV += b64 * cv_batch + h64 * cv_head
        K += b64 * k_batch + h64 * k_head
        V += b64 * v_batch + h64 * v_head
    if CONTEXT:
        m, l, acc0, acc1 = attend_context(
            q0, q1, CK, CV, b, h, ck_row * UNIT, cv_row * UNIT, context, m, l, acc0, acc1, scale2,
            D, D0, D1, BC, TAIL, TMA,
        )  # fmt: skip
    m, l, acc0, acc1 = attend_near(
        q0, q1, K, V, b, h, k_row * UNIT, v_row * UNIT, t, y0, x0, qy, qx, frames, height, width,
        halo, reach, extents, causal, place, m, l, acc0, acc1, scale2,
        D, D0, D1, TH, TW, KH, KW, CELL, FRAMES, WINDOW, TMA, I64,
    )  # fmt: skip
    if LEVELS > 0:
        cells = frames * tl.cdiv(height, POOL) * tl.cdiv(width, POOL)
        first = pair.to(tl.int64) * cells * D
        m, l, acc0, acc1 = attend_ring(
            q0, q1, K1 + first, V1 + first, t, y0, x0, qy, qx, frames, height, width, reach,
            mass / scale2, m, l, acc0, acc1, scale2,
            D, D0, D1, TH, TW, KH, KW, POOL, POOL, LEVELS == 1, CELL > 1, CUT, FRAMES, I64,
        )  # fmt: skip
    if LEVELS > 1:
        cells = frames * tl.cdiv(height, POOL * POOL) * tl.cdiv(width, POOL * POOL)
        first = pair.to(tl.int64) * cells * D
        m, l, acc0, acc1 = attend_ring(
            q0, q1, K2 + first, V2 + first, t, y0, x0, qy, qx, frames, height, width, reach,
            2 * mass / scale2, m, l, acc0, acc1, scale2,
            D, D0, D1, TH, TW, KH, KW, POOL * POOL, POOL, True, True, CUT, FRAMES, I64,
        )  # fmt: skip

    OUT += b64 * o_batch + h64 * o_head
    store_rows(OUT, acc0 / l[:, None], token, o_row, ok, 0, D0, D)
    if SPLIT:
        store_rows(OUT, acc1 / l[:, None], token, o_row, ok, D0, D1, D)
    tl.store(LSE + pair.to(tl.int64) * lse_head + token, (m * scale2 + tl.log2(l)) * LN2, mask=ok)
