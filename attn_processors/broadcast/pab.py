"""Pyramid Attention Broadcast as it was published (arXiv:2408.12588, and its VideoSys code).

reuse <=> i % range != 0 and low < int(t) < high, both strict, t on the scale 0 to 1000. The phase
counts from the first evaluation and not from the entry of the window, so the first reuse may read
an output from before it. The published code also broadcasts some MLPs and, in two models, caches
after the adaptive gate; here it is attention alone, before the gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ...kernels.broadcast import COMPUTE, FORECAST, REUSE, check_every
from ...kernels.schedule import is_pair
from .plan import Plan
from .schedule import Schedule

__all__ = ["PAB_PRESETS", "PabPlan"]


@dataclass(frozen=True, kw_only=True)
class PabPlan(Plan):
    """Ranges by kind of layer; None leaves the kind alone.

    window: raw timesteps (low, high) of the scheduler.
    is_forecast: forecast instead of reusing, which PAB does not do.
    """

    spatial: int | None = 2
    temporal: int | None = None
    cross: int | None = None
    window: tuple[float, float] = (100, 850)
    is_forecast: bool = False

    def __post_init__(self) -> None:
        for name in ("spatial", "temporal", "cross"):
            if getattr(self, name) is not None:
                check_every(name, getattr(self, name))
        if not is_pair(self.window) or not self.window[0] < self.window[1]:
            raise ValueError(
                f"window must be timesteps (low, high) with low < high, got {self.window!r}"
            )

    @staticmethod
    def preset(model: str) -> PabPlan:
        """The published ranges of a model, by the names of PAB_PRESETS."""
        if model not in PAB_PRESETS:
            raise ValueError(f"PAB has presets for {', '.join(PAB_PRESETS)}, got {model!r}")
        return PAB_PRESETS[model]

    def table(self, schedule: Schedule, layers: Mapping[str, str]) -> dict[str, str]:
        return {layer: self._row(schedule, getattr(self, kind)) for layer, kind in layers.items()}

    def _row(self, schedule: Schedule, every: int | None) -> str:
        if every is None:
            return COMPUTE * len(schedule)
        low, high = self.window
        letter = FORECAST if self.is_forecast else REUSE
        return "".join(
            letter if i > 0 and i % every and low < int(t) < high else COMPUTE
            for i, t in enumerate(schedule.timesteps, -schedule.start)
        )


PAB_PRESETS: Mapping[str, PabPlan] = MappingProxyType(
    {
        "open-sora": PabPlan(spatial=2, temporal=4, cross=6, window=(450, 930)),
        "open-sora-plan": PabPlan(spatial=2, temporal=4, cross=6, window=(100, 850)),
        "open-sora-plan-1.2": PabPlan(spatial=2, cross=6, window=(100, 850)),
        "latte": PabPlan(spatial=2, temporal=3, cross=6, window=(100, 800)),
        "cogvideox": PabPlan(spatial=2, window=(100, 850)),
        "vchitect": PabPlan(spatial=2, temporal=4, cross=6, window=(100, 800)),
    }
)
