"""`foveate bench`: time, numerical error and work of attention operators and whole pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .bench_request import Shape, check_out, parse_device, parse_gpu, parse_models, settings_of
from .models import DTYPES, quieten
from .options import console

if TYPE_CHECKING:
    from ..pipelines.bench.gpus import GPU
    from ..pipelines.bench.parts import Part
    from ..pipelines.bench.settings import Settings

__all__ = ["bench"]


def _option(text: str, metavar: str):
    return typer.Option(help=text, metavar=metavar, show_default=False)


def bench(
    grid: Annotated[
        str | None, _option("Token grids (rows x columns), such as 32,64,128x96.", "SIDES")
    ] = None,
    radius: Annotated[str | None, _option("Radii, such as 8,16.", "TOKENS")] = None,
    heads: Annotated[int | None, _option("Heads.", "N")] = None,
    head_dim: Annotated[int | None, _option("Size of a head.", "N")] = None,
    dtype: Annotated[str | None, _option("Of queries, keys and values.", "|".join(DTYPES))] = None,
    batch: Annotated[int | None, _option("Batch.", "N")] = None,
    text: Annotated[int | None, _option("Text tokens beside the grid.", "N")] = None,
    rounds: Annotated[int | None, _option("Rounds in which all take a turn.", "N")] = None,
    threads: Annotated[int | None, _option("CPU threads.", "N")] = None,
    device: Annotated[str | None, _option("Default: an accelerator, if any.", "NAME")] = None,
    flex: Annotated[
        bool, typer.Option(help="Compile FlexAttention too, up to a minute each.")
    ] = True,
    backward: Annotated[
        bool, typer.Option("--backward", help="Time forward and backward together.")
    ] = False,
    numerics: Annotated[
        bool, typer.Option("--numerics", help="Deviation from float64, instead of time.")
    ] = False,
    pipelines: Annotated[
        str | None,
        _option("Steps of embedded models, such as sd:512,flux:1024.", "MODEL:PIXELS"),
    ] = None,
    plan: Annotated[
        str | None, _option("Work and time floor on a GPU you need not have: H100, ...", "GPU")
    ] = None,
    out: Annotated[
        Path | None, _option("Write figures (JSON), tables and plots here.", "FOLDER")
    ] = None,
    page: Annotated[
        Path | None, _option("Put the tables between their markers in a page.", "FILE")
    ] = None,
) -> None:
    """Measure attention operators against dense, FlexAttention and every peer
    installed.

    Without --numerics, --pipelines or --plan the operators are timed, in turns;
    on a GPU their numbers are checked first. Shapes not given suit the
    device.
    """
    check_out(out, page)
    device, gpu, models = parse_device(device), parse_gpu(plan), parse_models(pipelines)
    asked = {"numerics": numerics, "pipelines": models, "plan": gpu}
    parts = [name for name, value in asked.items() if value]
    if backward and parts:
        raise ValueError(f"--backward times operators, it does not go with --{parts[0]}")
    if not parts:
        parts = ["operators"] if device == "cpu" else ["numerics", "operators"]
    shape = Shape(
        grid=grid,
        radius=radius,
        heads=heads,
        head_dim=head_dim,
        dtype=dtype,
        batch=batch,
        text=text,
        rounds=rounds,
        threads=threads,
    )
    settings = {name: settings_of(name, device, flex, backward, shape) for name in parts}
    _measure(settings, models, gpu, out, page)


def _measure(
    settings: dict[str, Settings],
    models: Sequence[tuple[str, int]] | None,
    gpu: GPU | None,
    out: Path | None,
    page: Path | None,
) -> None:
    """Run the parts, print and write each as it is done; exit status 1 where numbers are wrong."""
    if models is not None:
        quieten()
    from ..pipelines.bench.parts import part_name
    from ..pipelines.bench.report import check_page, write_part

    if page is not None:
        for name, one in settings.items():
            check_page(page, part_name(name, one, gpu if name == "plan" else None))
    wrong = False
    for name, one in settings.items():
        part = _run(name, one, models, gpu)
        console().print(f"\n{part.text}\n")
        if out is not None:
            console().print(f"wrote {', '.join(map(str, write_part(part, out, page)))}")
        wrong |= bool(part.failures)
    if wrong:
        raise typer.Exit(1)


def _run(
    name: str,
    settings: Settings,
    models: Sequence[tuple[str, int]] | None,
    gpu: GPU | None,
) -> Part:
    from ..pipelines.bench import parts

    if name == "pipelines":
        return parts.pipelines_part(settings, models)
    if name == "plan":
        return parts.plan_part(settings, gpu)
    return {"numerics": parts.numerics_part, "operators": parts.operators_part}[name](settings)
