"""Pooled keys of foveated attention, as Triton helpers: cells between two near fields.

Cells of side U = pool^level are one key each, [frames, rows, columns, D] in raster order. A query
sees those that its near field of this level leaves out and, but for the last level, that of the
next one holds. They go through the same softmax as the tokens: q, the maximum, the sum and the
accumulators stay where they are, and nothing is merged afterwards.
"""

import triton
import triton.language as tl

from .gradient import query_step
from .rows import load_keys
from .softmax import scores, update
from .walk import box, near_of, next_tile, tokens_of

__all__ = ["attend_ring", "differentiate_ring", "log2_share"]


@triton.jit
def _cells_walked(
    t, y0, x0, frames, height, width, reach,
    TH: tl.constexpr, TW: tl.constexpr, U: tl.constexpr, POOL: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Rows, columns and frames of the cells that a tile of queries may see, each begin and end."""
    if LAST:
        return 0, tl.cdiv(height, U), 0, tl.cdiv(width, U), 0, frames
    else:
        NEXT: tl.constexpr = U * POOL
        halo = (reach * U - 2) // NEXT * NEXT + NEXT
        ky0, ky1 = box(y0, height, halo, TH, NEXT)
        kx0, kx1 = box(x0, width, halo, TW, NEXT)
        kt, kt1 = box(t, frames, reach * U - 1, 1, 1)
        return ky0 // U, tl.cdiv(ky1, U), kx0 // U, tl.cdiv(kx1, U), kt, kt1


@triton.jit
def log2_share(y, x, height, width, U: tl.constexpr):
    """log2 of the part of cells (y, x) of side U that lies in the grid."""
    down = tl.maximum(tl.minimum(height - y * U, U), 1)
    across = tl.maximum(tl.minimum(width - x * U, U), 1)
    return tl.log2((down * across).to(tl.float32) / (U * U))


@triton.jit
def _visible(
    s, qy, qx, ky, kx, jy, jx, dt2, height, width, reach, scale2,
    M: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    U: tl.constexpr, POOL: tl.constexpr, LAST: tl.constexpr, PARTITION: tl.constexpr,
    CUT: tl.constexpr,
):  # fmt: skip
    """Scores of a tile of cells, -inf where hidden, with the mass that CUT cells lack."""
    rows = tl.cdiv(height, U)
    columns = tl.cdiv(width, U)
    if CUT:
        s += (log2_share(ky + jy, kx + jx, height, width, U) / scale2)[None, :]
    seen = ((jy < rows - ky) & (jx < columns - kx))[None, :]
    if PARTITION:
        inner = reach * (U // POOL)
        within = (inner * inner - dt2).to(tl.float32)
        seen = seen & ~near_of(qy, qx, ky, kx, rows, columns, within, M, KH, KW, U, 1)
    if not LAST:
        within = (reach * U * reach * U - dt2).to(tl.float32)
        seen = seen & near_of(qy, qx, ky, kx, rows, columns, within, M, KH, KW, U * POOL, POOL)
    return tl.where(seen, s, -float("inf"))


@triton.jit
def attend_ring(
    q0, q1, K, V, t, y0, x0, qy, qx, frames, height, width, reach, shift,
    m, l, acc0, acc1, scale2,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    U: tl.constexpr, POOL: tl.constexpr, LAST: tl.constexpr, PARTITION: tl.constexpr,
    CUT: tl.constexpr, FRAMES: tl.constexpr, I64: tl.constexpr,
):  # fmt: skip
    """Take the cells of a level; their logits are raised by `shift`, in units before the scale.

    `reach` is where level 1 begins, in tokens. Without PARTITION every cell is seen. CUT corrects
    the mass of cells that the border cuts.
    """
    M: tl.constexpr = TH * TW
    rows = tl.cdiv(height, U)
    columns = tl.cdiv(width, U)
    ky0, ky1, kx0, kx1, kt, kt1 = _cells_walked(
        t, y0, x0, frames, height, width, reach, TH, TW, U, POOL, LAST
    )
    ky = ky0
    kx = kx0
    jy = tl.arange(0, KH * KW) // KW
    jx = tl.arange(0, KH * KW) % KW
    for _ in tl.range(0, (kt1 - kt) * tl.cdiv(ky1 - ky0, KH) * tl.cdiv(kx1 - kx0, KW)):
        key = tokens_of(kt, ky + jy, kx + jx, rows, columns, I64)
        k0, k1, v0, v1 = load_keys(K, V, key, D, D, None, D, D0, D1, False)
        s = _visible(
            scores(q0, q1, k0, k1, D1 > 0, "ieee"), qy, qx, ky, kx, jy, jx, (t - kt) * (t - kt),
            height, width, reach, scale2, M, KH, KW, U, POOL, LAST, PARTITION, CUT,
        )  # fmt: skip
        m, l, acc0, acc1 = update(s, v0, v1, m, l, acc0, acc1, scale2, D1 > 0, "ieee", shift)
        kt, ky, kx = next_tile(kt, ky, kx, ky0, ky1, kx0, kx1, KH, KW, FRAMES)
    return m, l, acc0, acc1


@triton.jit
def differentiate_ring(
    q0, q1, g0, g1, K, V, t, y0, x0, qy, qx, frames, height, width, reach, lse2, shift,
    acc0, acc1, scale2,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    U: tl.constexpr, POOL: tl.constexpr, LAST: tl.constexpr, PARTITION: tl.constexpr,
    CUT: tl.constexpr, FRAMES: tl.constexpr, I64: tl.constexpr,
):  # fmt: skip
    """Add the part of dq that comes from the cells of a level; lse2 is without their mass."""
    M: tl.constexpr = TH * TW
    rows = tl.cdiv(height, U)
    columns = tl.cdiv(width, U)
    ky0, ky1, kx0, kx1, kt, kt1 = _cells_walked(
        t, y0, x0, frames, height, width, reach, TH, TW, U, POOL, LAST
    )
    ky = ky0
    kx = kx0
    jy = tl.arange(0, KH * KW) // KW
    jx = tl.arange(0, KH * KW) % KW
    for _ in tl.range(0, (kt1 - kt) * tl.cdiv(ky1 - ky0, KH) * tl.cdiv(kx1 - kx0, KW)):
        key = tokens_of(kt, ky + jy, kx + jx, rows, columns, I64)
        k0, k1, v0, v1 = load_keys(K, V, key, D, D, None, D, D0, D1, False)
        s = _visible(
            scores(q0, q1, k0, k1, D1 > 0, "ieee"), qy, qx, ky, kx, jy, jx, (t - kt) * (t - kt),
            height, width, reach, scale2, M, KH, KW, U, POOL, LAST, PARTITION, CUT,
        )  # fmt: skip
        acc0, acc1 = query_step(s, g0, g1, k0, k1, v0, v1, lse2, shift, acc0, acc1, scale2, D1 > 0)
        kt, ky, kx = next_tile(kt, ky, kx, ky0, ky1, kx0, kx1, KH, KW, FRAMES)
    return acc0, acc1
