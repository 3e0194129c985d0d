"""Trained modules of attention layers, under the names of these layers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

__all__ = ["LayerWeights"]


class LayerWeights(nn.ModuleList):
    """Trained layers under the names of the model's attention modules."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__(layers.values())
        self.names = tuple(layers)

    def of(self, name: str) -> nn.Module | None:
        """The layer of the attention module `name`."""
        return self[self.names.index(name)] if name in self.names else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} layers)"
