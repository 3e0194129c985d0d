"""How far an operator's output lies from dense attention, layer by layer and step by step.

The pipeline runs dense, so every operator sees the same queries, keys and values; the error of the
grid tokens is |operator - dense| / |dense| over a call.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from diffusers import DiffusionPipeline

from ....attn_processors import SoftmaxAttnProcessor, apply
from ....attn_processors.base import AttnProcessor
from ....kernels.layout import TokenLayout

__all__ = ["layer_errors"]


@dataclass(kw_only=True, eq=False, repr=False)
class _Comparing(SoftmaxAttnProcessor):
    """Runs dense and notes how far each of `others` would have been: {method: one error a call}."""

    others: dict[str, AttnProcessor] = field(default_factory=dict)
    errors: dict[str, list[float]] = field(default_factory=dict)

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        layout: TokenLayout,
        scale: float | None,
    ) -> torch.Tensor:
        dense = super().attend(q, k, v, layout=layout, scale=scale)
        exact = dense[:, :, layout.grid_slice]
        for name, processor in self.others.items():
            out = processor.attend(q, k, v, layout=layout, scale=scale)[:, :, layout.grid_slice]
            error = (out - exact).norm() / exact.norm()
            self.errors.setdefault(name, []).append(float(error))
        return dense


def layer_errors(
    pipe: DiffusionPipeline, others: dict[str, AttnProcessor], run
) -> dict[str, dict[str, list[float]]]:
    """{layer: {method: one error a call}} over `run()`, which calls the pipeline."""
    probe = apply(pipe, SoftmaxAttnProcessor())
    names = [row.layer for row in probe.report().layers if row.kind in ("self", "joint")]
    probe.remove()
    comparing = {name: _Comparing(others=others) for name in names}
    with apply(pipe, comparing):
        run()
    return {name: processor.errors for name, processor in comparing.items()}
