"""The tensors of one softmax call, or of some of its rows and heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .plan import GroupedKeys

__all__ = ["Call", "put_back", "take"]

# what diffusers adds to the logits of padded text
_HIDDEN = -10000.0


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """q [b, H, N, D], k, v [b, H, M, D]; padding [b, M] is True at keys that the model hides."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    padding: torch.Tensor | None
    scale: float | None

    def rows(self, index: list[int]) -> Call:
        """Some rows of the batch."""
        q, k, v = (take(x, index, 0) for x in (self.q, self.k, self.v))
        padding = None if self.padding is None else take(self.padding, index, 0)
        return replace(self, q=q, k=k, v=v, padding=padding)

    def heads(self, index: list[int]) -> Call:
        """Some of the heads."""
        q, k, v = (take(x, index, 1) for x in (self.q, self.k, self.v))
        return replace(self, q=q, k=k, v=v)

    @property
    def mask(self) -> torch.Tensor | None:
        """The bias that the stock call carries, [b, 1, 1, M]."""
        if self.padding is None:
            return None
        return self.padding.to(self.q)[:, None, None] * _HIDDEN

    @property
    def grouped_padding(self) -> GroupedKeys | None:
        """The padding as keys that no query sees: one group where all rows agree."""
        if self.padding is None:
            return None
        is_same = bool((self.padding == self.padding[:1]).all())
        hidden = self.padding[:1] if is_same else self.padding
        dtype = torch.promote_types(self.q.dtype, torch.float32)
        bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        groups = torch.arange(len(hidden), device=hidden.device)[:, None]
        return GroupedKeys(
            groups=groups.expand(-1, self.q.shape[2]),
            bias=bias.masked_fill(hidden, -torch.inf),
        )


def take(x: torch.Tensor, index: list[int], dim: int) -> torch.Tensor:
    """These indices; a view where they follow each other."""
    if index == list(range(index[0], index[-1] + 1)):
        return x.narrow(dim, index[0], len(index))
    return x.index_select(dim, torch.tensor(index, device=x.device))


def put_back(parts: Sequence[tuple[list[int], torch.Tensor]], dim: int) -> torch.Tensor:
    """Undoes `take`: parts as (indices, tensor)."""
    if len(parts) == 1:
        return parts[0][1]
    order = torch.tensor([i for index, _ in parts for i in index])
    joined = torch.cat([part for _, part in parts], dim)
    return joined.index_select(dim, order.argsort().to(joined.device))
