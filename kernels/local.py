"""Local attention: a grid token sees the context and the grid tokens nearer than a radius.

The window is CLEAR's disc (arXiv:2412.16112 and its official masks): dy^2 + dx^2 < radius^2, cut at
the border. On a grid of several frames it is the ball dt^2 + dy^2 + dx^2 < radius^2, or
(dt / frames_radius)^2 + (dy^2 + dx^2) / radius^2 < 1, an ellipsoid. Heads may have windows of
different size (MSWA, arXiv:2501.01039).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .branches import Band, Branch, answer, axis_order, from_axes, to_axes
from .counts import KeyCount, mean_within
from .inputs import check_impl, check_positive, check_tensors, why_not_attention
from .layout import TokenLayout
from .partial import partial_attention
from .reference import reference_local
from .tiles import Axis, concat, tile_shape, tiled_attention, visited, within

__all__ = [
    "check_frames_radius",
    "check_radius",
    "disc",
    "discs",
    "local_attention",
    "local_keys",
    "near_band",
]

# of the two radii; kernels square it in int32
_MOST_PRODUCT = 46340


def local_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    layout: TokenLayout,
    radius: int | Sequence[int] = 16,
    frames_radius: int | None = None,
    scale: float | None = None,
    impl: str | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attend each grid token of q, k, v [B, H, N, D] to the context and its disc; out [B, H, N, D].

    `radius` is in tokens, >= 1, one for all heads or one for each. `frames_radius` is in frames,
    >= 1, and makes the ball of a video an ellipsoid: 1 is the disc in the query's own frame, None
    the ball. Raises ValueError where their product passes 46340, whose square fits 32 bits. Context
    queries are dense over all keys. `return_lse` adds lse [B, H, N].
    """
    check_tensors(q, k, v, layout)
    check_radius(radius, q.shape[1])
    check_frames_radius(frames_radius, radius)
    impl = check_impl(impl, q, lambda: why_not_attention(q, k, v, scale))
    if impl == "torch":
        inner = (layout.grid_of(x) for x in (q, k, v))
        grid = discs(*inner, layout.grid, radius, scale, frames_radius)
        return answer(q, k, v, layout, [grid], scale, return_lse)
    if impl == "triton":
        from .triton.local import local_attention as triton_local

        out, lse = triton_local(q, k, v, layout, radius, frames_radius, scale)
    else:
        out, lse = reference_local(q, k, v, layout, radius, frames_radius, scale)
    return (out, lse) if return_lse else out


def check_radius(radius: int | Sequence[int], heads: int | None = None) -> None:
    """Raise ValueError unless radius is an integer >= 1, or one for each of the heads."""
    if not isinstance(radius, Sequence):
        check_positive("radius", radius)
        return
    if not radius or (heads is not None and len(radius) != heads):
        raise ValueError(f"radius must be one or one for each of {heads} heads, got {radius!r}")
    for value in radius:
        check_positive("radius", value)


def check_frames_radius(frames_radius: int | None, radius: int | Sequence[int]) -> None:
    """Raise ValueError unless frames_radius is None or an integer >= 1 that suits the radius."""
    if frames_radius is None:
        return
    check_positive("frames_radius", frames_radius)
    product = frames_radius * (radius if isinstance(radius, int) else max(radius))
    if product > _MOST_PRODUCT:
        raise ValueError(
            f"frames_radius * radius must be at most {_MOST_PRODUCT}, got {product}; "
            "a frames_radius far beyond the number of frames is not needed"
        )


def discs(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grid: tuple[int, int, int],
    radius: int | Sequence[int],
    scale: float | None,
    frames_radius: int | None = None,
    band: Band | None = None,
) -> Branch:
    """`disc` where heads may differ in radius: those of one radius go together.

    k and v are those of the `near_band` of the largest radius.
    """
    if isinstance(radius, int):
        return disc(q, k, v, grid, radius, scale, frames_radius, band)
    groups = {one: [h for h, r in enumerate(radius) if r == one] for one in dict.fromkeys(radius)}
    held = near_band(grid, max(groups), band, frames_radius)
    line = k.shape[2] // (held.stop - held.start)
    parts = []
    for one, heads in groups.items():
        near = near_band(grid, one, band, frames_radius)
        seen = slice((near.start - held.start) * line, (near.stop - held.start) * line)
        keys, values = (x[:, heads, seen] for x in (k, v))
        parts.append(disc(q[:, heads], keys, values, grid, one, scale, frames_radius, band))
    order = [head for heads in groups.values() for head in heads]
    back = [order.index(head) for head in range(len(order))]
    out, lse = concat(parts, 1)
    return out[:, back], lse[:, back]


def disc(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    grid: tuple[int, int, int],
    radius: int,
    scale: float | None,
    frames_radius: int | None = None,
    band: Band | None = None,
) -> Branch:
    """The branch of grid tokens over their discs: q, k, v, out [B, H, f*h*w, D] and lse.

    With a band, q are its tokens and k, v those of its `near_band`.
    """
    if _covers(grid, radius, frames_radius):
        return partial_attention(q, k, v, None, scale)
    dtype = torch.promote_types(q.dtype, torch.float32)
    reach, weights = _reach(grid, radius, frames_radius)

    def bias(queries: Sequence[torch.Tensor], keys: Sequence[torch.Tensor]) -> torch.Tensor:
        hidden = ~within(queries, keys, (1, 1, 1), reach, weights)
        return torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, -torch.inf)

    near = near_band(grid, radius, band, frames_radius)
    q = to_axes(q, grid, None if band is None else band.of(grid))
    k, v = (to_axes(x, grid, near.of(grid)) for x in (k, v))
    out, lse = tiled_attention(q, k, v, _axes(grid, radius, frames_radius, band), bias, scale)
    return from_axes(out, grid), from_axes(lse, grid)


def near_band(
    grid: tuple[int, int, int],
    radius: int,
    band: Band | None,
    frames_radius: int | None = None,
) -> Band:
    """The keys that the discs of a band's queries touch."""
    band = Band.whole(grid) if band is None else band
    axes = _axes(grid, radius, frames_radius, band)
    keys = axes[axis_order(grid).index(band.axis)].whole
    return Band(band.axis, keys.k0, keys.k1)


def local_keys(
    layout: TokenLayout, radius: int | Sequence[int], frames_radius: int | None = None
) -> KeyCount:
    """Keys per grid query of `local_attention`, the context included; mean over the heads."""
    check_radius(radius)
    check_frames_radius(frames_radius, radius)
    if not isinstance(radius, int):
        counts = [local_keys(layout, one, frames_radius) for one in radius]
        return KeyCount(*(sum(each) / len(counts) for each in zip(*counts, strict=True)))
    context, grid = layout.num_context, layout.grid
    reach, weights = _reach(grid, radius, frames_radius)
    sizes = [grid[axis] for axis in axis_order(grid)]
    needed = mean_within(sizes, (1, 1, 1), (1, 1, 1), reach, weights)
    seen = layout.num_grid
    if not _covers(grid, radius, frames_radius):
        seen = visited(_axes(grid, radius, frames_radius))
    return KeyCount(context + needed, context + seen)


def _reach(
    grid: tuple[int, int, int], radius: int, frames_radius: int | None
) -> tuple[int, list[int]]:
    """The window as sum(weight d^2) < reach^2 over distances along the axes, in `axis_order`."""
    if frames_radius is None:
        return radius, [1, 1, 1]
    weights = (radius**2, frames_radius**2, frames_radius**2)
    return radius * frames_radius, [weights[axis] for axis in axis_order(grid)]


def _covers(grid: tuple[int, int, int], radius: int, frames_radius: int | None) -> bool:
    reach, weights = _reach(grid, radius, frames_radius)
    sizes = (grid[axis] for axis in axis_order(grid))
    return sum(w * (size - 1) ** 2 for w, size in zip(weights, sizes, strict=True)) < reach**2


def _axes(
    grid: tuple[int, int, int],
    radius: int,
    frames_radius: int | None,
    band: Band | None = None,
) -> list[Axis]:
    radii = (radius if frames_radius is None else frames_radius, radius, radius)
    order = axis_order(grid)
    sizes = [grid[axis] for axis in order]
    limits = (Band.whole(grid) if band is None else band).limits(grid)
    return [
        Axis(size, tile, radii[axis] - 1, start=start, stop=stop)
        for axis, size, tile, (start, stop) in zip(
            order, sizes, tile_shape(sizes), limits, strict=True
        )
    ]
