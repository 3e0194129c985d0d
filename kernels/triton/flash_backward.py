"""Gradients of flash attention, also through its log-sum-exp, without atomics.

ds = p (dp + grad_lse - sum_d grad_out out), with p recomputed from the raw operands exactly as in
the forward (arXiv:2205.14135, Algorithm 4). One kernel keeps queries and walks the keys, one keeps
keys and walks the queries; either walk is cut into chunks that are summed in their order.
"""

import torch
import triton
import triton.language as tl

from .flash_tiles import Tiles, tiles_for, variants_of
from .launch import in_units, slab, split, with_rows
from .rows import head_parts, load_keys, load_rows, store_rows
from .softmax import LN2, LOG2E, scores
from .variants import Variant

__all__ = ["backward", "keys", "queries"]


@triton.jit
def _load_lse(LSE, rows, ok):
    """Base 2; +inf past the end and 0 for queries without keys, so that no p becomes NaN."""
    lse = tl.load(LSE + rows, mask=ok, other=float("inf"))
    return tl.where(lse == -float("inf"), 0.0, lse / LN2)


@triton.jit
def _query_step(
    q0, q1, g0, g1, lse, shift, K, V, BIAS, k_row, v_row, start, stop, scale2, bias_scale, a0, a1,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BN: tl.constexpr,
    HAS_BIAS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds ds k of one block of keys to the accumulators a0, a1."""
    rows = tl.arange(0, BN)
    ok = start + rows < stop
    K += tl.cast(start, tl.int64) * k_row
    V += tl.cast(start, tl.int64) * v_row
    k0, k1, v0, v1 = load_keys(K, V, rows, k_row, v_row, ok, D, D0, D1, MASKED)
    s = scores(q0, q1, k0, k1, D1 > 0, "ieee")
    dp = scores(g0, g1, v0, v1, D1 > 0, "ieee")
    if HAS_BIAS:
        s += tl.load(BIAS + start + rows, mask=ok, other=0.0)[None, :] * bias_scale
    if MASKED:
        s = tl.where(ok[None, :], s, -float("inf"))
    p = tl.exp2(tl.fma(s, scale2, -lse[:, None]))
    ds = (p * (dp + shift[:, None])).to(k0.dtype)
    a0 = tl.dot(ds, k0, a0, input_precision="ieee")
    if D1 > 0:
        a1 = tl.dot(ds, k1, a1, input_precision="ieee")
    return a0, a1


@triton.jit(do_not_specialize=["heads", "M", "N", "chunk"])
def _flash_backward_queries_kernel(
    Q, K, V, BIAS, OUT, GRAD, LSE, GRAD_LSE, SHIFT, DQ,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    o_batch, o_head, o_row, g_batch, g_head, g_row, d_split, d_batch, d_head, d_row,
    heads, M, N, chunk, scale2, bias_scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_BIAS: tl.constexpr, TAIL: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Grid (query tiles, B H, chunks): dq, and SHIFT = grad_lse - sum_d grad_out out."""
    first = tl.program_id(0) * BM
    part = tl.program_id(2)
    rows = tl.arange(0, BM)
    ok = first + rows < M
    q_row, k_row, v_row = q_row * UNIT, k_row * UNIT, v_row * UNIT
    o_row, g_row, d_row = o_row * UNIT, g_row * UNIT, d_row * UNIT
    Q = slab(Q, q_batch, q_head, heads, UNIT) + first.to(tl.int64) * q_row
    OUT = slab(OUT, o_batch, o_head, heads, UNIT) + first.to(tl.int64) * o_row
    GRAD = slab(GRAD, g_batch, g_head, heads, UNIT) + first.to(tl.int64) * g_row
    K = slab(K, k_batch, k_head, heads, UNIT)
    V = slab(V, v_batch, v_head, heads, UNIT)
    flat = tl.program_id(1).to(tl.int64) * M + first
    shift = tl.load(GRAD_LSE + flat + rows, mask=ok, other=0.0)
    q0, q1, g0, g1 = load_keys(Q, GRAD, rows, q_row, g_row, ok, D, D0, D1, True)
    out = load_rows(OUT, rows, o_row, ok, 0, D0, D, True)
    shift -= tl.sum(g0.to(tl.float32) * out.to(tl.float32), 1)
    if D1 > 0:
        out = load_rows(OUT, rows, o_row, ok, D0, D1, D, True)
        shift -= tl.sum(g1.to(tl.float32) * out.to(tl.float32), 1)
    a0 = tl.zeros([BM, D0], tl.float32)
    a1 = tl.zeros([BM, D1], tl.float32) if D1 > 0 else 0.0
    if part == 0:
        tl.store(SHIFT + flat + rows, shift, mask=ok)
    lse = _load_lse(LSE + flat, rows, ok)
    low = part * chunk
    high = tl.minimum(low + chunk, N)
    full = low + (high - low) // BN * BN
    for start in tl.range(low, full, BN):
        a0, a1 = _query_step(
            q0, q1, g0, g1, lse, shift, K, V, BIAS, k_row, v_row, start, high, scale2, bias_scale,
            a0, a1, D, D0, D1, BN, HAS_BIAS, False,
        )  # fmt: skip
    if TAIL:
        for start in tl.range(full, high, BN):
            a0, a1 = _query_step(
                q0, q1, g0, g1, lse, shift, K, V, BIAS, k_row, v_row, start, high, scale2,
                bias_scale, a0, a1, D, D0, D1, BN, HAS_BIAS, True,
            )  # fmt: skip
    DQ = slab(DQ, d_batch, d_head, heads, UNIT) + part.to(tl.int64) * (d_split * UNIT)
    DQ += first.to(tl.int64) * d_row
    store_rows(DQ, a0 / bias_scale, rows, d_row, ok, 0, D0, D)
    if D1 > 0:
        store_rows(DQ, a1 / bias_scale, rows, d_row, ok, D0, D1, D)


@triton.jit
def _key_step(
    k0, k1, v0, v1, bias, Q, GRAD, LSE, SHIFT, q_row, g_row, start, stop, scale2, a0, a1, b0, b1,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr,
    HAS_BIAS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds ds^T q to a0, a1 and p^T grad_out to b0, b1, of one block of queries."""
    rows = tl.arange(0, BM)
    ok = start + rows < stop
    Q += tl.cast(start, tl.int64) * q_row
    GRAD += tl.cast(start, tl.int64) * g_row
    q0, q1, g0, g1 = load_keys(Q, GRAD, rows, q_row, g_row, ok, D, D0, D1, MASKED)
    s = scores(k0, k1, q0, q1, D1 > 0, "ieee")
    dp = scores(v0, v1, g0, g1, D1 > 0, "ieee")
    if HAS_BIAS:
        s += bias[:, None]
    lse = _load_lse(LSE + start, rows, ok)
    shift = tl.load(SHIFT + start + rows, mask=ok, other=0.0)
    p = tl.exp2(tl.fma(s, scale2, -lse[None, :]))
    ds = (p * (dp + shift[None, :])).to(q0.dtype)
    p = p.to(g0.dtype)
    a0 = tl.dot(ds, q0, a0, input_precision="ieee")
    b0 = tl.dot(p, g0, b0, input_precision="ieee")
    if D1 > 0:
        a1 = tl.dot(ds, q1, a1, input_precision="ieee")
        b1 = tl.dot(p, g1, b1, input_precision="ieee")
    return a0, a1, b0, b1


@triton.jit(do_not_specialize=["heads", "M", "N", "chunk"])
def _flash_backward_keys_kernel(
    Q, K, V, BIAS, GRAD, LSE, SHIFT, DK, DV,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    g_batch, g_head, g_row, dk_split, dk_batch, dk_head, dk_row,
    dv_split, dv_batch, dv_head, dv_row, heads, M, N, chunk, scale2, bias_scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_BIAS: tl.constexpr, TAIL: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Grid (key tiles, B H, chunks): dk and dv."""
    first = tl.program_id(0) * BN
    part = tl.program_id(2)
    rows = tl.arange(0, BN)
    ok = first + rows < N
    q_row, k_row, v_row = q_row * UNIT, k_row * UNIT, v_row * UNIT
    g_row, dk_row, dv_row = g_row * UNIT, dk_row * UNIT, dv_row * UNIT
    K = slab(K, k_batch, k_head, heads, UNIT) + first.to(tl.int64) * k_row
    V = slab(V, v_batch, v_head, heads, UNIT) + first.to(tl.int64) * v_row
    Q = slab(Q, q_batch, q_head, heads, UNIT)
    GRAD = slab(GRAD, g_batch, g_head, heads, UNIT)
    LSE += tl.program_id(1).to(tl.int64) * M
    SHIFT += tl.program_id(1).to(tl.int64) * M
    k0, k1, v0, v1 = load_keys(K, V, rows, k_row, v_row, ok, D, D0, D1, True)
    a0 = tl.zeros([BN, D0], tl.float32)
    b0 = tl.zeros([BN, D0], tl.float32)
    a1 = tl.zeros([BN, D1], tl.float32) if D1 > 0 else 0.0
    b1 = tl.zeros([BN, D1], tl.float32) if D1 > 0 else 0.0
    bias = 0.0
    if HAS_BIAS:
        bias = tl.load(BIAS + first + rows, mask=ok, other=0.0) * bias_scale
    low = part * chunk
    high = tl.minimum(low + chunk, M)
    full = low + (high - low) // BM * BM
    for start in tl.range(low, full, BM):
        a0, a1, b0, b1 = _key_step(
            k0, k1, v0, v1, bias, Q, GRAD, LSE, SHIFT, q_row, g_row, start, high, scale2,
            a0, a1, b0, b1, D, D0, D1, BM, HAS_BIAS, False,
        )  # fmt: skip
    if TAIL:
        for start in tl.range(full, high, BM):
            a0, a1, b0, b1 = _key_step(
                k0, k1, v0, v1, bias, Q, GRAD, LSE, SHIFT, q_row, g_row, start, high, scale2,
                a0, a1, b0, b1, D, D0, D1, BM, HAS_BIAS, True,
            )  # fmt: skip
    DK = slab(DK, dk_batch, dk_head, heads, UNIT) + part.to(tl.int64) * (dk_split * UNIT)
    DV = slab(DV, dv_batch, dv_head, heads, UNIT) + part.to(tl.int64) * (dv_split * UNIT)
    DK += first.to(tl.int64) * dk_row
    DV += first.to(tl.int64) * dv_row
    store_rows(DK, a0 / bias_scale, rows, dk_row, ok, 0, D0, D)
    store_rows(DV, b0, rows, dv_row, ok, 0, D0, D)
    if D1 > 0:
        store_rows(DK, a1 / bias_scale, rows, dk_row, ok, D0, D1, D)
        store_rows(DV, b1, rows, dv_row, ok, D0, D1, D)


def _parts(x: torch.Tensor, parts: int) -> torch.Tensor:
    """Where the chunks of a gradient go, [parts, *x.shape]; float32 if there is more than one."""
    if parts == 1:
        return torch.empty_like(x).unsqueeze(0)
    return x.new_empty(parts, *x.shape, dtype=torch.float32)


def _total(x: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    if parts.shape[0] == 1:
        return parts.squeeze(0)
    return torch.empty_like(x).copy_(parts.sum(0))


def queries(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    tiles: Tiles | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dq and shift = grad_lse - sum_d grad_out out; lse [B, H, M] is contiguous float32."""
    batch, heads, length, dim = q.shape
    tiles = tiles_for("queries", q) if tiles is None else tiles
    grad_out, grad_lse = with_rows(grad_out), grad_lse.contiguous()
    shift = torch.empty_like(lse)
    d0, d1 = head_parts(dim)
    grid = (triton.cdiv(length, tiles.queries), batch * heads)
    parts, chunk = split(grid[0] * grid[1], k.shape[2], tiles.keys)
    dq = _parts(q, parts)
    unit, strides = in_units(q, k, v, out, grad_out, dq)
    _flash_backward_queries_kernel[(*grid, parts)](
        q, k, v, bias, out, grad_out, lse, grad_lse, shift, dq,
        *strides, heads, length, k.shape[2], chunk, scale * LOG2E, 1.0 / scale,
        D=dim, D0=d0, D1=d1, HAS_BIAS=bias is not None, BM=tiles.queries, BN=tiles.keys,
        TAIL=k.shape[2] % tiles.keys != 0, UNIT=unit,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return _total(q, dq), shift


def keys(
    grad_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    lse: torch.Tensor,
    shift: torch.Tensor,
    scale: float,
    tiles: Tiles | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dk and dv; shift as `queries` gives it."""
    batch, heads, length, dim = q.shape
    grad_out = with_rows(grad_out)
    tiles = tiles_for("keys", q) if tiles is None else tiles
    d0, d1 = head_parts(dim)
    grid = (triton.cdiv(k.shape[2], tiles.keys), batch * heads)
    parts, chunk = split(grid[0] * grid[1], length, tiles.queries)
    dk, dv = _parts(k, parts), _parts(v, parts)
    unit, strides = in_units(q, k, v, grad_out, dk, dv)
    _flash_backward_keys_kernel[(*grid, parts)](
        q, k, v, bias, grad_out, lse, shift, dk, dv,
        *strides, heads, length, k.shape[2], chunk, scale * LOG2E, 1.0 / scale,
        D=dim, D0=d0, D1=d1, HAS_BIAS=bias is not None, BM=tiles.queries, BN=tiles.keys,
        TAIL=length % tiles.queries != 0, UNIT=unit,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return _total(k, dk), _total(v, dv)


def backward(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    query_tiles: Tiles | None = None,
    key_tiles: Tiles | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dq, dk, dv from what `forward` took and gave, and its gradients."""
    dq, shift = queries(grad_out, grad_lse, q, k, v, bias, out, lse, scale, query_tiles)
    return dq, *keys(grad_out, q, k, v, bias, lse, shift, scale, key_tiles)


def variants() -> list[Variant]:
    """Every default of both kernels."""
    return [
        *variants_of("flash_backward_queries", "queries", _flash_backward_queries_kernel),
        *variants_of("flash_backward_keys", "keys", _flash_backward_keys_kernel),
    ]
