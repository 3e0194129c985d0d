"""The parts of a run: operators, numerics, pipelines, plan; each gives tables and JSON fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from .candidate import Refused
from .gpus import GPU
from .growth import exponent
from .machine import machine, slug
from .numerics import deviations, failures
from .operators import Timed, candidates, time_operators
from .plan import plan
from .settings import Settings
from .tables import (
    growth_table,
    model_table,
    numerics_table,
    operator_table,
    plan_table,
    refused_list,
)

__all__ = ["Part", "numerics_part", "operators_part", "part_name", "pipelines_part", "plan_part"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What a part found: its file name, JSON fields, Markdown, the rows to plot, what is wrong."""

    name: str
    title: str
    fields: dict[str, object]
    text: str
    timed: Sequence[Timed] = ()
    failures: Sequence[str] = ()


def part_name(part: str, settings: Settings, gpu: GPU | None = None) -> str:
    """Of the files and markers of a part: what it measures, in which type, and where."""
    if gpu is not None:
        return f"{part}-{gpu.name.lower()}"
    where = slug(settings.device, settings.threads)
    if part == "operators" and settings.backward:
        part = "backward"
    return f"{part}-{where}" if part == "pipelines" else f"{part}-{_dtype(settings)}-{where}"


def operators_part(settings: Settings) -> Part:
    """Times every implementation at every grid, forward or forward and backward."""
    rows, refused = [], []
    with settings.applied_threads():
        for grid in settings.grids:
            case = settings.case(grid)
            entries = candidates(case, settings.radii, settings.flex)
            timed, not_run = time_operators(
                case, entries, settings.rounds, settings.threads, backward=settings.backward
            )
            rows += timed
            refused += not_run
            # what was compiled for this grid is of no use for the next
            torch.compiler.reset()
    growth = _growth(rows)
    tables = [operator_table(rows), growth_table(growth) if growth else "", _refusals(refused)]
    fields = {
        "rows": [asdict(row) for row in rows],
        "growth": growth,
        "refused": [one._asdict() for one in refused],
    }
    return _part("operators", settings, fields, tables, timed=rows)


def numerics_part(settings: Settings) -> Part:
    """Compares every implementation with float64 at every grid."""
    rows, refused = [], []
    with settings.applied_threads():
        for grid in settings.grids:
            case = settings.case(grid)
            entries = candidates(case, settings.radii, settings.flex)
            measured, not_run = deviations(case, entries)
            rows += measured
            refused += not_run
            torch.compiler.reset()
    wrong = failures(rows, refused)
    verdict = "\n".join(f"- WRONG: {line}" for line in wrong) or (
        "Every operator of foveate is within twice the error of plain PyTorch in the same type."
    )
    fields = {
        "rows": [asdict(row) for row in rows],
        "failures": wrong,
        "refused": [one._asdict() for one in refused],
    }
    tables = [numerics_table(rows), verdict, _refusals(refused)]
    return _part("numerics", settings, fields, tables, wrong=wrong)


def pipelines_part(settings: Settings, models: Sequence[tuple[str, int]]) -> Part:
    """One step of embedded models, given as (name, pixels)."""
    from .models import time_models  # loads diffusers, which the other parts do not need

    rows = []
    with settings.applied_threads():
        for name, pixels in models:
            rows += time_models(name, pixels, settings.radii, settings.rounds, settings.device)
    fields = {"rows": [asdict(row) for row in rows]}
    return _part("pipelines", settings, fields, [model_table(rows)])


def plan_part(settings: Settings, gpu: GPU) -> Part:
    """Counts the work at every grid; nothing runs."""
    rows = []
    for grid in tqdm(settings.grids, desc="counting"):
        rows += plan(settings.case(grid), settings.radii, gpu)
    about = {"gpu": gpu.name, **_shape(settings), "measured": False}
    title = f"A model of the {gpu.name}, not a measurement; {_shape_text(settings)}."
    return Part(
        name=part_name("plan", settings, gpu),
        title=title,
        fields={"about": about, "rows": [asdict(row) for row in rows]},
        text=f"{title}\n\n{plan_table(rows)}",
    )


def _part(part, settings, fields, tables, *, timed=(), wrong=()) -> Part:
    on = machine(settings.device, settings.threads)
    shape = {} if part == "pipelines" else _shape(settings)
    title = ", ".join(f"{key} {value}" for key, value in on.items())
    title += f"; {_shape_text(settings)}" if shape else ""
    title += "; forward and backward." if settings.backward else "."
    return Part(
        name=part_name(part, settings),
        title=title,
        fields={"about": on | shape | {"backward": settings.backward, "measured": True}, **fields},
        text="\n\n".join([title, *filter(None, tables)]),
        timed=timed,
        failures=wrong,
    )


def _growth(rows: Sequence[Timed]) -> list[dict[str, object]]:
    found = []
    for method, impl in dict.fromkeys((row.method, row.impl) for row in rows):
        own = [row for row in rows if (row.method, row.impl) == (method, impl)]
        tokens = [row.tokens for row in own]
        power = exponent(tokens, [row.seconds for row in own])
        if power is not None:
            span = {"from_tokens": min(tokens), "to_tokens": max(tokens)}
            found.append({"method": method, "impl": impl, "exponent": power, **span})
    return found


def _refusals(refused: Sequence[Refused]) -> str:
    return f"Did not run:\n\n{refused_list(refused)}" if refused else ""


def _shape(settings: Settings) -> dict[str, object]:
    return {
        "batch": settings.batch,
        "heads": settings.heads,
        "head_dim": settings.head_dim,
        "dtype": _dtype(settings),
        "text": settings.text,
    }


def _shape_text(settings: Settings) -> str:
    shape = _shape(settings)
    text = "{dtype}, batch {batch}, {heads} heads of {head_dim}, {text} text tokens"
    return text.format(**shape)


def _dtype(settings: Settings) -> str:
    return str(settings.dtype).removeprefix("torch.")
