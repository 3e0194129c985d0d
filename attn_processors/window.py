"""Window attention: an image query sees all text and the image keys of its own window.

Swin, arXiv:2103.14030; with large windows moved from step to step, HiDiffusion, arXiv:2311.17528.
"""

from __future__ import annotations

import copy
import dataclasses
import random

import torch

from ..kernels import window_attention, window_keys
from ..kernels.counts import KeyCount
from ..kernels.inputs import check_axes, check_flag, check_positive, is_number
from ..kernels.layout import TokenLayout
from .base import EVERY_EDIT, AttnProcessor

__all__ = ["WindowAttnProcessor"]

# HiDiffusion moves its windows by 0 to 3 quarters. As text, which torch.compile takes for a
# constant: a number that changes becomes a symbol, and all shapes with it
_QUARTERS = ("0", "0.25", "0.5", "0.75")


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class WindowAttnProcessor(AttnProcessor):
    """Image keys of the query's window, and all text; text queries see everything.

    window_size: (frames, rows, columns) in tokens of the layer's own grid; None is all frames and
        half the rows and columns, rounded up.
    shift: of the windows' borders along rows and columns, as a share of the window, below 1. Swin
        has 0.5 in every second layer.
    wrap: join the windows that are cut at opposite borders, as HiDiffusion does; otherwise each is
        a window of its own, as in Swin.
    seed: draw the shift of each step, 0 to 3 quarters, instead. The same step draws the same shift.
        Needs `foveate.apply`, which knows the step.
    impl: "reference", "torch" or "triton"; None chooses.
    """

    window_size: tuple[int, int, int] | None = None
    shift: float = 0.0
    wrap: bool = False
    seed: int | None = None
    impl: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._drawn: str | None = None
        if self.window_size is not None:
            check_axes("window_size", self.window_size)
        check_flag("wrap", self.wrap)
        if not is_number(self.shift) or not 0 <= self.shift < 1:
            raise ValueError(f"shift must be a share of the window in [0, 1), got {self.shift!r}")
        if self.seed is None:
            return
        check_positive("seed", self.seed, least=0)
        if self.shift:
            raise ValueError(f"seed draws the shift: give no shift={self.shift!r} beside it")

    @property
    def follows_steps(self) -> bool:
        return self.seed is not None

    @property
    def present_shift(self) -> float:
        """The shift given or, after `at`, drawn."""
        return self.shift if self._drawn is None else float(self._drawn)

    def at(self, progress: float) -> WindowAttnProcessor:
        # a string seeds alike in every process
        moved = copy.copy(self)
        moved._drawn = random.Random(f"{self.seed} {progress:.6f}").choice(_QUARTERS)
        return moved

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
        if self.follows_steps and self._drawn is None:
            raise NotImplementedError(
                "seed draws a shift for each step, and set_attn_processor does not tell the step; "
                "use foveate.apply(pipe, processor), or a fixed shift"
            )
        window_size, shift = self._windows(layout)
        return window_attention(
            q,
            k,
            v,
            layout=layout,
            window_size=window_size,
            shift=shift,
            wrap=self.wrap,
            scale=scale,
            impl=self.impl,
        )

    def count_keys(self, layout: TokenLayout) -> KeyCount:
        return window_keys(layout, *self._windows(layout), self.wrap)

    def _windows(self, layout: TokenLayout) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Window and shift in tokens."""
        frames, rows, columns = layout.grid
        half = (frames, -(-rows // 2), -(-columns // 2))
        window = half if self.window_size is None else self.window_size
        return window, (0, *(int(side * self.present_shift) for side in window[1:]))
