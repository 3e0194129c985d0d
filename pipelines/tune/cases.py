"""What there is to tune: every kernel with tiles, in the calls that operators make of it.

Attention over the grid is timed as a whole forward or backward call, with candidates for one of its
kernels; flash and linear attention kernel by kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from ...kernels.triton import (
    flash_backward,
    flash_forward,
    flash_tiles,
    linear_backward,
    linear_forward,
    linear_tiles,
    local_launch,
    local_tiles,
)
from ...kernels.triton.foveated_rings import NO_RINGS, Rings
from ...kernels.triton.near import Near, boxes, cut_windows, disc
from .case import Case, Run, Shape

__all__ = ["OPERATORS", "cases_of"]

# operator: what its queries see, on both sides of the radius at which the shipped tiles change
_SIGHTS = {
    "local": [(disc([radius]), NO_RINGS) for radius in (8, 16)],
    "foveated": [
        (disc([radius]), Rings(levels, 4, True, True)) for levels in (1, 2) for radius in (8, 16)
    ],
    "neighborhood": [
        (boxes((1, size, size), (1, 1, 1), (False,) * 3), NO_RINGS) for size in (13, 31)
    ],
    "window": [
        (cut_windows((1, size, size), (0, 0, 0), (1, 64, 64)), NO_RINGS) for size in (8, 16)
    ],
}
OPERATORS = (*_SIGHTS, "flash", "linear")


def cases_of(
    operator: str, architecture: str, dtype: torch.dtype, dim: int, shape: Shape
) -> Iterator[Case]:
    """The slots of one of `OPERATORS` at a head dim, and how each is timed.

    Nothing is allocated before a case is prepared: to list them needs no GPU.
    """
    if operator == "flash":
        return _flash(architecture, dtype, dim, shape)
    if operator == "linear":
        return _linear(architecture, dtype, dim, shape)
    return _local(_SIGHTS[operator], architecture, dtype, dim, shape)


def _local(
    sights: Sequence[tuple[Near, Rings]],
    architecture: str,
    dtype: torch.dtype,
    dim: int,
    shape: Shape,
) -> Iterator[Case]:
    for near, rings in sights:
        for kernel in ("forward", "queries", "keys"):
            slot = local_tiles.slot_of(kernel, architecture, dtype, dim, near, rings.levels)
            prepare = partial(_prepare_local, kernel, dtype, dim, shape, near, rings)
            yield Case(slot=slot, candidates=local_tiles.candidates(slot), prepare=prepare)


def _prepare_local(
    kernel: str, dtype: torch.dtype, dim: int, shape: Shape, near: Near, rings: Rings
) -> Run:
    q, k, v = (shape.random(shape.text + shape.num_tokens, dim, dtype) for _ in range(3))
    where = (shape.text, (1, *shape.grid), near, dim**-0.5, rings)
    if kernel == "forward":
        return lambda tiles: local_launch.forward(q, k, v, *where, tiles)
    out, lse = local_launch.forward(q, k, v, *where)
    saved = (torch.randn_like(out), torch.randn_like(lse), q, k, v, out, lse, *where)
    if kernel == "queries":
        return lambda tiles: local_launch.backward(*saved, query_tiles=tiles)
    return lambda tiles: local_launch.backward(*saved, key_tiles=tiles)


def _flash(architecture: str, dtype: torch.dtype, dim: int, shape: Shape) -> Iterator[Case]:
    for kernel in ("forward", "queries", "keys"):
        slot = flash_tiles.slot_of(kernel, architecture, dtype, dim)
        prepare = partial(_prepare_flash, kernel, dtype, dim, shape)
        yield Case(slot=slot, candidates=flash_tiles.candidates(slot), prepare=prepare)


def _prepare_flash(kernel: str, dtype: torch.dtype, dim: int, shape: Shape) -> Run:
    """Text queries over all tokens, as in joint layers."""
    q = shape.random(max(shape.text, 1), dim, dtype)
    k, v = (shape.random(shape.text + shape.num_tokens, dim, dtype) for _ in range(2))
    inputs, scale = (q, k, v, None), dim**-0.5
    if kernel == "forward":
        return lambda tiles: flash_forward.forward(*inputs, scale, tiles)
    out, lse = flash_forward.forward(*inputs, scale)
    grad, grad_lse = torch.randn_like(out), torch.randn_like(lse)
    queries = partial(flash_backward.queries, grad, grad_lse, *inputs, out, lse, scale)
    if kernel == "queries":
        return queries
    _, shift = queries()
    return partial(flash_backward.keys, grad, *inputs, lse, shift, scale)


def _linear(architecture: str, dtype: torch.dtype, dim: int, shape: Shape) -> Iterator[Case]:
    calls: dict[tuple[str, str], Callable[..., Run]] = {
        ("state", "plain"): _state,
        ("state", "weighted"): _weighted_state,
        ("output", "plain"): _output,
        ("backward", "plain"): _state_backward,
        ("backward", "output"): _output_backward,
    }
    for (kernel, variant), call in calls.items():
        slot = linear_tiles.slot_of(kernel, architecture, dtype, dim, dim, variant)
        prepare = partial(call, dtype, dim, shape)
        yield Case(slot=slot, candidates=linear_tiles.candidates(slot), prepare=prepare)


def _tokens(dtype: torch.dtype, dim: int, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    return shape.random(shape.num_tokens, dim, dtype), shape.random(shape.num_tokens, dim, dtype)


def _state(dtype: torch.dtype, dim: int, shape: Shape) -> Run:
    k, v = _tokens(dtype, dim, shape)
    return lambda tiles: linear_forward.state(k, v, "elu", tiles=tiles)


def _weighted_state(dtype: torch.dtype, dim: int, shape: Shape) -> Run:
    k, v = _tokens(dtype, dim, shape)
    weights = tuple(torch.rand(k.shape[:3], device=k.device) for _ in range(2))
    return lambda tiles: linear_forward.state(k, v, "elu", weights, tiles=tiles)


def _output(dtype: torch.dtype, dim: int, shape: Shape) -> Run:
    q, v = _tokens(dtype, dim, shape)
    state = linear_forward.state(q, v, "elu")
    return lambda tiles: (linear_forward.output(q, *state, "elu", 1e-4, tiles),)


def _state_backward(dtype: torch.dtype, dim: int, shape: Shape) -> Run:
    k, v = _tokens(dtype, dim, shape)
    grads = [torch.randn_like(x) for x in linear_forward.state(k, v, "elu")]
    return lambda tiles: linear_backward.state_backward(*grads, k, v, "elu", tiles)


def _output_backward(dtype: torch.dtype, dim: int, shape: Shape) -> Run:
    q, grad = _tokens(dtype, dim, shape)
    state = linear_forward.state(q, grad, "elu")
    return lambda tiles: linear_backward.output_backward(grad, q, *state, "elu", 1e-4, tiles)
