"""`foveate tune`: time the Triton kernels' tiles on this GPU and keep the fastest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from .bench_request import parse_device
from .models import DTYPES
from .options import Device, console, parse_grids, parse_list, whole_number

if TYPE_CHECKING:
    import torch

    from ..pipelines.tune.case import Case
    from ..pipelines.tune.tuner import Tuned

__all__ = ["tune"]

_ROUNDS = 30
_WITHOUT = "foveate tune --dry-run lists the candidates without one"


def tune(
    kernels: Annotated[
        str | None,
        typer.Option(
            help="Of local, foveated, neighborhood, window, flash, linear. Default: all.",
            metavar="NAMES",
            show_default=False,
        ),
    ] = None,
    head_dims: Annotated[str, typer.Option(help="Sizes of a head.", metavar="NUMBERS")] = "64,128",
    dtypes: Annotated[
        str,
        typer.Option(
            help=f"Of {', '.join(DTYPES)}; the last two share their tiles.", metavar="NAMES"
        ),
    ] = "bfloat16",
    grid: Annotated[
        str, typer.Option(help="Token grid (rows x columns) that is timed.", metavar="SIDES")
    ] = "64",
    heads: Annotated[int, typer.Option(help="Heads that are timed.", metavar="N", min=1)] = 24,
    device: Device = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the candidates, time nothing.")
    ] = False,
    architecture: Annotated[
        str | None,
        typer.Option(
            help="With --dry-run, of another GPU: sm_90, gfx942, ...",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Time candidate tiles of the Triton kernels on this GPU and keep the fastest.

    Processes that start later use what is written; remove the file, or point
    FOVEATE_TUNE_CACHE at none, to go back to the tiles that are shipped.
    Takes minutes: every candidate is compiled.
    """
    from ..kernels.inputs import HAS_TRITON

    if not HAS_TRITON:
        raise ValueError("foveate tune needs Triton, which is not installed: pip install triton")
    operators, dims, types = _operators(kernels), _dims(head_dims), _dtypes(dtypes)
    grids = parse_grids(grid)
    if len(grids) > 1:
        raise ValueError(f"--grid must be one, since tiles do not depend on it, got {grid!r}")
    if architecture is not None and not dry_run:
        raise ValueError("--architecture goes with --dry-run; kernels are timed on this GPU")
    device = parse_device(device)
    architecture = _architecture(device, architecture, dry_run)

    from ..pipelines.tune.case import Shape
    from ..pipelines.tune.cases import cases_of

    shape = Shape(device=device, heads=heads, grid=grids[0])
    cases = [
        case
        for operator in operators
        for dim in dims
        for dtype in types
        for case in cases_of(operator, architecture, dtype, dim, shape)
    ]
    if dry_run:
        _list(cases)
    else:
        _time(cases, device)


def _operators(text: str | None) -> Sequence[str]:
    from ..pipelines.tune.cases import OPERATORS

    names = set(OPERATORS)
    found = parse_list(
        "--kernels", f"of {', '.join(OPERATORS)}", text, lambda x: x if x in names else None
    )
    return OPERATORS if found is None else [name for name in OPERATORS if name in found]


def _dims(text: str) -> Sequence[int]:
    dims = parse_list("--head-dims", "sizes such as 64,128", text, whole_number)
    if max(dims) > 160:
        raise ValueError(f"--head-dims must be at most 160, which the kernels take, got {text!r}")
    return sorted(set(dims))


def _dtypes(text: str) -> Sequence[torch.dtype]:
    import torch

    names = parse_list(
        "--dtypes", f"of {', '.join(DTYPES)}", text, lambda x: x if x in DTYPES else None
    )
    if {"bfloat16", "float16"} <= {*names}:
        raise ValueError(f"--dtypes must name one of bfloat16 and float16, got {text!r}")
    return [getattr(torch, name) for name in DTYPES if name in names]


def _architecture(device: str, asked: str | None, dry_run: bool) -> str:
    """What is tuned for; raises ValueError where nothing can be timed."""
    import torch

    from ..kernels.triton.device import target, why_not_device
    from ..kernels.triton.variants import ARCHITECTURES

    if asked is not None:
        if asked not in ARCHITECTURES:
            raise ValueError(f"--architecture must be {', '.join(ARCHITECTURES)}, got {asked!r}")
        return asked
    if device.partition(":")[0] == "cuda":
        if not dry_run and (reason := why_not_device(torch.device(device))):
            raise ValueError(
                f"foveate tune cannot time the kernels on this GPU: {reason}; {_WITHOUT}"
            )
        return target(torch.device(device))
    if dry_run:
        raise ValueError(
            f"there is no GPU here: --architecture must say for which, {', '.join(ARCHITECTURES)}"
        )
    raise ValueError(
        f"tune times kernels on a GPU (CUDA or ROCm), got device {device!r}; {_WITHOUT}"
    )


def _list(cases: Sequence[Case]) -> None:
    from ..kernels.triton.tuned import cache_path
    from ..pipelines.tune.tuner import describe

    out = console()
    for case in cases:
        out.print(case.slot.key)
        for tiles in case.candidates:
            out.print(f"  {describe(tiles)}{' (shipped)' * (tiles == case.slot.shipped)}")
    number = sum(len(case.candidates) for case in cases)
    out.print(f"{len(cases)} kernels, {number} candidates; the fastest would go to {cache_path()}")


def _time(cases: Sequence[Case], device: str) -> None:
    """Keeps the fastest of each kernel as soon as it is known."""
    import torch

    from ..kernels.triton.tuned import cache_path, summary
    from ..pipelines.bench.timing import stopwatch
    from ..pipelines.tune.tuner import keep, tune

    out, path = console(), cache_path()
    seconds_of = stopwatch(device, 1)
    with torch.cuda.device(device):
        for number, case in enumerate(cases, start=1):
            tuned = tune(case, seconds_of, _ROUNDS)
            keep(path, case.slot, tuned, torch.cuda.get_device_name(device))
            _say(f"[{number}/{len(cases)}] {case.slot.key}", tuned)
    out.print(f"tiles: {summary(cases[0].slot.architecture)}")
    out.print("processes that start now use them; remove the file to go back to the shipped tiles")


def _say(label: str, tuned: Tuned) -> None:
    from ..pipelines.tune.tuner import describe

    fastest = tuned.fastest
    shipped, best = (1e3 * tuned.seconds[tiles] for tiles in (tuned.shipped, fastest))
    what = "the shipped tiles" if fastest == tuned.shipped else describe(fastest)
    console().print(f"{label}: {best:.4g} ms, shipped {shipped:.4g} ms ({tuned.gain:.2f}x): {what}")
    for tiles, reason in tuned.skipped.items():
        console().print(f"  skipped {describe(tiles)}: {reason}")
