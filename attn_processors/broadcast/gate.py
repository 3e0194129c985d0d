"""One layer under broadcasting: what it does in this forward, and what it leaves behind.

Everything that decides is a plain attribute, set before the forward by the controller; inside,
there is nothing that a compiled graph could not trace. What a forward writes (`kept`) it never
reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...kernels.broadcast import COMPUTE, CORRECT, FORECAST, Kept, Store, forecast, recall
from .offload import Offload

__all__ = ["Gate"]

Call = Callable[..., Any]


class Gate:
    """The attention layer `name` of a kind.

    arm: what this forward does.
    keeps: whether a computed output is packed and left in `kept`.
    is_anchor: a computed output is the dense one, and what is kept is its difference to the
        operator's; for the arm "correct".
    recent, older: what was kept in the last two computed evaluations.
    factor: of the forecast, (t - t1) / (t1 - t2), a tensor without dimensions.
    """

    def __init__(self, name: str, kind: str, store: Store, offload: Offload | None) -> None:
        self.name = name
        self.kind = kind
        self.store = store
        self.offload = offload
        self.rest()

    def rest(self) -> None:
        """Compute and keep nothing: what holds outside any run."""
        self.arm = COMPUTE
        self.keeps = False
        self.is_anchor = False
        self.recent: Kept | None = None
        self.older: Kept | None = None
        self.factor: torch.Tensor | None = None
        self.kept: Kept | None = None

    def __call__(
        self,
        operator: Call,
        dense: Call,
        processor: object,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        args: tuple,
        kwargs: dict[str, Any],
    ) -> Any:
        """The layer's output: of `operator`, of `dense` (its stock softmax), or from the cache."""
        if self.arm != COMPUTE and self.arm != CORRECT:
            return _join(self._recall(), attn, hidden_states)
        out = operator(processor, attn, hidden_states, *args, **kwargs)
        if self.arm == CORRECT:
            return _add(out, self._recall())
        if self.is_anchor:
            exact = dense(processor, attn, hidden_states, *args, **kwargs)
            self._keep(
                tuple(_minus(x, y) for x, y in zip(*map(_leaves, (exact, out)), strict=True))
            )
            return exact
        if self.keeps:
            self._keep(_split(out, attn, hidden_states))
        return out

    def _keep(self, leaves: tuple[torch.Tensor | None, ...]) -> None:
        kept = tuple(None if x is None else self.store.pack(x.detach()) for x in leaves)
        self.kept = kept if self.offload is None else self.offload.away(kept)

    def _recall(self) -> tuple[torch.Tensor | None, ...]:
        """The leaves that were kept, extrapolated where the arm asks for it."""
        held = (self.recent, self.older) if self.arm == FORECAST else (self.recent,)
        if self.offload is not None:
            held = self.offload.take(self)
        if self.arm == FORECAST:
            return forecast(self.store, *held, self.factor)
        return recall(self.store, held[0])


def _leaves(out: Any) -> tuple[torch.Tensor | None, ...]:
    return tuple(out) if isinstance(out, (tuple, list)) else (out,)


def _adds_residual(attn: nn.Module) -> bool:
    return getattr(attn, "residual_connection", False)


def _split(out: Any, attn: nn.Module, hidden_states: torch.Tensor) -> tuple:
    """What is cached of an output: its leaves, without the residual that the layer added."""
    if _adds_residual(attn):
        return (out * attn.rescale_output_factor - hidden_states,)
    return _leaves(out)


def _join(leaves: tuple[torch.Tensor | None, ...], attn: nn.Module, hidden_states: Any) -> Any:
    """The output that `_split` took apart, with the residual of now."""
    if _adds_residual(attn):
        return (leaves[0] + hidden_states) / attn.rescale_output_factor
    return leaves[0] if len(leaves) == 1 else leaves


def _add(out: Any, difference: tuple[torch.Tensor | None, ...]) -> Any:
    summed = tuple(x if d is None else x + d for x, d in zip(_leaves(out), difference, strict=True))
    return summed[0] if isinstance(out, torch.Tensor) else summed


def _minus(x: torch.Tensor | None, y: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else x - y
