"""Processors that hold something trained for each layer, and how it gets beside that layer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn

from ..base import AttnProcessor
from .layers import LayerWeights, TrainedLayer, frozen_copy
from .projections import PROJECTIONS, Projected, bare

__all__ = ["TrainedAttnProcessor"]

_FULL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_SHOWN = 4  # differences that an error spells out


class TrainedAttnProcessor(AttnProcessor):
    """Base of the processors with trained parts; a subclass declares the field `weights`.

    Under `foveate.apply` every layer gets a processor of its own, `part` being what it has trained.
    Frozen parts are copied to the layer's device and dtype, and the copy goes when the operator is
    removed; parts that require gradients are shared, and moved to the layer's device.

    A subclass may declare `base`: the weights of the model from which `weights` were trained. They
    are then put on a model tuned from the same base as differences: own + weights - base.
    """

    weights: LayerWeights | None
    base: LayerWeights | None = None
    weights_class: ClassVar[type[LayerWeights]] = LayerWeights

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("weights", self.weights), ("base", self.base)):
            if value is not None and not isinstance(value, self.weights_class):
                raise ValueError(
                    f"{name} must be {self.weights_class.__name__}, got {type(value).__name__}"
                )
        names = None if self.weights is None else self.weights.names
        if self.base is not None and self.base.names != names:
            raise ValueError("base must have the layers of weights, in the same order")

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> TrainedAttnProcessor:
        """Move the trained parts, in place; the processor itself."""
        if self.weights is not None:
            self.weights.to(device=device, dtype=dtype)
        return self

    @property
    def is_trained(self) -> bool:
        return self.weights is not None

    def check_model(self, layers: Mapping[str, nn.Module]) -> None:
        """Raises ValueError where the weights are not of a model with these layers."""
        if self.weights is None:
            return
        names = self.weights.names
        found = [f"{name} is not in this model" for name in names if name not in layers]
        if self.weights.source is not None:
            found += [f"{name} is not in the weights" for name in layers if name not in names]
        for name, layer in zip(names, self.weights, strict=True):
            if name in layers:
                _refuse_quantised(name, layers[name], layer)
                found += layer.differences(name, layers[name])
        if found:
            shown = "; ".join(found[:_SHOWN])
            more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise ValueError(
                f"{self.weights.source or self.weights!r} is of another base model: {shown}{more}"
            )

    def bind(self, name: str, attn: nn.Module) -> AttnProcessor:
        """The processor of one layer, with its trained part.

        Raises NotImplementedError where the layer has none or cannot take it.
        """
        if self.weights is None:
            return self
        layer = self.weights.of(name)
        if layer is None:
            raise NotImplementedError("no trained weights for this layer")
        if layer.has_projections and getattr(attn, "fused_projections", False):
            raise NotImplementedError("the projections are fused; unfuse_qkv_projections() first")
        bound = copy.copy(self)
        base = None if self.base is None else self.base.of(name)
        bound.part = _beside(name, attn, layer, base)
        return bound

    @property
    def has_projections(self) -> bool:
        return self.part is not None and self.part.has_projections

    def project(self, attn: nn.Module) -> Projected:
        return Projected(attn, self.part)

    def require_part(self) -> TrainedLayer | None:
        """The trained part, None without weights. Raises NotImplementedError if none was bound."""
        if self.weights is not None and self.part is None:
            raise NotImplementedError(
                "trained weights belong to layers, which set_attn_processor does not name; "
                "use foveate.apply(pipe, processor)"
            )
        return self.part


def _refuse_quantised(name: str, attn: nn.Module, layer: TrainedLayer) -> None:
    if not layer.has_projections:
        return
    for part in PROJECTIONS[:3]:
        module = bare(getattr(attn, part, None))
        weight = getattr(module, "weight", None)
        if module is None or (type(weight) is nn.Parameter and weight.dtype in _FULL):
            continue
        kind = "no weight" if weight is None else f"{type(weight).__name__}, {weight.dtype}"
        raise ValueError(
            f"the base model is quantised: {name}.{part} is {type(module).__name__} ({kind}); "
            "trained projections need it in float32, float16 or bfloat16; "
            "without weights the processor runs on any model"
        )


def _beside(
    name: str, attn: nn.Module, layer: TrainedLayer, base: TrainedLayer | None
) -> TrainedLayer:
    """`layer` where `attn` can use it: shared while it is trained, a copy when it is frozen."""
    like = next((p for p in attn.parameters() if p.dtype in _FULL), None)
    # an offloaded module keeps its weights elsewhere and says meta
    device = None if like is None or like.is_meta else like.device
    if any(parameter.requires_grad for parameter in layer.parameters()):
        if base is not None:
            raise ValueError("weights that require gradients cannot be applied as differences")
        return layer.to(device=device)
    twin = frozen_copy(layer)
    if base is not None:
        _add_difference(name, attn, twin, base)
    return twin.to(device=device, dtype=None if like is None else like.dtype)


def _add_difference(name: str, attn: nn.Module, twin: TrainedLayer, base: TrainedLayer) -> None:
    """Each projection of `twin` becomes that of `attn` + twin - base, rounded once."""
    for key, official in base.named_parameters():
        part, *_ = path = key.split(".")
        own = attn.get_submodule(".".join(path[:-1]))
        own = getattr(bare(own), path[-1])
        if own.is_meta:
            raise ValueError(
                f"{name}.{part} is offloaded, so nothing can be added to it; "
                "apply first, then enable the offloading"
            )
        trained = twin.get_parameter(key)
        change = trained.to(own.device, torch.float32) - official.to(own.device, torch.float32)
        trained.data = own.detach() + change
