"""Linear attention: every image query reads one small state that sums up all keys and values.

LinFusion (arXiv:2409.02097) with its trained projections, other feature maps and forms, and the
softmax window with a linear far field.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from ..kernels import hybrid_attention, linear_attention, local_keys
from ..kernels.counts import KeyCount
from ..kernels.feature_maps import FeatureMap, FeatureMaps, map_pair
from ..kernels.inputs import check_positive
from ..kernels.layout import TokenLayout
from ..kernels.linear import check_linear
from .base import AttnProcessor
from .linear_weights import LinearLayer, LinearWeights
from .projected import Projected, check_projections

__all__ = ["LinearAttnProcessor"]


@dataclass(kw_only=True, eq=False, repr=False)
class LinearAttnProcessor(AttnProcessor):
    """Image queries read the state of all keys, or a window and the state of the rest.

    Without trained weights, linear attention is close to the mean of the values: distil first.

    feature_map: "elu", "relu", "softmax", "focused", "hedgehog", with `affine` also "identity", a
        callable [B, H, n, D] -> [B, H, n, D'], or a pair of them for queries and keys.
    eps: added to the denominator, a mean over keys.
    affine: InLine's form, rows that sum to 1 without a division.
    rank_augment: RALA's weights of the keys.
    radius: attend to the disc of this radius and all text by softmax, and to the rest linearly.
    gate: weight of that rest; at 0 the output is that of LocalAttnProcessor.
    weights: trained parts by layer; layers that have none stay dense, and the report says so.
    impl: "reference", "torch" or "triton"; None chooses.
    """

    feature_map: FeatureMaps = "elu"
    eps: float = 1e-4
    affine: bool = False
    rank_augment: bool = False
    radius: int | None = None
    gate: float = 0.0
    weights: LinearWeights | None = None
    impl: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._layer: LinearLayer | None = None
        check_linear(self.feature_map, self.eps, self.affine)
        if self.gate < 0:
            raise ValueError(f"gate must be >= 0, got {self.gate!r}")
        if self.weights is not None and not isinstance(self.weights, LinearWeights):
            raise ValueError(f"weights must be LinearWeights, got {type(self.weights).__name__}")
        if self.radius is None:
            return
        check_positive("radius", self.radius)
        if self.affine or self.rank_augment:
            raise ValueError("a window (radius) goes with neither affine nor rank_augment")

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> LinearAttnProcessor:
        """Move the trained parts, in place; the processor itself."""
        for part in (self.weights, *map_pair(self.feature_map)):
            if isinstance(part, nn.Module):
                part.to(device=device, dtype=dtype)
        return self

    def bind(self, name: str, attn: nn.Module) -> LinearAttnProcessor:
        """The processor of one layer, sharing the trained weights.

        Raises NotImplementedError where the layer has none or cannot take them, ValueError where
        they are of another size.
        """
        if self.weights is None:
            return self
        layer = self.weights.of(name)
        if layer is None:
            raise NotImplementedError("no trained weights for this layer")
        if layer.has_projections:
            check_projections(name, attn, layer)
        bound = copy.copy(self)
        bound._layer = layer
        return bound

    @property
    def has_projections(self) -> bool:
        return self._layer is not None and self._layer.has_projections

    def project(self, attn: nn.Module) -> Projected:
        return Projected(attn, self._layer)

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        layout: TokenLayout,
        scale: float | None,
    ) -> torch.Tensor:
        if self.weights is not None and self._layer is None:
            raise NotImplementedError(
                "trained weights belong to layers, which set_attn_processor does not name; "
                "use foveate.apply(pipe, processor)"
            )
        options = {"layout": layout, "feature_map": self._maps(), "scale": scale, "impl": self.impl}
        if self.radius is None:
            form = {"eps": self.eps, "affine": self.affine, "rank_augment": self.rank_augment}
            out = linear_attention(q, k, v, **options, **form)
        else:
            out = hybrid_attention(q, k, v, **options, radius=self.radius, gate=self._gate())
        if self._layer is None or self._layer.residual is None:
            return out
        grid = layout.grid_of(out) + self._layer.residual(v, layout).to(out.dtype)
        return grid if layout.num_context == 0 else layout.join(grid, layout.context_of(out))

    def count_keys(self, layout: TokenLayout) -> KeyCount:
        """Of the window; no key is visited for the state."""
        return KeyCount(0, 0) if self.radius is None else local_keys(layout, self.radius)

    def _maps(self) -> tuple[FeatureMap, FeatureMap]:
        map_q, map_k = map_pair(self.feature_map)
        if self._layer is not None:
            map_q = map_q if self._layer.map_q is None else self._layer.map_q
            map_k = map_k if self._layer.map_k is None else self._layer.map_k
        return map_q, map_k

    def _gate(self) -> float | torch.Tensor:
        if self._layer is None or self._layer.gate is None:
            return self.gate
        return self._layer.gate
