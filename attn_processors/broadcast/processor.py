"""A processor around another: its operator runs in some steps, and is forecast in the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..base import AttnProcessor
from ..layouts import attention_layers
from .install import Attached, attach
from .kinds import kind_of
from .plan import FractionPlan

__all__ = ["BroadcastAttnProcessor"]


class BroadcastAttnProcessor(AttnProcessor):
    """`inner` in every `every`-th step of a window, its output forecast between.

    For `foveate.apply`, which knows the layers it is given for; `foveate.broadcast` takes other
    plans and stores, and stands around any processor.

    every: 1 computes always.
    window: (start, end) in fractions of the run, 0 the noisiest; outside it every step computes.
    """

    def __init__(
        self, inner: AttnProcessor, *, every: int = 2, window: tuple[float, float] = (0.1, 0.85)
    ) -> None:
        super().__init__()
        if not isinstance(inner, AttnProcessor) or isinstance(inner, BroadcastAttnProcessor):
            raise ValueError(
                f"inner must be another foveate processor, got {inner!r}; "
                "foveate.broadcast(pipe, plan) stands around any processor"
            )
        self.inner = inner
        self.every = every
        self.window = window
        self._plan = FractionPlan(every=every, window=window)

    @property
    def operator(self) -> AttnProcessor:
        return self.inner.operator

    def companion(self, model: nn.Module, pipe: object, names: Sequence[str]) -> Attached:
        modules = attention_layers(model)
        kinds = {name: kind_of(model, name, modules[name]) for name in names}
        return attach(model, self._plan, pipe, kinds=kinds)

    def __call__(self, attn: nn.Module, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            "BroadcastAttnProcessor must know the step, which set_attn_processor does not tell; "
            "use foveate.apply(pipe, processor)"
        )

    def __repr__(self) -> str:
        return f"BroadcastAttnProcessor({self.inner!r}, every={self.every}, window={self.window})"
