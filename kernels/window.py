"""Window attention: a grid token sees the context and the grid tokens of its own window.

Windows tile the grid; `shift` moves their borders. Those that leave the grid are cut, which is what
Swin's mask does to its cyclic shift (arXiv:2103.14030), or with `wrap` joined with what is cut at
the other end, which is HiDiffusion's shift (arXiv:2311.17528).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import NamedTuple

import torch

from .branches import Branch, answer
from .counts import KeyCount
from .inputs import check_axes, check_impl, check_tensors, why_not_attention
from .layout import TokenLayout
from .partial import partial_attention
from .reference import reference_window

__all__ = ["window_attention", "window_keys"]

Sizes = tuple[int, int, int]

# [B, H, windows and their tokens of each axis, D] <-> [B, H, windows, tokens, D], flattened
_APART = (0, 1, 2, 4, 6, 3, 5, 7, 8)
_TOGETHER = (0, 1, 2, 5, 3, 6, 4, 7, 8)


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    layout: TokenLayout,
    window_size: Sizes = (1, 8, 8),
    shift: Sizes = (0, 0, 0),
    wrap: bool = False,
    scale: float | None = None,
    impl: str | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attend grid tokens of q, k, v [B, H, N, D] to the context and their window; out [B, H, N, D].

    `window_size` and `shift` are over (frames, rows, columns), in tokens: windows begin at `shift`
    and every `window_size` from there. An axis that fits one window is not shifted. Context queries
    are dense over all keys. `return_lse` adds lse [B, H, N].
    """
    check_tensors(q, k, v, layout)
    check_windows(window_size, shift)
    impl = check_impl(impl, q, lambda: why_not_attention(q, k, v, scale))
    if impl == "torch":
        grid = (layout.grid_of(x) for x in (q, k, v))
        windows = _windows(*grid, layout.grid, window_size, shift, wrap, scale)
        return answer(q, k, v, layout, [windows], scale, return_lse)
    if impl == "triton":
        from .triton.window import window_attention as attend
    else:
        attend = reference_window
    out, lse = attend(q, k, v, layout, window_size, shift, wrap, scale)
    return (out, lse) if return_lse else out


def window_keys(
    layout: TokenLayout, window_size: Sizes, shift: Sizes = (0, 0, 0), wrap: bool = False
) -> KeyCount:
    """Keys per grid query of `window_attention`, the context included: no other is visited."""
    check_windows(window_size, shift)
    cuts, _ = _plan(layout.grid, window_size, shift, wrap)
    pairs = prod(sum(run.count * run.length**2 for run in axis) for axis in cuts)
    keys = layout.num_context + pairs / layout.num_grid
    return KeyCount(keys, keys)


def check_windows(window_size: Sizes, shift: Sizes) -> None:
    """Raise ValueError unless both are over (frames, rows, columns)."""
    check_axes("window_size", window_size)
    check_axes("shift", shift, least=0)


class _Run(NamedTuple):
    """`count` windows of `length` tokens of one axis, from token `start`."""

    start: int
    count: int
    length: int

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.start + self.count * self.length)


def _runs(size: int, window: int, shift: int) -> Iterator[_Run]:
    """The windows of an axis: what is left before the first whole one, these, and the rest."""
    count = (size - shift) // window
    stop = shift + count * window
    if shift:
        yield _Run(0, 1, shift)
    if count:
        yield _Run(shift, count, window)
    if stop < size:
        yield _Run(stop, 1, size - stop)


def _plan(
    grid: Sizes, window_size: Sizes, shift: Sizes, wrap: bool
) -> tuple[list[list[_Run]], list[int]]:
    """The windows of each axis, and how far each is rolled before."""
    axes = list(zip(grid, window_size, shift, strict=True))
    moves = [0 if window >= size else move % window for size, window, move in axes]
    cut = [0] * 3 if wrap else moves
    runs = [list(_runs(*axis)) for axis in zip(grid, window_size, cut, strict=True)]
    return runs, moves if wrap else [0] * 3


def _windows(q, k, v, grid, window_size, shift, wrap, scale) -> Branch:
    """The branch of grid tokens over their windows: q, k, v, out [B, H, f*h*w, D] and lse."""
    axes, rolls = _plan(grid, window_size, shift, wrap)
    q, k, v = (_roll(x.unflatten(2, grid), [-roll for roll in rolls]) for x in (q, k, v))
    out = torch.empty_like(q)
    lse = q.new_empty(*q.shape[:-1], 1, dtype=torch.promote_types(q.dtype, torch.float32))
    for runs in product(*axes):
        part = (slice(None), slice(None), *(run.tokens for run in runs))
        windows = (_apart(x[part], runs) for x in (q, k, v))
        some, its_lse = partial_attention(*windows, None, scale)
        out[part] = _together(some, q.shape[:2], runs)
        lse[part] = _together(its_lse.unsqueeze(-1), q.shape[:2], runs)
    out, lse = _roll(out, rolls), _roll(lse, rolls)
    return out.flatten(2, 4), lse.flatten(2, 4).squeeze(-1)


def _roll(x: torch.Tensor, shifts: Sequence[int]) -> torch.Tensor:
    return x.roll(tuple(shifts), (2, 3, 4)) if any(shifts) else x


def _apart(x: torch.Tensor, runs: Sequence[_Run]) -> torch.Tensor:
    """x [B, H, f, h, w, D] as windows [B*H, windows, tokens, D]."""
    for dim in (4, 3, 2):
        run = runs[dim - 2]
        x = x.unflatten(dim, (run.count, run.length))
    return x.permute(_APART).flatten(5, 7).flatten(2, 4).flatten(0, 1)


def _together(x: torch.Tensor, outer: Sequence[int], runs: Sequence[_Run]) -> torch.Tensor:
    """Undoes `_apart`; `outer` is (B, H)."""
    counts, lengths = zip(*((run.count, run.length) for run in runs), strict=True)
    x = x.reshape(*outer, *counts, *lengths, x.shape[-1]).permute(_TOGETHER)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
