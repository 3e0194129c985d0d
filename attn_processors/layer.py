"""One attention layer under `apply`: operator where it can run, stock softmax where not."""

from __future__ import annotations

import logging
from collections import Counter

import torch

from ..kernels.layout import TokenLayout
from .base import AttnProcessor
from .tracker import Tracker

__all__ = ["Layer"]

logger = logging.getLogger(__name__)


class Layer:
    """Decides, call by call, between operator and dense, and notes which.

    `processor` is None for a layer left alone, then `untouched` says why.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        processor: AttnProcessor | None,
        tracker: Tracker,
        *,
        min_tokens: int = 0,
        strict: bool = False,
        untouched: str | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.processor = processor
        self.untouched = untouched
        self.tracker = tracker
        self.min_tokens = min_tokens
        self.strict = strict
        # written and never read in a forward, so a compiled graph guards on none of them
        self._ran: TokenLayout | None = None
        self._chosen: str | None = None
        self._refused: str | None = None
        self.reset()

    def reset(self) -> None:
        """Forget what earlier forwards did."""
        self.layouts: Counter[TokenLayout] = Counter()
        self.reasons: Counter[str] = Counter()

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        scale: float | None,
        special: str | None,
    ) -> torch.Tensor | None:
        """The operator's output for q, k, v [B, H, N, D], or None for the stock softmax."""
        chosen = self._why_left_dense(q)
        if chosen is not None:
            if _may_note():
                self._chosen = chosen
            return None
        layout = self.tracker.layouts.get(q.shape[2])
        refused = special if special is not None else _why_not(q, k, layout)
        if refused is None:
            if _may_note():
                self._ran = layout
            return self.processor.attend(q, k, v, layout=layout, scale=scale)
        if self.strict:
            raise NotImplementedError(
                f"{self.name}: {refused}; strict=False would run this call dense"
            )
        if _may_note():
            self._refused = refused
        return None

    def _why_left_dense(self, q: torch.Tensor) -> str | None:
        """The option of `apply` that keeps this call dense."""
        if not self.tracker.active:
            return f"outside steps={self.tracker.steps}"
        if q.shape[2] < self.min_tokens:
            return f"fewer than min_tokens={self.min_tokens}"
        return None

    def settle(self) -> str | None:
        """Count what the last forward did; returns why it could not take the operator."""
        if self._ran is not None:
            self.layouts[self._ran] += 1
        for reason in (self._chosen, self._refused):
            if reason is not None:
                self.reasons[reason] += 1
        refused = self._refused
        self._ran = self._chosen = self._refused = None
        return refused


def _may_note() -> bool:
    # a compiled activation checkpoint allows no side effect
    return not (torch.compiler.is_compiling() and torch.is_grad_enabled())


def _why_not(q: torch.Tensor, k: torch.Tensor, layout: TokenLayout | None) -> str | None:
    if k.shape[2] != q.shape[2]:
        return "queries and keys differ in number"
    if layout is None:
        return f"{q.shape[2]} tokens fit no grid of this forward"
    return None
