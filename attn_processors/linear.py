"""Linear attention: every image query reads one small state that sums up all keys and values.

LinFusion (arXiv:2409.02097) with its trained projections, other feature maps and forms, and the
softmax window with a linear far field.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from ..kernels import hybrid_attention, linear_attention, local_keys
from ..kernels.counts import KeyCount
from ..kernels.feature_maps import FeatureMap, FeatureMaps, map_pair
from ..kernels.inputs import check_flag, check_number, check_positive
from ..kernels.layout import TokenLayout
from ..kernels.linear import check_linear
from .trained.base import TrainedAttnProcessor
from .trained.linear import LinearWeights
from .trained.linfusion import read_linfusion
from .trained.official import read_base

__all__ = ["LinearAttnProcessor"]


@dataclass(kw_only=True, eq=False, repr=False)
class LinearAttnProcessor(TrainedAttnProcessor):
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
    base: the weights that those were trained from, to put them on a model tuned from the same base.
    impl: "reference", "torch" or "triton"; None chooses.
    """

    feature_map: FeatureMaps = "elu"
    eps: float = 1e-4
    affine: bool = False
    rank_augment: bool = False
    radius: int | None = None
    gate: float = 0.0
    weights: LinearWeights | None = None
    base: LinearWeights | None = None
    impl: str | None = None
    weights_class: ClassVar[type[LinearWeights]] = LinearWeights

    def __post_init__(self) -> None:
        super().__post_init__()
        check_linear(self.feature_map, self.eps, self.affine)
        check_number("gate", self.gate, least=0)
        check_flag("affine", self.affine)
        check_flag("rank_augment", self.rank_augment)
        if self.radius is None:
            return
        check_positive("radius", self.radius)
        if self.affine or self.rank_augment:
            raise ValueError("a window (radius) goes with neither affine nor rank_augment")

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        base: str | Path | None = None,
        impl: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> LinearAttnProcessor:
        """LinFusion with published weights, for `foveate.apply`.

        source: folder with config.json and the safetensors file, that file, or repository of the
            hub such as "Yuanshi/LinFusion-XL".
        base: the official model that those weights were trained from (file, folder, repository):
            then they are put on a model tuned from it as differences, own + weights - base. Without
            it they replace the model's own.
        revision: of the repository.
        local_files_only: look in the hub's cache alone, as HF_HUB_OFFLINE says for everything.

        Raises FileNotFoundError, or ValueError for a file with other keys or shapes, or corrupt.
        """
        weights = read_linfusion(source, revision=revision, local_files_only=local_files_only)
        official = None
        if base is not None:
            official = read_base(base, weights, local_files_only=local_files_only)
        return cls(weights=weights, base=official, impl=impl)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> LinearAttnProcessor:
        """Move the trained parts, in place; the processor itself."""
        for part in map_pair(self.feature_map):
            if isinstance(part, nn.Module):
                part.to(device=device, dtype=dtype)
        return super().to(device, dtype)

    @property
    def carries(self) -> frozenset[str]:
        # linear in the values, and without logits
        return frozenset({"values"})

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        layout: TokenLayout,
        scale: float | None,
    ) -> torch.Tensor:
        self.require_part()
        options = {"layout": layout, "feature_map": self._maps(), "scale": scale, "impl": self.impl}
        if self.radius is None:
            form = {"eps": self.eps, "affine": self.affine, "rank_augment": self.rank_augment}
            out = linear_attention(q, k, v, **options, **form)
        else:
            out = hybrid_attention(q, k, v, **options, radius=self.radius, gate=self._gate())
        if self.part is None or self.part.residual is None:
            return out
        grid = layout.grid_of(out) + self.part.residual(v, layout).to(out.dtype)
        return grid if layout.num_context == 0 else layout.join(grid, layout.context_of(out))

    def count_keys(self, layout: TokenLayout) -> KeyCount:
        """Of the window; no key is visited for the state."""
        return KeyCount(0, 0) if self.radius is None else local_keys(layout, self.radius)

    def _maps(self) -> tuple[FeatureMap, FeatureMap]:
        map_q, map_k = map_pair(self.feature_map)
        if self.part is not None:
            map_q = map_q if self.part.map_q is None else self.part.map_q
            map_k = map_k if self.part.map_k is None else self.part.map_k
        return map_q, map_k

    def _gate(self) -> float | torch.Tensor:
        if self.part is None or self.part.gate is None:
            return self.gate
        return self.part.gate
