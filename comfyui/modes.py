"""The operators a node offers, each with what `radius` and `pool` mean for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..kernels import (
    TokenLayout,
    agent_attention,
    agent_keys,
    foveated_attention,
    foveated_keys,
    local_attention,
    local_keys,
    neighborhood_attention,
    neighborhood_keys,
    window_attention,
    window_keys,
)
from ..kernels.counts import KeyCount

__all__ = ["MODES", "Mode"]


@dataclass(frozen=True, slots=True)
class Mode:
    """An operator, its arguments and its key count.

    options: (layout, radius, pool, layer number) -> keyword arguments of both functions.
    describe: (radius, pool) -> what these two mean, for reports.
    has_lse: whether it is a softmax over some of the keys, which joins with others.
    """

    operator: Callable[..., torch.Tensor]
    keys: Callable[..., KeyCount]
    options: Callable[[TokenLayout, int, int, int], dict[str, object]]
    describe: Callable[[int, int], str]
    has_lse: bool = True

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        layout: TokenLayout,
        radius: int,
        pool: int,
        layer: int,
        scale: float | None,
        return_lse: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The operator's output for q, k, v [B, H, N, D]; with `return_lse`, lse [B, H, N] too."""
        options = self.options(layout, radius, pool, layer)
        if return_lse:
            options["return_lse"] = True
        return self.operator(q, k, v, layout=layout, scale=scale, **options)

    def count_keys(self, layout: TokenLayout, *, radius: int, pool: int, layer: int) -> KeyCount:
        """Keys a grid query needs, and keys it is compared with."""
        return self.keys(layout, **self.options(layout, radius, pool, layer))


def _agents(layout: TokenLayout, radius: int, pool: int, layer: int) -> dict[str, object]:
    return {"agents": max(1, layout.num_grid // pool**2)}


def _window(layout: TokenLayout, radius: int, pool: int, layer: int) -> dict[str, object]:
    # windows of every second layer lie across the borders of the others', as in Swin
    return {"window_size": (2 * radius,) * 3, "shift": (radius * (layer % 2),) * 3}


MODES = {
    "foveated": Mode(
        foveated_attention,
        foveated_keys,
        lambda layout, radius, pool, layer: {"radius": radius, "pool": pool},
        lambda radius, pool: f"radius {radius}, cells of {pool} x {pool}",
    ),
    "local": Mode(
        local_attention,
        local_keys,
        lambda layout, radius, pool, layer: {"radius": radius},
        lambda radius, pool: f"radius {radius}",
    ),
    "neighborhood": Mode(
        neighborhood_attention,
        neighborhood_keys,
        lambda layout, radius, pool, layer: {"kernel_size": (2 * radius - 1,) * 3},
        lambda radius, pool: f"boxes with sides of {2 * radius - 1}",
    ),
    "window": Mode(
        window_attention,
        window_keys,
        _window,
        lambda radius, pool: f"windows with sides of {2 * radius}",
    ),
    "agent": Mode(
        agent_attention,
        agent_keys,
        _agents,
        lambda radius, pool: f"one agent for {pool} x {pool} tokens",
        has_lse=False,
    ),
}
