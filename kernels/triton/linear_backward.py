"""Gradients of linear attention's state and output, recomputed from q, k, v and the state.

Both need, of each token, x S and y S^T: the state's gradient dS gives dv = phi(k) dS and
dphi(k) = v dS^T + dz; the output's gradient g gives, with w = phi(q) z + eps,
dphi(q) = g S^T / w - z (g . phi(q) S) / w^2. dS and dz are again a state, of weighted tokens.
"""

import torch
import triton
import triton.language as tl

from .launch import in_units, slab, split, with_rows
from .linear_forward import state
from .linear_maps import features, features_backward
from .linear_tiles import Tiles, load_block, padded, store_block, tiles_for, variants_of
from .variants import Variant

__all__ = ["output_backward", "state_backward", "variants"]


@triton.jit(do_not_specialize=["heads", "N", "chunk", "eps"])
def _linear_backward_kernel(
    X, Y, S, Z, DX, DY, WEIGHT_S, WEIGHT_Z,
    x_batch, x_head, x_row, y_batch, y_head, y_row, dx_batch, dx_head, dx_row,
    dy_batch, dy_head, dy_row, heads, N, chunk, eps,
    DK: tl.constexpr, DKP: tl.constexpr, DV: tl.constexpr, BV: tl.constexpr, BN: tl.constexpr,
    MAP: tl.constexpr, OUTPUT: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Grid (chunks of tokens, B H): dx from x and y, and dy or, if OUTPUT, the weights of dS, dz.

    X is k or q, Y is v or the gradient of the output; S has the type of X, Z is float32.
    """
    rows = tl.arange(0, BN)
    columns = tl.arange(0, DKP)
    inside = columns < DK
    x_row, y_row, dx_row, dy_row = x_row * UNIT, y_row * UNIT, dx_row * UNIT, dy_row * UNIT
    X = slab(X, x_batch, x_head, heads, UNIT)
    Y = slab(Y, y_batch, y_head, heads, UNIT)
    DX = slab(DX, dx_batch, dx_head, heads, UNIT)
    DY = slab(DY, dy_batch, dy_head, heads, UNIT)
    S += tl.program_id(1).to(tl.int64) * DK * DV
    z = tl.load(Z + tl.program_id(1).to(tl.int64) * DK + columns, mask=inside, other=0.0)
    flat = tl.program_id(1).to(tl.int64) * N
    begin = tl.program_id(0) * chunk
    stop = tl.minimum(begin + chunk, N)
    for start in tl.range(begin, stop, BN):
        ok = start + rows < stop
        start64 = tl.cast(start, tl.int64)
        x = load_block(X + start64 * x_row, rows, x_row, ok, columns, inside)
        f = features(x.to(tl.float32), ok, inside, MAP)
        df = tl.zeros([BN, DKP], tl.float32)
        dot = tl.zeros([BN], tl.float32)
        for first in tl.range(0, DV, BV):
            values = first + tl.arange(0, BV)
            s = load_block(S, columns, DV, inside, values, values < DV)
            y = load_block(Y + start64 * y_row, rows, y_row, ok, values, values < DV)
            fs = tl.dot(f.to(s.dtype), s, input_precision="ieee")
            df = tl.dot(y, tl.trans(s), df, input_precision="ieee")
            if OUTPUT:
                dot += tl.sum(fs * y.to(tl.float32), 1)
            else:
                store_block(DY + start64 * dy_row, fs, rows, dy_row, ok, values, values < DV)
        if OUTPUT:
            weight = 1.0 / tl.where(ok, tl.sum(f * z[None, :], 1) + eps, 1.0)
            dot = -dot * weight * weight
            tl.store(WEIGHT_S + flat + start + rows, weight, mask=ok)
            tl.store(WEIGHT_Z + flat + start + rows, dot, mask=ok)
            df = df * weight[:, None] + dot[:, None] * z[None, :]
        else:
            df += z[None, :]
        dx = features_backward(x.to(tl.float32), f, df, MAP)
        store_block(DX + start64 * dx_row, dx, rows, dx_row, ok, columns, inside)


def _tokens(x, y, s, z, dx, dy, weights, feature_map, eps, tiles):
    """Launch over the tokens; without `weights` for a state, with them for an output."""
    batch, heads, length, dim = x.shape
    if tiles is None:
        tiles = tiles_for("backward", x, y.shape[-1], "plain" if weights is None else "output")
    parts, chunk = split(batch * heads, length, tiles.tokens, 1)
    unit, strides = in_units(x, y, dx, dy)
    _linear_backward_kernel[(parts, batch * heads)](
        x, y, s, z, dx, dy, *((None, None) if weights is None else weights), *strides,
        heads, length, chunk, eps,
        DK=dim, DKP=padded(dim), DV=y.shape[-1], BV=tiles.values, BN=tiles.tokens,
        MAP=feature_map, OUTPUT=weights is not None, UNIT=unit,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip


def state_backward(
    grad_s: torch.Tensor,
    grad_z: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    feature_map: str,
    tiles: Tiles | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dk and dv from the gradients of `state`, grad_s [B, H, K, V] and grad_z [B, H, K]."""
    factor = 1.0 / max(k.shape[2], 1)
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    # a mean before it is rounded, as in the forward
    s = (grad_s * factor).to(k.dtype).contiguous()
    _tokens(k, v, s, (grad_z * factor).contiguous(), dk, dv, None, feature_map, 0.0, tiles)
    return dk, dv


def output_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    s: torch.Tensor,
    z: torch.Tensor,
    feature_map: str,
    eps: float,
    tiles: Tiles | None = None,
    state_tiles: Tiles | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dq, ds [B, H, K, V] and dz [B, H, K] from the gradient of `output` [B, H, N, V]."""
    dq, grad = torch.empty_like(q), with_rows(grad)
    weights = (z.new_empty(q.shape[:3]), z.new_empty(q.shape[:3]))
    _tokens(
        q,
        grad,
        s.to(q.dtype).contiguous(),
        z.contiguous(),
        dq,
        grad,
        weights,
        feature_map,
        eps,
        tiles,
    )
    return dq, *state(q, grad, feature_map, weights, 1.0, state_tiles)


def variants() -> list[Variant]:
    """Every default of the kernel, of a state and of an output."""
    state_alone = {"OUTPUT": False, "WEIGHT_S": None, "WEIGHT_Z": None}
    return [
        *variants_of("linear_state_backward", "backward", _linear_backward_kernel, state_alone),
        *variants_of(
            "linear_output_backward", "backward", _linear_backward_kernel, {"OUTPUT": True}
        ),
    ]
