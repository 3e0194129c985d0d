"""The oracle of foveated attention: tokens and pooled cells as one list of keys, densely masked."""

from __future__ import annotations

import torch

from ..layout import TokenLayout
from .dense import masked_softmax

__all__ = ["reference_foveated"]


def reference_foveated(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: TokenLayout,
    radius: int,
    pool: int,
    levels: int,
    mass: bool,
    partition: bool,
    weight: torch.Tensor | None,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q, k, v [B, H, N, D]; returns out and lse. Context queries see tokens, never cells."""
    where = layout.coords(q.device)
    grid_k, grid_v = (x[:, :, layout.grid_slice].to(_wide(x)) for x in (k, v))
    near = _near(where, 1, pool, radius)
    if not partition:
        near = (where[:, None] - where).square().sum(-1) < radius**2
    bias = torch.zeros(layout.num_tokens, layout.num_tokens, dtype=_wide(q), device=q.device)
    bias[layout.grid_slice, layout.grid_slice] = _hide(~near)
    keys, values, biases = [k.to(_wide(k))], [v.to(_wide(v))], [bias]
    for level in range(1, levels + 1):
        member, first = _cells(where, pool**level)
        counts = member.sum(1)
        average = member.to(_wide(q)) / counts[:, None]
        if weight is not None:
            average = member * weight[where[:, 1] % pool, where[:, 2] % pool]
        keys.append(average.to(_wide(q)) @ grid_k)
        values.append(average.to(_wide(q)) @ grid_v)
        hidden = torch.zeros(len(where), len(first), dtype=torch.bool, device=q.device)
        if partition:
            hidden = _near(where, level, pool, radius)[:, first]
        if level < levels:
            hidden = hidden | ~_near(where, level + 1, pool, radius)[:, first]
        bias = torch.full(
            (layout.num_tokens, len(first)), -torch.inf, dtype=_wide(q), device=q.device
        )
        bias[layout.grid_slice] = _hide(hidden) + (counts.to(_wide(q)).log() if mass else 0)
        biases.append(bias)
    out, lse = masked_softmax(
        q.to(_wide(q)), torch.cat(keys, 2), torch.cat(values, 2), torch.cat(biases, 1), scale
    )
    return out.to(q.dtype), lse


def _cells(where: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells of side x side in each frame: membership [cells, tokens], each cell's first token."""
    corner = torch.stack((where[:, 0], where[:, 1] // side, where[:, 2] // side), 1)
    cells, index = corner.unique(dim=0, return_inverse=True)
    member = index == torch.arange(len(cells), device=where.device)[:, None]
    return member, member.int().argmax(1)


def _near(where: torch.Tensor, level: int, pool: int, radius: int) -> torch.Tensor:
    """Whether token j lies in the near field of token i at a level, [tokens, tokens]."""
    sides = torch.tensor((1, pool**level, pool**level), device=where.device)
    first = where // sides * sides
    last = first + sides - 1
    gap = torch.maximum(first[:, None] - last, first - last[:, None]).clamp_min(0)
    return gap.square().sum(-1) < (radius * pool ** (level - 1)) ** 2


def _hide(hidden: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(hidden, dtype=torch.float32).masked_fill(hidden, -torch.inf)


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
