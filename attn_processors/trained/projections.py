"""An attention module seen with other projections: what a stock processor is given in its place."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from ..hosts import heads_of
from .layers import TrainedLayer

__all__ = ["PROJECTIONS", "Projected", "Projections", "bare", "copied"]

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")


class Projections(TrainedLayer):
    """Trained projections of one attention layer; one left out is the model's own.

    to_q, to_k, to_v: replace the projections of the same names; to_out is [linear, dropout].
    heads: of the layer that they were trained for, where it is known.
    """

    def __init__(
        self,
        *,
        to_q: nn.Module | None = None,
        to_k: nn.Module | None = None,
        to_v: nn.Module | None = None,
        to_out: nn.ModuleList | None = None,
        heads: int | None = None,
    ) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = to_q, to_k, to_v, to_out
        self.heads = heads

    @property
    def has_projections(self) -> bool:
        return any(getattr(self, part) is not None for part in PROJECTIONS)

    def query(self, project: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """The queries of x, `project` being to_q."""
        return project(x)

    def key(self, project: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """The keys of x, `project` being to_k."""
        return project(x)

    def differences(self, name: str, attn: nn.Module) -> list[str]:
        found = [
            f"{name}.{part} is {_shape(_linear(attn, part))} in this model and "
            f"{_shape(_linear(self, part))} in the weights"
            for part in PROJECTIONS
            if getattr(self, part) is not None
            and _shape(_linear(attn, part)) != _shape(_linear(self, part))
        ]
        if self.heads is not None and self.heads != heads_of(attn):
            found.append(
                f"{name} has {heads_of(attn)} heads in this model and {self.heads} in the weights"
            )
        return found


class Projected:
    """The module `attn`, with the projections that a layer has trained.

    The stock processor calls it as it calls the module: norms, text projections, residual
    connection, rescaling and every projection that was not trained stay the module's own, and
    adapters (LoRA) on a projection stay on the trained one.
    """

    fused_projections = False  # the trained ones are apart

    def __init__(self, attn: nn.Module, layer: Projections) -> None:
        self._attn = attn
        self._layer = layer
        self._to_q, self._to_k, self.to_v = (
            _under_adapters(getattr(attn, part), getattr(layer, part)) for part in PROJECTIONS[:3]
        )
        if layer.to_out is not None:
            own, (linear, dropout) = attn.to_out, layer.to_out
            self.to_out = [_under_adapters(own[0], linear), dropout]

    def to_q(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's queries."""
        return self._layer.query(self._to_q, x)

    def to_k(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's keys."""
        return self._layer.key(self._to_k, x)

    def __getattr__(self, name: str) -> Any:
        # asked only for what is not set above
        return getattr(self._attn, name)


def copied(attn: nn.Module, parts: Collection[str]) -> dict[str, nn.Module]:
    """Copies of the projections of `attn` among `parts`, where it has them."""
    own = {part: getattr(attn, part, None) for part in PROJECTIONS if part in parts}
    return {part: copy.deepcopy(module) for part, module in own.items() if module is not None}


def bare(module: nn.Module) -> nn.Module:
    """`module` without the adapters that peft wraps around it."""
    return getattr(module, "base_layer", module)


def _under_adapters(own: nn.Module, trained: nn.Module | None) -> nn.Module:
    """`trained` in the place of `own`, or `own`; the adapters of `own` stay around it."""
    if trained is None or not hasattr(own, "base_layer"):
        return own if trained is None else trained
    # peft's wrapper calls its child base_layer and adds what the adapters say
    twin = copy.copy(own)
    twin._modules = {**own._modules, "base_layer": trained}
    return twin


def _linear(holder: nn.Module, part: str) -> nn.Module | None:
    module = getattr(holder, part, None)
    return module[0] if isinstance(module, nn.ModuleList) else module


def _shape(linear: nn.Module | None) -> tuple[int, ...] | None:
    return None if linear is None else tuple(bare(linear).weight.shape)
