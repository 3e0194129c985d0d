"""An output extrapolated over the timesteps of the last two computed ones (order 1)."""

from __future__ import annotations

import torch

from .stores import Kept, Store

__all__ = ["forecast", "recall"]


def recall(store: Store, kept: Kept) -> tuple[torch.Tensor | None, ...]:
    """The tensors that were kept."""
    return tuple(None if leaf is None else store.unpack(leaf) for leaf in kept)


def forecast(
    store: Store, recent: Kept, older: Kept, factor: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    """A1 + factor (A1 - A2) of the recent A1 and the older A2, with factor (t - t1) / (t1 - t2)."""
    return tuple(
        None if x is None else x + factor.to(x.dtype) * (x - y)
        for x, y in zip(recall(store, recent), recall(store, older), strict=True)
    )
