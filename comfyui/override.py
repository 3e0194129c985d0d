"""Stands in for ComfyUI's attention function during one forward of a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..kernels import TokenLayout
from ..kernels.counts import KeyCount
from .call import AttentionCall, read_call
from .families import Geometry, Layouts
from .modes import MODES
from .record import LayerRecord, Recorder
from .settings import Settings

__all__ = ["Override"]

Attention = Callable[..., torch.Tensor]


class Override:
    """Runs the operator where it can, else what would have run without it.

    rule: the node whose steps this forward belongs to, or None between them.
    previous: the override of another node, which then runs in place of ComfyUI's function.
    key_counts: what has been counted so far; outlives the forward.
    """

    def __init__(
        self,
        rule: Settings | None,
        layouts: Layouts,
        geometry: Geometry,
        previous: Attention | None,
        recorder: Recorder,
        key_counts: dict[tuple[Settings, TokenLayout, int], KeyCount],
    ) -> None:
        self.rule = rule
        self.layouts = layouts
        self.geometry = geometry
        self.previous = previous
        self.recorder = recorder
        self.key_counts = key_counts
        self.calls = 0

    # a compiled model would be compiled again whenever a count in the records has changed
    @torch.compiler.disable
    def __call__(self, func: Attention, *args: object, **kwargs: object) -> torch.Tensor:
        """Attention with the arguments of `func`, whatever version of ComfyUI it is from."""
        stock = func if self.previous is None else partial(self.previous, func)
        call = read_call(*args, **kwargs)
        if isinstance(call, str):
            self.recorder.unreadable[call] += 1
            self.recorder.warn_once(call)
            return stock(*args, **kwargs)
        if call.is_cross:
            self.recorder.cross_calls += 1
            return stock(*args, **kwargs)
        layer = self.recorder.layer(self.calls, _block(call.options))
        self.calls += 1
        layout = self._layout(call, layer)
        if layout is None:
            return stock(*args, **kwargs)
        out = self._attend(call, layout, layer)
        layer.ran += 1
        return call.finish(out)

    def _layout(self, call: AttentionCall, layer: LayerRecord) -> TokenLayout | None:
        """The layout the operator runs with, or None after noting why it does not."""
        reason = self._why_left(call, layer)
        if reason is not None:
            layer.reasons[reason] += 1
            return None
        layout = self.layouts(call, self.geometry) if call.unsupported is None else call.unsupported
        if isinstance(layout, str):
            layer.reasons[layout] += 1
            self.recorder.warn_once(layout)
            return None
        layer.layout, layer.keys = layout, self._count_keys(layout, layer.number)
        if layer.keys.visited >= layout.num_tokens:
            layer.reasons["every query would be compared with every key"] += 1
            return None
        return layout

    def _count_keys(self, layout: TokenLayout, number: int) -> KeyCount:
        # a count takes milliseconds, and most layers of a model share theirs
        key = (self.rule, layout, number % 2)
        if key not in self.key_counts:
            options = {"radius": self.rule.radius, "pool": self.rule.pool, "layer": number}
            self.key_counts[key] = MODES[self.rule.mode].count_keys(layout, **options)
        return self.key_counts[key]

    def _why_left(self, call: AttentionCall, layer: LayerRecord) -> str | None:
        """The option of the node that leaves this call alone."""
        if self.rule is None:
            return "outside the steps"
        if layer.number in self.rule.dense:
            return "in dense_layers"
        if call.q.shape[2] < self.rule.min_tokens:
            return f"fewer than {self.rule.min_tokens} tokens"
        return None

    def _attend(self, call: AttentionCall, layout: TokenLayout, layer: LayerRecord) -> torch.Tensor:
        return MODES[self.rule.mode].attend(
            *call.wide(),
            layout=layout,
            radius=self.rule.radius,
            pool=self.rule.pool,
            layer=layer.number,
            scale=call.scale,
        )


def _block(options: dict[str, object]) -> str:
    """The name of the block that calls, "" where the model does not tell."""
    index = options.get("block_index")
    if index is None:
        return ""
    if "block" in options:  # a UNet: its part, the number there, the transformer block in it
        return ".".join(str(part) for part in (*options["block"], index))
    return f"{options['block_type']} {index}" if "block_type" in options else f"block {index}"
