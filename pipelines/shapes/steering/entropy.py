"""Mean entropy of the attention between pixels, in nats, as a modulation leaves it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ....attn_processors.modulation import Reader, Site

__all__ = ["Entropy"]


class Entropy(Reader):
    """Reads whole maps of picture tokens, so for small pictures only."""

    kinds = frozenset({"self", "joint"})

    def __init__(self) -> None:
        super().__init__(branch="both")

    def new_store(self) -> EntropyStore:
        return EntropyStore()

    def read(
        self, site: Site, mass: Callable[[torch.Tensor], torch.Tensor], store: EntropyStore
    ) -> None:
        columns = torch.eye(site.num_keys, device=site.device, dtype=site.dtype)
        pixels = site.layout.grid_slice
        weights = mass(columns[:, pixels])[:, :, pixels]
        weights = weights / weights.sum(-1, keepdim=True)
        store.values.append(float(torch.special.entr(weights).sum(-1).mean()))


class EntropyStore:
    """One mean a call, over rows, heads and pixels."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.values: list[float] = []
