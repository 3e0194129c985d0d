"""`foveate calibrate`: measure a model and write the plan that `foveate.broadcast` follows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .models import load_model
from .options import (
    Device,
    Dtype,
    ModelName,
    Seed,
    Size,
    Steps,
    check_file,
    check_matplotlib,
    console,
    parse_size,
)

__all__ = ["calibrate"]

_SHARE = "a share of 0 to 1"


def calibrate(
    prompts: Annotated[
        Path,
        typer.Option(
            help="Text file, a prompt a line: 4 to 8 to measure on.",
            metavar="FILE",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Plan to write (JSON).", metavar="FILE")] = Path(
        "plan.json"
    ),
    model: ModelName = "shapes-sd",
    held_out: Annotated[
        Path | None,
        typer.Option(
            help="Text file of other prompts, to check the plan on.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    calls: Annotated[
        float | None,
        typer.Option(help=f"Attention calls that compute, {_SHARE}.", metavar="X", min=0, max=1),
    ] = None,
    cost: Annotated[
        float | None,
        typer.Option(help=f"Attention time that is spent, {_SHARE}.", metavar="X", min=0, max=1),
    ] = None,
    psnr: Annotated[
        float | None,
        typer.Option(help="Reach this against dense on the held-out prompts.", metavar="DB"),
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(help="Of the cache, for one picture and one branch.", metavar="N", min=0),
    ] = None,
    forecast: Annotated[
        bool, typer.Option(help="Extrapolate outputs where that is nearer than reusing them.")
    ] = True,
    refine: Annotated[
        int, typer.Option(help="Runs in which rows near the best ones are tried.", min=0)
    ] = 40,
    size: Size = None,
    steps: Steps = 25,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            help="Folder for pictures of the curves and the plan.",
            metavar="FOLDER",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure which attention outputs may be reused or forecast, and write the
    plan.

    Give one of --calls, --cost and --psnr; without any, half of the calls
    compute. Takes about two thirds of a run for each step and kind of
    layer, and those of --refine: minutes on the embedded models.
    """
    measured, checked = _lines("--prompts", prompts), _lines("--held-out", held_out)
    check_file("--out", out)
    if plots is not None:
        check_matplotlib("--plots")
        if not plots.is_dir():
            raise ValueError(f"--plots names a folder that does not exist: {plots}")
    if (calls, cost, psnr) == (None, None, None):
        calls = 0.5
    loaded = load_model(model, device, dtype)

    from ..pipelines.broadcast import calibrate as measure
    from ..pipelines.sizes import check_size

    width, height = (loaded.base_size,) * 2 if size is None else parse_size(size)
    check_size(loaded.pipe, height, width)
    plan = measure(
        loaded.pipe,
        measured,
        steps=steps,
        calls=calls,
        cost=cost,
        psnr_goal=psnr,
        held_out=checked,
        forecast=forecast,
        refine=refine,
        max_bytes=max_bytes,
        call={**loaded.call, "height": height, "width": width},
        seed=seed,
    )
    plan.save(out)
    console().print(plan.describe())
    if plots is not None:
        _plot(plan, plots)
    console().print(f"wrote {out}; use it with foveate.broadcast(pipe, {str(out)!r})")


def _lines(option: str, path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{option}: {path} is no text file") from error
    if not lines:
        raise ValueError(f"{option}: {path} has no prompts")
    return lines


def _plot(plan, folder: Path) -> None:
    from ..pipelines.broadcast.plots import plot_curves, plot_rows

    plot_curves(plan, folder / "curves.png")
    plot_rows(plan, folder / "plan.png")
