"""Figures as Markdown: one table a part, columns that nothing fills left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from .candidate import Refused
from .numerics import Deviation
from .operators import Timed
from .plan import Plan

if TYPE_CHECKING:
    from .models import ModelStep

__all__ = [
    "growth_table",
    "model_table",
    "numerics_table",
    "operator_table",
    "plan_table",
    "refused_list",
]

Row = TypeVar("Row")
Cells = Mapping[str, Callable[[Row], str]]


def operator_table(rows: Sequence[Timed]) -> str:
    """A row for each implementation at each grid."""
    cells: Cells[Timed] = {
        "grid": lambda r: r.grid,
        "method": lambda r: r.method,
        "by": lambda r: r.impl,
        "ms": lambda r: _ms(r.seconds),
        "quartiles": lambda r: f"{_ms(r.low)} - {_ms(r.high)}",
        "speed": lambda r: _if(r.speed, "{:.2f}x" if (r.speed or 0) < 9.995 else "{:.1f}x"),
        "keys needed": lambda r: f"{r.needed:.0f}",
        "visited": lambda r: _if(r.visited, "{:.0f}"),
        "mask, s": lambda r: _if(r.mask_seconds, "{:.2f}"),
        "preparation, s": lambda r: _if(r.preparation_seconds, "{:.1f}"),
        "TFLOP/s": lambda r: f"{r.flops_per_second / 1e12:.3g}",
        "of the roofline": lambda r: _if(r.roofline, "{:.0%}"),
        "peak, MB": lambda r: _if(None if r.peak_bytes is None else r.peak_bytes / 1e6, "{:.0f}"),
    }
    return _markdown(rows, cells)


def growth_table(growth: Sequence[Mapping[str, object]]) -> str:
    """Exponents, the slowest growth first."""
    cells: Cells[Mapping[str, object]] = {
        "method": lambda r: str(r["method"]),
        "by": lambda r: str(r["impl"]),
        "tokens": lambda r: f"{r['from_tokens']} to {r['to_tokens']}",
        "time grows as": lambda r: f"N^{r['exponent']:.2f}",
    }
    return _markdown(sorted(growth, key=lambda r: r["exponent"]), cells)


def numerics_table(rows: Sequence[Deviation]) -> str:
    """Relative rms, a column for each scale."""
    scales = sorted({row.scale for row in rows})
    by = {(r.grid, r.method, r.impl, r.scale): r for r in rows}
    cells: Cells[Deviation] = {
        "grid": lambda r: r.grid,
        "method": lambda r: r.method,
        "by": lambda r: r.impl,
    }
    for s in scales:
        cells[f"scale {s:g}"] = lambda r, s=s: f"{by[r.grid, r.method, r.impl, s].relative_rms:.1e}"
    return _markdown([row for row in rows if row.scale == scales[0]], cells)


def plan_table(rows: Sequence[Plan]) -> str:
    """A row for each method at each grid."""
    cells: Cells[Plan] = {
        "grid": lambda r: r.grid,
        "method": lambda r: r.method,
        "keys needed": lambda r: f"{r.needed:.0f}",
        "visited": lambda r: f"{r.visited:.0f}",
        "useful": lambda r: f"{r.needed / r.visited:.0%}",
        "TFLOP": lambda r: f"{r.flops / 1e12:.3g}",
        "MB": lambda r: f"{r.num_bytes / 1e6:.0f}",
        "floor, ms (model)": lambda r: f"{r.floor_ms:.3g}",
        "bound by": lambda r: r.bound,
    }
    return _markdown(rows, cells)


def model_table(rows: Sequence[ModelStep]) -> str:
    """A row for each method on each model and size."""
    cells: Cells[ModelStep] = {
        "model": lambda r: r.model,
        "px": lambda r: str(r.pixels),
        "attention": lambda r: r.method,
        "tokens": lambda r: str(r.tokens),
        "s/step": lambda r: f"{r.seconds:.2f}",
        "speed": lambda r: f"{r.speed:.1f}x",
        "keys a query": lambda r: f"{r.keys:.0f}",
        "largest tensor, MB": lambda r: f"{r.largest_tensor / 1e6:.1f}",
    }
    return _markdown(rows, cells)


def refused_list(refused: Sequence[Refused]) -> str:
    """A line for each implementation and reason, with the methods and grids it stands for."""
    groups: dict[tuple[str, str], list[Refused]] = {}
    for one in refused:
        groups.setdefault((one.impl, one.reason), []).append(one)
    lines = []
    for (impl, reason), ones in groups.items():
        methods = "; ".join(dict.fromkeys(one.method for one in ones))
        grids = ", ".join(dict.fromkeys(one.grid for one in ones))
        lines.append(f"- {impl} ({methods}; {grids}): {reason}")
    return "\n".join(lines)


def _markdown(rows: Sequence[Row], cells: Cells[Row]) -> str:
    columns = [[name, *(cell(row) for row in rows)] for name, cell in cells.items()]
    columns = [column for column in columns if any(column[1:])]
    for column in columns:
        width = max(map(len, column))
        column[:] = [text.ljust(width) for text in column]
        column.insert(1, "-" * width)
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


def _if(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
