"""Local attention by Triton: launches the kernels over the grid and, for context queries, flash.

Context queries see every token; grid queries see the context and their disc. All tensors are
[B, H, N, D] in sequence order, the grid's tokens from `start` on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from . import flash_forward
from .launch import in_units
from .local_forward import local_forward_kernel
from .local_tiles import LocalTiles, architecture, canonical, tiles_for
from .rows import head_parts
from .softmax import LOG2E

__all__ = ["context_of", "forward", "why_not"]


def why_not(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> str:
    """Why the kernels cannot take this call; empty when they can."""
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"{q.dtype}, the kernels take float16, bfloat16 and float32"
    if q.shape[-1] > 160:
        return f"head dim {q.shape[-1]}, the kernels take up to 160"
    if any(x.stride(-1) != 1 for x in (q, k, v)):
        return "the head dim of q, k or v is not contiguous"
    if scale is not None and scale <= 0:
        return f"scale {scale}, the kernels take positive ones"
    return _device_lacks(q.device.type, q.device.index)


@torch.compiler.assume_constant_result
def _device_lacks(kind: str, index: int | None) -> str:
    if kind == "cpu":
        return "" if triton.knobs.runtime.interpret else "the tensors are on the CPU"
    if kind != "cuda":
        return f"no kernels for device {kind}"
    if torch.version.hip is None and torch.cuda.get_device_capability(index) < (8, 0):
        return "compute capability below 8.0, which has no bfloat16 tensor cores"
    return ""


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: int,
    grid: Sequence[int],
    radius: int,
    scale: float,
    tiles: LocalTiles | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out [B, H, N, D], which lies as [B, N, H, D], and lse [B, H, N]."""
    batch, heads, length, dim = q.shape
    grid = canonical(grid)
    stop = start + grid[0] * grid[1] * grid[2]
    out = q.new_empty(batch, length, heads, dim).transpose(1, 2)
    lse = q.new_empty(batch, heads, length, dtype=torch.float32)
    if tiles is None:
        tiles = tiles_for(architecture(q.device), q.dtype, dim, radius, grid)
    context = [context_of(x, start, stop) for x in (k, v)]
    inner = [x[:, :, start:stop] for x in (q, k, v)]
    _launch(*inner, *context, out[:, :, start:stop], lse[:, :, start:], grid, radius, scale, tiles)
    if stop - start < length:
        some, some_lse = flash_forward.forward(context_of(q, start, stop), k, v, None, scale)
        put_context(out, some, start, stop)
        put_context(lse, some_lse, start, stop)
    return out, lse


def _launch(q, k, v, context_k, context_v, out, lse, grid, radius, scale, tiles):
    batch, heads, _, dim = q.shape
    frames, height, width = grid
    context = context_k.shape[2]
    unit, strides = in_units(q, k, v, context_k, context_v, out)
    tma = tiles.tma and _fits_descriptors(k, v, context_k, context_v)
    keys = (k, v, context_k, context_v)
    if tma:
        keys = (*(_boxes(x, grid, tiles) for x in (k, v)), *(_blocks(x, tiles) for x in keys[2:]))
    d0, d1 = head_parts(dim)
    count = frames * triton.cdiv(height, tiles.height) * triton.cdiv(width, tiles.width)
    local_forward_kernel[(batch * heads * count,)](
        q, *keys, out, lse, *strides, lse.stride(1),
        heads, count, *grid, radius - 1, radius, context, scale * LOG2E,
        D=dim, D0=d0, D1=d1, TH=tiles.height, TW=tiles.width,
        KH=tiles.key_height, KW=tiles.key_width, BC=tiles.context,
        CELL=1, FRAMES=frames > 1, CONTEXT=context > 0, TAIL=context % tiles.context != 0,
        TMA=tma, UNIT=unit, I64=needs_int64(q, k, v, out),
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip


def needs_int64(*tensors: torch.Tensor) -> bool:
    """Whether an offset within one batch entry and head passes 2^31."""
    return any((x.shape[2] - 1) * x.stride(2) + x.shape[3] >= 1 << 31 for x in tensors)


def context_of(x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """The rows of x [B, H, N, ...] outside start to stop, a view where they lie on one side."""
    if start == 0:
        return x[:, :, stop:]
    if stop == x.shape[2]:
        return x[:, :, :start]
    return torch.cat((x[:, :, :start], x[:, :, stop:]), 2)


def put_context(x: torch.Tensor, rows: torch.Tensor, start: int, stop: int) -> None:
    """Writes what `context_of` reads."""
    x[:, :, :start] = rows[:, :, :start]
    x[:, :, stop:] = rows[:, :, start:]


def _fits_descriptors(*tensors: torch.Tensor) -> bool:
    """Whether the hardware can copy boxes of them: 16-byte steps, no split head dim."""
    dim, size = tensors[0].shape[-1], tensors[0].element_size()
    return head_parts(dim) == (dim, 0) and all(
        x.data_ptr() % 16 == 0 and all(step * size % 16 == 0 for step in x.stride()[:3])
        for x in tensors
    )


def _boxes(x, grid, tiles):
    frames, height, width = grid
    batch, heads, row = x.stride()[:3]
    shape = [*x.shape[:2], frames * height, width, x.shape[3]]
    block = [1, 1, tiles.key_height, tiles.key_width, x.shape[3]]
    return TensorDescriptor(x, shape, [batch, heads, width * row, row, 1], block)


def _blocks(x, tiles):
    if x.shape[2] == 0:
        return x
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, tiles.context, x.shape[3]])
