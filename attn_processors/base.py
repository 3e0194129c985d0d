"""A processor: an operator with its options, for `foveate.apply` and `set_attn_processor`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from ..kernels.counts import KeyCount
from ..kernels.inputs import check_impl_name
from ..kernels.layout import TokenLayout
from ..kernels.sequence import Exchange, Shard
from .rotary import RotaryReader
from .stock import check_grid, run_stock

__all__ = ["EVERY_EDIT", "AttnProcessor", "Companion"]

# what a softmax over some of the keys can carry, see modulation/base.py: all but factors by group
# of queries, which need one call a group
EVERY_EDIT = frozenset({"temperature", "key bias", "text bias", "bias", "keys", "values"})


class Companion(Protocol):
    """What a processor puts on a model beside its operator; shown and removed with it."""

    def meet(self, others: Sequence[Companion]) -> None:
        """Take account of those on the other denoisers of the pipeline."""

    def report(self) -> object: ...

    def remove(self) -> None: ...


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class AttnProcessor:
    """Base of the processors; a subclass adds its options and `attend`.

    grid: (rows, columns) or (frames, rows, columns) of image tokens at the model's top level, for
        `set_attn_processor`, which tells nothing of the model; unused by `foveate.apply`.
    """

    grid: tuple[int, ...] | None = None
    # a field of those that have more than one
    impl: ClassVar[str | None] = None
    # what a bound processor has trained for its layer
    part: ClassVar[nn.Module | None] = None
    # diffusers writes these two on every processor that has them
    _attention_backend: ClassVar[Any] = None
    _parallel_config: ClassVar[Any] = None

    def __post_init__(self) -> None:
        self.grid = check_grid(self.grid)
        check_impl_name(self.impl)
        self.rotary_reader = RotaryReader()

    @property
    def operator_name(self) -> str:
        """Short name for reports: "local" for LocalAttnProcessor."""
        return type(self).__name__.removesuffix("AttnProcessor").lower()

    @property
    def operator(self) -> AttnProcessor:
        """The processor whose operator runs in the layers: itself, unless it stands around one."""
        return self

    def companion(self, model: nn.Module, pipe: object, names: Sequence[str]) -> Companion | None:
        """What `foveate.apply` shall put on the model for these layers beside the operator.

        Raises ValueError where it cannot; nothing is applied then.
        """
        return None

    @property
    def is_softmax(self) -> bool:
        """Whether `attend` is the stock softmax, so that a masked call may as well run that."""
        return False

    @property
    def carries(self) -> frozenset[str]:
        """The edits (`Modulation.edits`) that stay exact under this operator."""
        return frozenset()

    @property
    def is_trained(self) -> bool:
        """Whether it holds weights, which are of one model."""
        return False

    @property
    def follows_steps(self) -> bool:
        """Whether `at` answers differently from step to step."""
        return False

    def at(self, progress: float) -> AttnProcessor:
        """The processor of the forward at this fraction of the schedule, step i of n at i / n."""
        return self

    def why_dense(self, layout: TokenLayout) -> str | None:
        """Why calls of this layout had better run the stock softmax, or None."""
        return None

    def why_not(self, layout: TokenLayout) -> str | None:
        """Why the operator cannot run calls of this layout, or None."""
        return None

    def why_not_split(self) -> str | None:
        """Why the operator cannot run where the tokens are split over ranks, or None."""
        return f"{self.operator_name} does not run under context parallelism; local and foveated do"

    def check_model(self, layers: Mapping[str, nn.Module]) -> None:
        """Raises ValueError where the processor is not for the model with these self-attention and
        joint layers.
        """

    def bind(self, name: str, attn: nn.Module) -> AttnProcessor:
        """The processor of one layer: itself, unless it holds something trained for each layer.

        Raises NotImplementedError where it has nothing for this layer, which then runs dense.
        """
        return self

    @property
    def has_projections(self) -> bool:
        """Whether `project` answers with other projections than the layer's own."""
        return False

    def project(self, attn: nn.Module) -> Any:
        """What the stock processor sees in the place of `attn` where the operator runs."""
        return attn

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        layout: TokenLayout,
        scale: float | None,
    ) -> torch.Tensor:
        """Attention of q, k, v [B, H, N, D] laid out as `layout`; scale None means 1 / sqrt(D)."""
        raise NotImplementedError(f"{type(self).__name__} does not define attend")

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
        """`attend` where this rank holds `shard` of a call, if nothing says why not."""
        raise NotImplementedError(self.why_not_split())

    def count_keys(self, layout: TokenLayout) -> KeyCount:
        """Keys a grid query needs, and keys it is compared with."""
        raise NotImplementedError(f"{type(self).__name__} does not define count_keys")

    # every argument is named: diffusers drops those that the signature does not show
    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        temb: torch.Tensor | None = None,
        ip_hidden_states: list[torch.Tensor] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        return run_stock(
            self,
            attn,
            hidden_states,
            encoder_hidden_states,
            attention_mask,
            image_rotary_emb,
            temb,
            ip_hidden_states,
        )

    def __repr__(self) -> str:
        options = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        shown = ", ".join(f"{name}={_shown(value)}" for name, value in options if value is not None)
        return f"{type(self).__name__}({shown})"


def _shown(value: object) -> str:
    return f"tensor{tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
