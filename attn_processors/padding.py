"""Attention where some text tokens are padding that the model masks.

The operator runs on what is not padding, sample by sample where they differ, which is exact for
every operator. Padding attends densely to the rest; the model reads none of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from ..kernels.layout import TokenLayout
from .layouts import Family

__all__ = ["Padded", "attend_valid", "padded_layout"]

# (q, k, v, layout=, scale=) -> output, all [B, H, N, D]
AttendLayout = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Padded:
    """Layout of each sample of a call without its padding, and where that starts.

    groups: the samples of each layout and start, found before the forward and outside of any graph.
    """

    layouts: tuple[TokenLayout, ...]
    starts: tuple[int, ...]
    groups: tuple[tuple[TokenLayout, int, tuple[int, ...]], ...] = field(init=False)

    def __post_init__(self) -> None:
        found: dict[tuple[TokenLayout, int], list[int]] = {}
        for index, key in enumerate(zip(self.layouts, self.starts, strict=True)):
            found.setdefault(key, []).append(index)
        groups = tuple((*key, tuple(samples)) for key, samples in found.items())
        object.__setattr__(self, "groups", groups)


def padded_layout(family: Family, full: TokenLayout, valid_text: tuple[int, ...]) -> Padded:
    """What is left of `full` where only `valid_text` text tokens of each sample count."""
    layouts = tuple(
        TokenLayout(text=n, grid=full.grid, text_first=full.text_first, extra=full.extra)
        for n in valid_text
    )
    if family.padding_last:
        return Padded(layouts, tuple(layout.num_tokens for layout in layouts))
    before = 0 if full.text_first else full.num_grid
    return Padded(layouts, tuple(before + n for n in valid_text))


def attend_valid(
    attend: AttendLayout,
    padded: Padded,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float | None,
) -> torch.Tensor:
    """`attend` on the tokens of q, k, v [B, H, N, D] that are not padding."""
    if len(padded.groups) == 1:
        ((layout, start, _),) = padded.groups
        return _attend_group(attend, layout, start, q, k, v, scale)
    out = torch.empty_like(q)
    for layout, start, samples in padded.groups:
        index = torch.tensor(samples, device=q.device)
        part = _attend_group(attend, layout, start, *(x[index] for x in (q, k, v)), scale)
        out = out.index_copy(0, index, part)
    return out


def _attend_group(
    attend: AttendLayout,
    layout: TokenLayout,
    start: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float | None,
) -> torch.Tensor:
    stop = start + q.shape[2] - layout.num_tokens
    if start == stop:
        return attend(q, k, v, layout=layout, scale=scale)
    k, v = (torch.cat((x[:, :, :start], x[:, :, stop:]), 2) for x in (k, v))
    valid = torch.cat((q[:, :, :start], q[:, :, stop:]), 2)
    out = attend(valid, k, v, layout=layout, scale=scale)
    padding = F.scaled_dot_product_attention(q[:, :, start:stop], k, v, scale=scale)
    return torch.cat((out[:, :, :start], padding, out[:, :, start:]), 2)
