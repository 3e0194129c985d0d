"""A plan that was measured on a model, as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from torch import nn

from ...kernels.broadcast import COMPUTE, FORECAST, LEGEND, MIN_EVALUATIONS, check_row
from ...kernels.inputs import is_number
from ..fingerprint import fingerprint
from .curves import Curves
from .plan import Plan, check_layers, too_few, unknown_layers
from .schedule import Schedule
from .search import Found, search, share_of

__all__ = ["CalibratedPlan"]

_FORMAT = 2
_ROUNDING = 1e-9  # of shares


@dataclass(frozen=True, kw_only=True)
class CalibratedPlan(Plan):
    """Rows chosen by measured errors, weights and costs; made by `foveate.calibrate`.

    On the schedule it was measured on, and on any other, for which the curves are interpolated and
    the rows chosen anew. Schedulers that add noise in every step reuse and do not forecast.

    share: of the calls that compute, or of their cost with `use_cost`.
    refined: {kind: row}, rows that were tried out and found better than those chosen by the curves;
        for the schedule it was measured on. On another the curves choose.
    max_bytes: of the cache, for one picture and one branch at the size calibrated; layers that save
        least time a byte compute.
    model, fingerprint, scheduler, versions: what it was measured on; fingerprints of two denoisers
        are joined by a comma.
    checked: what was found on held-out prompts.
    """

    curves: Curves
    share: float
    use_cost: bool = False
    use_forecast: bool = True
    refined: Mapping[str, str] = field(default_factory=dict)
    max_bytes: int | None = None
    model: str = ""
    fingerprint: str = ""
    scheduler: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    checked: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (is_number(self.share) and 0 < self.share <= 1):
            raise ValueError(f"share must be in (0, 1], got {self.share!r}")
        if self.refined:
            self._check_refined()

    def _check_refined(self) -> None:
        kinds = self.curves.kinds
        if set(self.refined) != set(kinds):
            raise ValueError(
                f"refined must have a row for each kind of {sorted(kinds)}, "
                f"got {sorted(self.refined)}"
            )
        for row in self.refined.values():
            check_row(row, len(self.curves.timesteps))
        if not self.allows(self.refined):
            raise ValueError(
                f"the refined rows compute more than a share of {self.share:.3g}; "
                "refine them again, or give refined={}"
            )

    def allows(self, rows: Mapping[str, str]) -> bool:
        """Whether rows {kind: row} compute no more than `share`."""
        share = share_of(self._by_layer(rows), self.curves, use_cost=self.use_cost)
        return share <= self.share + _ROUNDING

    def table(self, schedule: Schedule, layers: Mapping[str, str]) -> dict[str, str]:
        everything = {layer: COMPUTE * len(schedule) for layer in layers}
        if schedule.remaining < MIN_EVALUATIONS:
            return everything
        rows = self.find(schedule).rows
        return everything | {layer: row for layer, row in rows.items() if layer in layers}

    def find(self, schedule: Schedule) -> Found:
        """Rows, share and predicted error on a schedule."""
        curves, use_cost = self.curves.at(schedule.timesteps), self.use_cost
        use_forecast = self.use_forecast and not schedule.is_noisy
        if self._has_refined(schedule, use_forecast):
            rows = self._by_layer(self.refined)
            found = Found(rows, share_of(rows, curves, use_cost=use_cost), math.nan)
        else:
            found = search(
                curves,
                self.share,
                use_cost=use_cost,
                use_forecast=use_forecast,
                is_strict=curves is self.curves,
            )
        if self.max_bytes is None:
            return found
        rows = _fitting(curves, found.rows, self.max_bytes)
        return Found(rows, share_of(rows, curves, use_cost=use_cost), found.error)

    def _has_refined(self, schedule: Schedule, use_forecast: bool) -> bool:
        """Whether the refined rows are for this schedule."""
        is_allowed = use_forecast or FORECAST not in "".join(self.refined.values())
        return bool(self.refined) and is_allowed and self.curves.are_of(schedule.timesteps)

    def _by_layer(self, rows: Mapping[str, str]) -> dict[str, str]:
        return {layer: rows[kind] for layer, kind in self.curves.layers.items()}

    def notes(self, schedule: Schedule, layers: Mapping[str, str]) -> tuple[str, ...]:
        told = unknown_layers(self.curves.layers, layers)
        if schedule.remaining < MIN_EVALUATIONS:
            return (too_few(schedule), *told)
        share = self.find(schedule).share
        if self.max_bytes is None and share > self.share + _ROUNDING:
            return (f"{share:.0%} compute, the least in {len(schedule)} evaluations", *told)
        return told

    def check(self, model: nn.Module, layers: Mapping[str, str]) -> None:
        name = type(model).__name__
        if name != self.model:
            raise ValueError(f"the plan was calibrated on a {self.model}, this is a {name}")
        check_layers(list(self.curves.layers), layers)
        if fingerprint(model) not in self.fingerprint.split(","):
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
        if self.refined:
            told += "; rows refined by trying"
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
        """Raises ValueError where the file is not such a plan, or its rows are not the plan's."""
        try:
            data = json.loads(Path(path).read_text())
        except (json.JSONDecodeError, UnicodeDecodeError):
            data = None
        if not isinstance(data, dict) or data.pop("format", None) != _FORMAT:
            raise ValueError(f"{path} is no plan of `foveate calibrate` of format {_FORMAT}")
        rows = data.pop("rows", None)
        try:
            plan = cls(curves=_curves(data.pop("curves")), **data)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no whole plan: {error}") from error
        if rows is not None and rows != plan.find(plan._own_schedule()).rows:
            raise ValueError(
                f"the rows of {path} are not those that follow from its curves; leave them out, or "
                'give rows of your own as "refined": {kind: row}'
            )
        return plan

    def _own_schedule(self) -> Schedule:
        return Schedule(self.curves.timesteps, False, self.scheduler)

    def __repr__(self) -> str:
        unit = "cost" if self.use_cost else "calls"
        return f"CalibratedPlan({self.share:.3g} of the {unit}, on {self.model})"


def _fitting(curves: Curves, rows: Mapping[str, str], limit: int) -> dict[str, str]:
    """The rows when the layers that save least time a byte compute, so that the rest fits."""
    sizes = dict(zip(curves.layers, map(float, curves.num_bytes), strict=True))
    seconds = dict(zip(curves.layers, map(float, curves.seconds), strict=True))

    def held(layer: str) -> float:
        return sizes[layer] * (2 if FORECAST in rows[layer] else 1)

    def saved_per_byte(layer: str) -> float:
        skipped = len(rows[layer]) - rows[layer].count(COMPUTE)
        return skipped * seconds[layer] / held(layer)

    used = [layer for layer, row in rows.items() if set(row) != {COMPUTE}]
    used.sort(key=saved_per_byte)
    while used and sum(map(held, used)) > limit:
        used.pop(0)
    return {layer: row if layer in used else COMPUTE * len(row) for layer, row in rows.items()}


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
