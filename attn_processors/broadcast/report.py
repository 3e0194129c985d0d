"""What broadcasting did in each layer over the last run, and the bytes it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...kernels.broadcast import COMPUTE, CORRECT, FORECAST, LEGEND, REUSE
from ...kernels.columns import columns
from .controller import Controller, predicted_bytes

__all__ = ["BroadcastLayer", "BroadcastReport", "report_of"]

_WIDEST = 60  # evaluations of a run whose rows are shown


@dataclass(frozen=True, kw_only=True)
class BroadcastLayer:
    """One layer: calls by what they did, over all branches.

    row: the arm of every evaluation, of the first forward in it.
    num_bytes: of one kept output; None where nothing was kept.
    reason: why the layer is not broadcast now, "" where it is.
    """

    layer: str
    kind: str
    computed: int
    reused: int
    forecast: int
    corrected: int
    row: str
    num_bytes: int | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class BroadcastReport:
    """The layers of one model; `print` shows a table.

    computed_share: calls that computed attention over all calls.
    predicted_bytes: what the plan holds at most for the branches seen; held_bytes: now;
        peak_bytes: most in this run; freed_bytes: given back so far.
    """

    model: str
    plan: str
    store: str
    layers: tuple[BroadcastLayer, ...]
    forwards: int
    evaluations: int
    branches: int
    computed_share: float
    predicted_bytes: int
    held_bytes: int
    peak_bytes: int
    freed_bytes: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"broadcast on {self.model}, {self.plan}",
            f"{self.forwards} forwards in {self.evaluations} evaluations, {self.branches} "
            f"branches; attention computed in {self.computed_share:.1%} of the calls",
            f"cache ({self.store}): predicted {_size(self.predicted_bytes)}, "
            f"peak {_size(self.peak_bytes)}, held {_size(self.held_bytes)}, "
            f"freed {_size(self.freed_bytes)}",
            *(f"note: {note}" for note in self.notes),
            *_table(self.layers),
        ]
        return "\n".join(lines)


def report_of(
    controller: Controller, model: str, store: str, reasons: Mapping[str, str]
) -> BroadcastReport:
    """The report of one model; `reasons` says of all its layers why they are not broadcast."""
    tally, cache = controller.tally, controller.cache
    counts = list(tally.arms.values())
    calls = sum(sum(arms.values()) for arms in counts)
    # a corrected call computes its operator, and no dense attention
    computed = sum(arms[COMPUTE] + arms[CORRECT] for arms in counts)
    kinds = {gate.name: gate.kind for gate in controller.gates}
    rows = (_row(controller, name, kinds.get(name, ""), why) for name, why in reasons.items())
    return BroadcastReport(
        model=model,
        plan=repr(controller.plan),
        store=store,
        layers=tuple(rows),
        forwards=tally.forwards,
        evaluations=len({i for row in tally.rows.values() for i in row}),
        branches=len(tally.branches),
        computed_share=computed / calls if calls else 1.0,
        predicted_bytes=predicted_bytes(controller.table, tally.entry_bytes, len(tally.branches)),
        held_bytes=cache.held,
        peak_bytes=cache.peak,
        freed_bytes=cache.freed,
        notes=tuple(tally.notes),
    )


def _row(controller: Controller, layer: str, kind: str, reason: str) -> BroadcastLayer:
    arms = controller.tally.arms.get(layer, {})
    seen = controller.tally.rows.get(layer, {})
    return BroadcastLayer(
        layer=layer,
        kind=kind,
        computed=arms.get(COMPUTE, 0),
        reused=arms.get(REUSE, 0),
        forecast=arms.get(FORECAST, 0),
        corrected=arms.get(CORRECT, 0),
        row="".join(seen[i] for i in sorted(seen)),
        num_bytes=controller.tally.entry_bytes.get(layer),
        reason=reason,
    )


def _table(layers: Sequence[BroadcastLayer]) -> list[str]:
    header = ("layer", "kind", "computed", "of", "bytes", LEGEND)
    return columns([header, *map(_cells, layers)])


def _cells(row: BroadcastLayer) -> tuple[str, ...]:
    total = row.computed + row.reused + row.forecast + row.corrected
    return (
        row.layer,
        row.kind,
        str(row.computed) if total else "",
        str(total) if total else "",
        "" if row.num_bytes is None else _size(row.num_bytes),
        row.reason or (row.row if len(row.row) <= _WIDEST else f"{row.row[:_WIDEST]}..."),
    )


def _size(number: int) -> str:
    """Bytes for people: 1.5 MB."""
    if number < 1000:
        return f"{number} B"
    for unit in ("kB", "MB", "GB"):
        number /= 1000
        if number < 1000 or unit == "GB":
            return f"{number:.1f} {unit}"
