"""Other people's kernels, where they are installed: what one calls them with, and their oracle.

Neighbourhood attention has a square window of fixed size that is moved inward at the border; its
side here is the disc's diameter, 2 radius - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module

import torch

from ...kernels.reference.dense import masked_softmax
from .candidate import Candidate, Prepared, exact_dense
from .case import Case

__all__ = ["peer_candidates"]


def peer_candidates(case: Case, radii: Sequence[int]) -> list[Candidate]:
    """Dense kernels once, neighbourhood attention for every radius."""
    found = [
        _dense(case, "sageattention", _sage),
        _dense(case, "flash_attn", _flash),
    ]
    for radius in radii:
        found += [_neighborhood(case, radius, name) for name in ("natten", "comfy_kitchen")]
    return found


def _dense(case: Case, package: str, prepare: Callable[..., Prepared]) -> Candidate:
    return Candidate(
        method="dense",
        impl=package,
        needed=case.layout.num_tokens,
        visited=case.layout.num_tokens,
        prepare=prepare,
        exact=exact_dense,
    )


def _sage(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Prepared:
    return Prepared(partial(import_module("sageattention").sageattn, tensor_layout="HND"))


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Prepared:
    attend = import_module("flash_attn").flash_attn_func
    return Prepared(attend, arrange=_heads_last, restore=_heads_last)


def _heads_last(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).contiguous()


def _neighborhood(case: Case, radius: int, package: str) -> Candidate:
    sides = [min(2 * radius - 1, size) for size in case.grid]
    return Candidate(
        method=f"neighbourhood {2 * radius - 1}x{2 * radius - 1}",
        impl=package,
        needed=sides[0] * sides[1],
        visited=None,
        prepare=partial(_prepare_na2d, case, sides, package),
        exact=partial(_exact_neighborhood, case.grid, sides),
    )


def _prepare_na2d(
    case: Case,
    sides: Sequence[int],
    package: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
) -> Prepared:
    if case.text:
        raise ValueError("takes no text tokens")
    na2d = import_module(package).na2d
    return Prepared(
        lambda q, k, v: na2d(q, k, v, kernel_size=tuple(sides)),
        arrange=lambda x: _heads_last(x).unflatten(1, case.grid),
        restore=lambda x: _heads_last(x.flatten(1, 2)),
    )


def _exact_neighborhood(
    grid: Sequence[int],
    sides: Sequence[int],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
) -> torch.Tensor:
    rows, columns = (_seen(*axis, q.device) for axis in zip(grid, sides, strict=True))
    seen = rows[:, None, :, None] & columns[None, :, None, :]
    seen = seen.flatten(2).flatten(0, 1)
    bias = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, -torch.inf)
    return masked_softmax(q, k, v, bias, None)[0]


def _seen(size: int, side: int, device: torch.device) -> torch.Tensor:
    """Which keys of one axis each query sees, [size, size]."""
    at = torch.arange(size, device=device)
    first = (at - side // 2).clamp(0, size - side)
    return (at >= first[:, None]) & (at < first[:, None] + side)
