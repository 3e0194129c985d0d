"""A plan that was measured on a model, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from torch import nn

from ...kernels.broadcast import COMPUTE, FORECAST, LEGEND, MIN_EVALUATIONS
from ..fingerprint import fingerprint
from .curves import Curves
from .plan import Plan, check_layers, too_few, unknown_layers
from .schedule import Schedule
from .search import Found, search

__all__ = ["CalibratedPlan"]

_FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class CalibratedPlan(Plan):
    """Rows chosen by measured errors, weights and costs; made by `foveate.calibrate`.

    On the schedule it was measured on, and on any other, for which the curves are interpolated and
    the rows chosen anew. Schedulers that add noise in every step reuse and do not forecast.

    share: of the calls that compute, or of their cost with `use_cost`.
    max_bytes: of the cache, for one picture and one branch at the size calibrated; layers that save
        least time a byte compute.
    model, fingerprint, scheduler, versions: what it was measured on.
    checked: what was found on held-out prompts.
    """

    curves: Curves
    share: float
    use_cost: bool = False
    use_forecast: bool = True
    max_bytes: int | None = None
    model: str = ""
    fingerprint: str = ""
    scheduler: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    checked: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], got {self.share!r}")

    def table(self, schedule: Schedule, layers: Mapping[str, str]) -> dict[str, str]:
        everything = {layer: COMPUTE * len(schedule) for layer in layers}
        if len(schedule) < MIN_EVALUATIONS:
            return everything
        rows = self.find(schedule).rows
        return everything | {layer: row for layer, row in rows.items() if layer in layers}

    def find(self, schedule: Schedule) -> Found:
        """Rows, share and predicted error on a schedule."""
        curves = self.curves.at(schedule.timesteps)
        use_forecast = self.use_forecast and not schedule.is_noisy
        found = search(curves, self.share, use_cost=self.use_cost, use_forecast=use_forecast)
        if self.max_bytes is None:
            return found
        return _fit(curves, found, self.share, self.use_cost, use_forecast, self.max_bytes)

    def notes(self, schedule: Schedule, layers: Mapping[str, str]) -> tuple[str, ...]:
        few = (too_few(schedule),) if len(schedule) < MIN_EVALUATIONS else ()
        return few + unknown_layers(self.curves.layers, layers)

    def check(self, model: nn.Module, layers: Mapping[str, str]) -> None:
        name = type(model).__name__
        if name != self.model:
            raise ValueError(f"the plan was calibrated on a {self.model}, this is a {name}")
        check_layers(list(self.curves.layers), layers)
        if fingerprint(model) != self.fingerprint:
            raise ValueError(
                f"the weights of this {name} have changed since the plan was calibrated "
                "(another checkpoint, an adapter?); calibrate it again"
            )

    def describe(self) -> str:
        """The rows on the schedule calibrated, and what was found on held-out prompts."""
        found = self.find(self._own_schedule())
        width = max(map(len, found.rows))
        lines = [f"{layer.ljust(width)}  {row}" for layer, row in found.rows.items()]
        told = f"{found.share:.1%} of the {'cost' if self.use_cost else 'calls'} computed"
        told += f"; attention is {self.curves.share_of_time:.0%} of a forward"
        if self.checked:
            told += (
                f"; on {self.checked['prompts']} held-out prompts {self.checked['psnr']:.1f} dB "
                f"to dense, worst {self.checked['worst_psnr']:.1f} dB"
            )
        return "\n".join((f"{LEGEND}", *lines, told))

    def save(self, path: str | Path) -> None:
        """Write it as JSON; the rows are for the reader, they follow from the curves."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "curves"}
        curves = {f.name: _plain(getattr(self.curves, f.name)) for f in fields(self.curves)}
        rows = self.find(self._own_schedule()).rows
        data = {"format": _FORMAT, **own, "rows": rows, "curves": curves}
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in data.items())
        Path(path).write_text("{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def load(cls, path: str | Path) -> CalibratedPlan:
        """Raises ValueError where the file is not such a plan."""
        data = json.loads(Path(path).read_text())
        if not isinstance(data, dict) or data.pop("format", None) != _FORMAT:
            raise ValueError(f"{path} is no plan of `foveate calibrate` of format {_FORMAT}")
        data.pop("rows")
        return cls(curves=_curves(data.pop("curves")), **data)

    def _own_schedule(self) -> Schedule:
        return Schedule(self.curves.timesteps, False, self.scheduler)

    def __repr__(self) -> str:
        unit = "cost" if self.use_cost else "calls"
        return f"CalibratedPlan({self.share:.3g} of the {unit}, on {self.model})"


def _fit(
    curves: Curves, found: Found, share: float, use_cost: bool, use_forecast: bool, limit: int
) -> Found:
    """The rows when the layers that save least time a byte compute, so that the rest fits."""
    all_rows = {layer: COMPUTE * len(curves.timesteps) for layer in curves.layers}
    sizes = dict(zip(curves.layers, map(float, curves.num_bytes), strict=True))
    seconds = dict(zip(curves.layers, map(float, curves.seconds), strict=True))

    def held(layer: str) -> float:
        return sizes[layer] * (2 if FORECAST in found.rows[layer] else 1)

    def saved_per_byte(layer: str) -> float:
        skipped = len(found.rows[layer]) - found.rows[layer].count(COMPUTE)
        return skipped * seconds[layer] / held(layer)

    used = [layer for layer, row in found.rows.items() if set(row) != {COMPUTE}]
    used.sort(key=saved_per_byte)
    while used and sum(map(held, used)) > limit:
        used.pop(0)
    rows = {layer: found.rows[layer] for layer in used}
    n = len(curves.timesteps) * len(all_rows)
    computed = sum(row.count(COMPUTE) for row in (all_rows | rows).values())
    return Found(all_rows | rows, computed / n, found.error)


def _plain(value: object) -> object:
    """For JSON: arrays as lists, infinity as null."""
    if isinstance(value, np.ndarray):
        return [_plain(row) for row in value]
    if isinstance(value, np.floating):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return value


def _curves(data: dict) -> Curves:
    """Inverse of `_plain`."""
    arrays = ("reuse", "forecast", "seconds", "num_bytes")
    # null becomes nan
    read = {name: np.nan_to_num(np.array(data[name], dtype=float), nan=np.inf) for name in arrays}
    weight, forecast_weight = (
        {kind: np.array(values, dtype=float) for kind, values in data[name].items()}
        for name in ("weight", "forecast_weight")
    )
    return Curves(
        timesteps=tuple(data["timesteps"]),
        layers=data["layers"],
        weight=weight,
        forecast_weight=forecast_weight,
        forward_seconds=data["forward_seconds"],
        **read,
    )
