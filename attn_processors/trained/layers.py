"""Trained modules of attention layers, under the names of these layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

__all__ = ["Follower", "LayerWeights", "TrainedLayer", "frozen_copy"]


class TrainedLayer(nn.Module):
    """What is trained for one attention layer.

    A subclass names in `PARTS` what its `of_parts(attn, parts)` makes: these parts as they are
    before training, on the device and in the dtype of the module `attn`.
    """

    PARTS: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def check_parts(cls, parts: Collection[str]) -> None:
        """Raises ValueError for a name that is not in PARTS."""
        strange = [part for part in parts if part not in cls.PARTS]
        if strange:
            raise ValueError(
                f"{cls.__name__} has no part {', '.join(strange)}; it has {', '.join(cls.PARTS)}"
            )

    @property
    def has_projections(self) -> bool:
        """Whether the layer computes its queries, keys, values or output itself."""
        return False

    def differences(self, name: str, attn: nn.Module) -> list[str]:
        """In what `attn`, the module called `name`, is not the one this was trained for."""
        return []


class LayerWeights(nn.ModuleList):
    """Trained layers under the names of the model's attention modules.

    source: the file they were read from. Such weights are of one base model, layer for layer;
        without a source they may be of some of its layers only.
    """

    def __init__(self, layers: Mapping[str, TrainedLayer], *, source: str | None = None) -> None:
        super().__init__(layers.values())
        self.names = tuple(layers)
        self.source = source

    def of(self, name: str) -> TrainedLayer | None:
        """The layer of the attention module `name`."""
        return self[self.names.index(name)] if name in self.names else None

    def model_keys(self) -> dict[str, str]:
        """Names in `state_dict` -> the same under the names of the model's modules."""
        split = {name: name.split(".", 1) for name in self.state_dict()}
        return {name: f"{self.names[int(index)]}.{part}" for name, (index, part) in split.items()}

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take these tensors as they are, by the names of `state_dict`, frozen."""
        self.load_state_dict(tensors, assign=True)
        self.requires_grad_(False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} layers)"


class Follower(nn.Module):
    """Hung on a module, moves `part` wherever that module is moved, without being in its state."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self._parts = (part,)  # not a child: absent from parameters() and state_dict()

    def _apply(self, fn: Any, recurse: bool = True) -> Follower:
        super()._apply(fn, recurse)
        for part in self._parts:
            part._apply(fn, recurse)
        return self


def frozen_copy(
    module: nn.Module, make: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.detach
) -> nn.Module:
    """A copy with `make` of each parameter, which shares the memory unless `make` takes new."""
    memo = {id(p): nn.Parameter(make(p), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, memo)
