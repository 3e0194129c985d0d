"""One attention layer under `apply`: operator where it can run, stock softmax where not."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import nn

from ..kernels.layout import TokenLayout
from .base import AttnProcessor
from .guard import Guard
from .padding import Padded, attend_valid
from .special import MASKED, SPLIT
from .tracker import Tracker

__all__ = ["Layer"]


class Layer:
    """Decides, call by call, between operator and dense, and notes which.

    `processor` is None for a layer left alone, then `untouched` says why. `present` is what it is
    in this forward.
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
    ) -> None:
        self.name = name
        self.kind = kind
        self.processor = processor
        self.untouched: str | None = None
        self.tracker = tracker
        self.min_tokens = min_tokens
        self.strict = strict
        self.present = processor
        self.guard = Guard()
        self.forget()
        self.reset()

    def begin(self) -> None:
        """Before a forward, outside of any graph."""
        self.forget()
        if self.processor is not None and self.processor.follows_steps:
            self.present = self.processor.at(self.tracker.progress())

    def bind(self, attn: nn.Module) -> None:
        """Take the part of the processor that belongs to this layer, the module `attn`."""
        self._whole = self.processor
        self.processor = self.present = self.processor.bind(self.name, attn)

    def release(self) -> None:
        """Let go of what was trained for this layer; the notes stay."""
        if self.processor is not None and self.processor.part is not None:
            self.processor = self.present = self._whole

    def forget(self) -> None:
        """Drop the notes of a forward, before the next or after one that was cut short."""
        # written and never read in a forward, so a compiled graph guards on none of them
        self._ran: TokenLayout | None = None
        self._chosen: str | None = None
        self._refused: str | None = None

    def reset(self) -> None:
        """Drop the counts of all earlier forwards."""
        self.seen = self.forwards = self.dense_forwards = 0
        self.layout: TokenLayout | None = None
        self.reasons: Counter[str] = Counter()

    def project(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
    ) -> Any:
        """`attn`, or what the processor puts in its place if `attend` will run the operator."""
        tokens = _num_tokens(hidden_states)
        if self.kind == "joint" and encoder_hidden_states is not None:
            tokens += encoder_hidden_states.shape[1]
        layout = self.tracker.layouts.get(tokens)
        cannot = attention_mask is not None or layout is None or self.present.why_not(layout)
        if self.tracker.exchange is not None:
            cannot = cannot or self.present.why_not_split()
        if cannot or self.guard.broken or self._why_left_dense(tokens, layout) is not None:
            return attn
        self._place(hidden_states.device)
        return self.present.project(attn)

    def _place(self, device: torch.device) -> None:
        """Brings the trained part to where the call runs: offloading by hooks moves it nowhere."""
        part = self.present.part
        if part is not None and any(p.device != device for p in part.parameters()):
            part.to(device)

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
        padded = self._padded(q.shape[2], special)
        layout = self.tracker.layouts.get(q.shape[2]) if padded is None else padded.layouts[0]
        chosen = self._why_left_dense(q.shape[2], layout)
        refused = None
        if chosen is None:
            is_plain = special in (None, SPLIT) or padded is not None
            refused = None if is_plain else special
            refused = refused or self._why_not(q, k, layout) or self.present.why_not(layout)
            if special == SPLIT:
                refused = refused or self.present.why_not_split()
        out = None
        if chosen is None and refused is None:
            out = self._run(q, k, v, layout, padded, scale, special)
            # ranks must agree, and each sees its own share alone
            if out is not None and self.tracker.exchange is None:
                refused = self.guard.why_not(layout, out, (q, k, v))
        if refused is not None and self.strict:
            raise NotImplementedError(f"{self.name}: {refused}; strict=False runs this call dense")
        self._note(layout, chosen, refused)
        return out if refused is None else None

    def _run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layout: TokenLayout,
        padded: Padded | None,
        scale: float | None,
        special: str | None,
    ) -> torch.Tensor | None:
        """The operator's output, or None where the stock softmax gives it."""
        self._place(q.device)
        if self.tracker.exchange is not None:
            return self._attend_shard(q, k, v, scale, special)
        if padded is None:
            return self.present.attend(q, k, v, layout=layout, scale=scale)
        # the stock softmax honours the mask itself, and is bitwise the stock result
        if self.present.is_softmax:
            return None
        return attend_valid(self.present.attend, padded, q, k, v, scale=scale)

    def _attend_shard(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float | None,
        special: str | None,
    ) -> torch.Tensor:
        if special != SPLIT:
            raise NotImplementedError(
                f"{self.name}: the tokens are split over ranks, but its stock processor takes no "
                "part in context parallelism and would attend to this rank's share alone"
            )
        shard, exchange = self.tracker.shards[q.shape[2]], self.tracker.exchange
        return self.present.attend_shard(q, k, v, shard=shard, exchange=exchange, scale=scale)

    def _padded(self, tokens: int, special: str | None) -> Padded | None:
        """Where the padding lies that the call's mask hides, if the model's family tells."""
        if special != MASKED or self.present.has_projections:
            return None
        return self.tracker.padded.get(tokens)

    def _note(self, layout: TokenLayout | None, chosen: str | None, refused: str | None) -> None:
        # a compiled activation checkpoint allows no side effect
        if torch.compiler.is_compiling() and torch.is_grad_enabled():
            return
        if chosen is not None:
            self._chosen = chosen
        elif refused is not None:
            self._refused = refused
        else:
            self._ran = layout

    def _why_left_dense(self, tokens: int, layout: TokenLayout | None) -> str | None:
        """The option of `apply` or of the processor that keeps this call dense."""
        if not self.tracker.active:
            return f"outside steps={self.tracker.steps}"
        if tokens < self.min_tokens:
            return f"fewer than min_tokens={self.min_tokens}"
        return None if layout is None else self.present.why_dense(layout)

    def _why_not(self, q: torch.Tensor, k: torch.Tensor, layout: TokenLayout | None) -> str | None:
        if self.guard.broken is not None:
            return self.guard.broken
        if k.shape[2] != q.shape[2]:
            return "queries and keys differ in number"
        if layout is None and self.tracker.family.is_guess:
            return f"{q.shape[2]} tokens fit no guessed grid; pass family= (docs/layouts.md)"
        if layout is None and self.tracker.exchange is not None:
            return f"{q.shape[2]} tokens are no rank's even share of the text and the image"
        if layout is None:
            return f"{q.shape[2]} tokens fit no grid of this forward"
        return None

    @property
    def is_unseen(self) -> bool:
        """Whether the last forward ran the operator where its output could not be looked at."""
        return self.guard.is_new(self._ran)

    def trust(self) -> None:
        """Do not look at outputs of the last forward's layout again."""
        self.guard.pass_unseen(self._ran)

    def settle(self) -> str | None:
        """Count what the last forward did; returns why it could not take the operator."""
        reasons = [r for r in (self._chosen, self._refused) if r is not None]
        self.seen += self._ran is not None or bool(reasons)
        self.dense_forwards += bool(reasons)
        self.reasons.update(reasons)
        if self._ran is not None:
            self.forwards += 1
            self.layout = self._ran
        return self._refused


def _num_tokens(hidden_states: torch.Tensor) -> int:
    """Tokens of hidden states [B, N, C], or of an image [B, C, h, w]."""
    is_flat = hidden_states.dim() == 3
    return hidden_states.shape[1] if is_flat else math.prod(hidden_states.shape[2:])
