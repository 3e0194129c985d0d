"""Local attention: an image query sees all text and the image keys inside a disc around it.

CLEAR, arXiv:2412.16112.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from ..kernels import local_attention, local_keys
from ..kernels.counts import KeyCount
from ..kernels.inputs import check_positive
from ..kernels.layout import TokenLayout
from ..kernels.local import check_frames_radius, check_radius
from ..kernels.sequence import Exchange, Shard, sequence_local_attention
from .base import EVERY_EDIT, AttnProcessor
from .foveated import FoveatedAttnProcessor
from .hosts import heads_of
from .proportional import proportional_scale
from .sequence import check_split
from .trained.base import TrainedAttnProcessor
from .trained.clear import read_clear
from .trained.local import LocalWeights
from .trained.official import read_base

__all__ = ["LocalAttnProcessor"]


@dataclass(kw_only=True, eq=False, repr=False)
class LocalAttnProcessor(TrainedAttnProcessor):
    """Image keys nearer than `radius` tokens (strictly) and all text; text queries see everything.

    radius: in tokens of the layer's own grid, at least 1; or one for each head.
    frames_radius: in frames of a video, at least 1: the ball becomes an ellipsoid. 1 is the disc in
        the query's own frame, None the ball of `radius` tokens.
    proportional: tokens, text and image, of the calls the model was trained with; logits then grow
        by sqrt(log(tokens) / log(proportional)). None leaves them.
    weights: trained parts by layer; layers that have none stay dense, and the report says so.
    base: the weights that those were trained from, to put them on a model tuned from the same base.
    impl: "reference", "torch" or "triton"; None chooses.
    """

    radius: int | Sequence[int] = 16
    frames_radius: int | None = None
    proportional: int | None = None
    weights: LocalWeights | None = None
    base: LocalWeights | None = None
    impl: str | None = None
    weights_class: ClassVar[type[LocalWeights]] = LocalWeights

    def __post_init__(self) -> None:
        super().__post_init__()
        check_radius(self.radius)
        check_frames_radius(self.frames_radius, self.radius)
        if self.proportional is not None:
            check_positive("proportional", self.proportional, least=2)
        if self.weights is not None and self.weights.pool is not None:
            raise ValueError("these weights pool the far field: FoveatedAttnProcessor takes them")

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        window: int | None = None,
        base: str | Path | None = None,
        proportional: int | None = None,
        impl: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> LocalAttnProcessor | FoveatedAttnProcessor:
        """CLEAR with published weights, for `foveate.apply` on a FLUX.1 model.

        A pooled file gives a FoveatedAttnProcessor, of which CLEAR's pooled variant is one setting.

        source: safetensors file; folder or repository of the hub ("Huage001/CLEAR") that holds
            clear_local_{window}.safetensors; or owner/name/file.safetensors, a file of the hub.
        window: the radius in tokens that it was trained with. The file does not hold it.
        base: the official model that those weights were trained from (file, folder, repository):
            then they are put on a model tuned from it as differences, own + weights - base. Without
            it they replace the model's own.
        revision: of the repository.
        local_files_only: look in the hub's cache alone, as HF_HUB_OFFLINE says for everything.

        Raises FileNotFoundError, or ValueError for a window left out and for a file with other keys
        or shapes, or corrupt.
        """
        weights = read_clear(source, window, revision=revision, local_files_only=local_files_only)
        official = None
        if base is not None:
            official = read_base(base, weights, local_files_only=local_files_only)
        options = {"radius": window, "proportional": proportional, "impl": impl}
        if weights.pool is None:
            return cls(**options, weights=weights, base=official)
        return FoveatedAttnProcessor(
            **options,
            pool=weights.pool,
            mass=False,
            partition=False,
            weights=weights,
            base=official,
        )

    def bind(self, name: str, attn: nn.Module) -> AttnProcessor:
        """The processor of one layer, with its trained part.

        Raises ValueError where the layer has not as many heads as there are radii.
        """
        if isinstance(self.radius, Sequence) and len(self.radius) != heads_of(attn):
            raise ValueError(
                f"{name} has {heads_of(attn)} heads, but radius={self.radius} is for "
                f"{len(self.radius)}; map each pattern of layers to a processor of its own"
            )
        return super().bind(name, attn)

    @property
    def carries(self) -> frozenset[str]:
        return EVERY_EDIT

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
        scale = proportional_scale(scale, q.shape[-1], layout.num_tokens, self.proportional)
        return local_attention(
            q,
            k,
            v,
            layout=layout,
            radius=self.radius,
            frames_radius=self.frames_radius,
            scale=scale,
            impl=self.impl,
        )

    def why_not_split(self) -> str | None:
        if self.frames_radius is not None:
            return "windows with a frames_radius are not split over ranks"
        return None

    def attend_shard(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        shard: Shard,
        exchange: Exchange,
        scale: float | None,
    ) -> torch.Tensor:
        check_split(self)
        scale = proportional_scale(scale, q.shape[-1], shard.layout.num_tokens, self.proportional)
        return sequence_local_attention(
            q, k, v, shard=shard, exchange=exchange, radius=self.radius, scale=scale
        )

    def count_keys(self, layout: TokenLayout) -> KeyCount:
        return local_keys(layout, self.radius, self.frames_radius)
