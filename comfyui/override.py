"""Stands in for ComfyUI's attention function during one forward of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from ..kernels import TokenLayout
from ..kernels.counts import KeyCount
from .broadcast import Turn
from .call import AttentionCall, read_call
from .families import Geometry, Layouts
from .maps import MapReader
from .modes import MODES
from .record import LayerRecord, Recorder
from .regions import RegionPrompts, couple, couple_joint
from .settings import Settings

__all__ = ["Forward", "Override", "Reading"]

Attention = Callable[..., torch.Tensor]
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Reading:
    """Maps are read in this forward: rows of the prompt, and where the sampling is."""

    reader: MapReader
    rows: list[int]
    progress: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Forward:
    """What holds for one forward of a model.

    rule: the Foveate Attention node whose steps it belongs to, or None between them.
    previous: the override of another node, which then runs in place of ComfyUI's function.
    """

    layouts: Layouts
    geometry: Geometry | None
    rule: Settings | None = None
    previous: Attention | None = None
    turn: Turn | None = None
    regions: RegionPrompts | None = None
    reading: Reading | None = None


class Override:
    """Runs what the nodes ask for where it can, else what would have run without them.

    key_counts: what has been counted so far; outlives the forward.
    """

    def __init__(
        self,
        forward: Forward,
        recorder: Recorder,
        key_counts: dict[tuple[Settings, TokenLayout, int], KeyCount],
    ) -> None:
        self.forward = forward
        self.recorder = recorder
        self.key_counts = key_counts
        self.calls = 0

    # a compiled model would be compiled again whenever a count in the records has changed
    @torch.compiler.disable
    def __call__(self, func: Attention, *args: object, **kwargs: object) -> torch.Tensor:
        """Attention with the arguments of `func`, whatever version of ComfyUI it is from."""
        previous, turn = self.forward.previous, self.forward.turn
        stock = func if previous is None else partial(previous, func)
        call = read_call(*args, **kwargs)
        if isinstance(call, str):
            self.recorder.unreadable[call] += 1
            self.recorder.warn_once(call)
            return stock(*args, **kwargs)
        block = _block(call.options)
        layer = None
        if not call.is_cross:
            layer = self.recorder.layer(self.calls, block)
            self.calls += 1

        def compute() -> torch.Tensor:
            return self._compute(call, layer, partial(stock, *args, **kwargs))

        return compute() if turn is None else turn.answer(call, block, compute)

    def _compute(
        self, call: AttentionCall, layer: LayerRecord | None, stock: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        if layer is None:
            self.recorder.cross_calls += 1
            attend, layout = self._cross(call)
        else:
            attend, layout = self._self(call, layer)
        out = stock() if attend is None else call.finish(attend(*call.wide()))
        reading = self.forward.reading
        if reading is not None and layout is not None:
            run = partial(_dense, scale=call.scale) if attend is None else attend
            reading.reader.read(call, layout, reading.rows, reading.progress, run)
        return out

    def _cross(self, call: AttentionCall) -> tuple[Attend | None, TokenLayout | None]:
        """What runs in the place of cross-attention, None for ComfyUI's; and where pixels are."""
        prompts = self.forward.regions
        if prompts is None and self.forward.reading is None:
            return None, None
        layout = self._place(call)
        if prompts is None or layout is None:
            return None, layout
        if call.k.shape[2] != sum(prompts.lengths):
            return None, self._refuse(f"{call.k.shape[2]} keys are not {prompts}")
        return partial(couple, prompts=prompts, layout=layout, scale=call.scale), layout

    def _self(
        self, call: AttentionCall, layer: LayerRecord
    ) -> tuple[Attend | None, TokenLayout | None]:
        """What runs in the place of self- or joint attention, and where pixels and text are."""
        prompts, reading = self.forward.regions, self.forward.reading
        operator_layout = self._layout(call, layer)
        layer.ran += operator_layout is not None
        if prompts is None and reading is None:
            return self._operator(call, operator_layout, layer), operator_layout
        layout = operator_layout or self._place(call)
        if prompts is None or layout is None or layout.text == 0:
            return self._operator(call, operator_layout, layer), layout
        if layout.text != sum(prompts.lengths):
            self._refuse(f"{layout.text} tokens of text are not {prompts}")
            return self._operator(call, operator_layout, layer), layout
        joint = partial(couple_joint, prompts=prompts, layout=layout, scale=call.scale)
        if operator_layout is None:
            return joint, layout
        grid = self._operator(call, TokenLayout(grid=layout.grid), layer, return_lse=True)
        return partial(joint, over_grid=grid), layout

    def _operator(
        self,
        call: AttentionCall,
        layout: TokenLayout | None,
        layer: LayerRecord,
        return_lse: bool = False,
    ) -> Attend | None:
        if layout is None:
            return None
        return partial(
            MODES[self.forward.rule.mode].attend,
            layout=layout,
            radius=self.forward.rule.radius,
            pool=self.forward.rule.pool,
            layer=layer.number,
            scale=call.scale,
            return_lse=return_lse,
        )

    def _place(self, call: AttentionCall) -> TokenLayout | None:
        """Where text and pixels lie in the call, whatever runs in it; None after saying why not."""
        layout = self._place_or_reason(call)
        return self._refuse(layout) if isinstance(layout, str) else layout

    def _place_or_reason(self, call: AttentionCall) -> TokenLayout | str:
        if call.unsupported is not None:
            return call.unsupported
        return self.forward.layouts(call, self.forward.geometry)

    def _refuse(self, reason: str) -> None:
        """Regions are not applied in a call, maps not read in it."""
        self.recorder.refused[reason] += 1
        self.recorder.warn_once(reason)

    def _layout(self, call: AttentionCall, layer: LayerRecord) -> TokenLayout | None:
        """The layout the operator runs with, or None after noting why it does not."""
        reason = self._why_left(call, layer)
        if reason is not None:
            layer.reasons[reason] += 1
            return None
        rule, layout = self.forward.rule, self._place_or_reason(call)
        if isinstance(layout, str):
            layer.reasons[layout] += 1
            self.recorder.warn_once(layout)
            return None
        if self.forward.regions is not None and layout.text and not MODES[rule.mode].has_lse:
            layer.reasons[f"{rule.mode} cannot be joined with regions"] += 1
            return None
        layer.layout, layer.keys = layout, self._count_keys(layout, layer.number)
        if layer.keys.visited >= layout.num_tokens:
            layer.reasons["every query would be compared with every key"] += 1
            return None
        return layout

    def _count_keys(self, layout: TokenLayout, number: int) -> KeyCount:
        # a count takes milliseconds, and most layers of a model share theirs
        rule = self.forward.rule
        key = (rule, layout, number % 2)
        if key not in self.key_counts:
            options = {"radius": rule.radius, "pool": rule.pool, "layer": number}
            self.key_counts[key] = MODES[rule.mode].count_keys(layout, **options)
        return self.key_counts[key]

    def _why_left(self, call: AttentionCall, layer: LayerRecord) -> str | None:
        """The option of the node that leaves this call alone."""
        rule = self.forward.rule
        if rule is None:
            return "outside the steps"
        if layer.number in rule.dense:
            return "in dense_layers"
        if call.q.shape[2] < rule.min_tokens:
            return f"fewer than {rule.min_tokens} tokens"
        return None


def _dense(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float | None
) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def _block(options: dict[str, object]) -> str:
    """The name of the block that calls, "" where the model does not tell."""
    index = options.get("block_index")
    if index is None:
        return ""
    if "block" in options:  # a UNet: its part, the number there, the transformer block in it
        return ".".join(str(part) for part in (*options["block"], index))
    return f"{options['block_type']} {index}" if "block_type" in options else f"block {index}"
