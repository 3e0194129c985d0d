"""`foveate demo`: kinds of attention side by side on the embedded models."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from .models import load_model, quieten
from .options import Out, Seed, Steps, Strength, check_picture, console, parse_size, processor_of

if TYPE_CHECKING:
    from ..pipelines.demo import Summary
    from ..pipelines.step_cost import StepCost

__all__ = ["demo"]

SHOWN = ("shapes-sd", "shapes-flux")
PROMPTS = (
    "a red circle on a teal background",
    "a yellow star left of a blue square on a gray background",
    "a green triangle above a white circle on a brown background",
)


def demo(
    out: Out = Path("demo.png"),
    size: Annotated[str, typer.Option(help="Of the pictures, in pixels.", metavar="WxH")] = (
        "256x256"
    ),
    step_size: Annotated[
        str,
        typer.Option(help="Size at which a single step is timed, in pixels.", metavar="WxH"),
    ] = "512x512",
    radius: Annotated[
        int, typer.Option(help="Of local and foveated attention alike.", metavar="TOKENS")
    ] = 8,
    steps: Steps = 20,
    strength: Strength = 0.5,
    seed: Seed = 0,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="What to draw, in the words of the scenes; may be given several times. "
            "Default: three prompts.",
            metavar="TEXT",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compare dense, local and foveated attention on the embedded models.

    Draws the same prompts at one seed by each, then measures one step at a
    larger size. Writes one labelled picture, prints two tables, and writes
    their figures as .json beside the picture.
    """
    width, height = parse_size(size)
    step_width, step_height = parse_size(step_size)
    check_picture(out)
    methods = {
        "dense": None,
        f"local {radius}": processor_of("local", radius),
        f"foveated {radius}": processor_of("foveated", radius),
    }

    quieten()
    from ..pipelines.comparison_sheet import comparison_sheet
    from ..pipelines.demo import Settings, compare
    from ..pipelines.shapes.scene import parse_caption
    from ..pipelines.sizes import check_size
    from ..pipelines.step_cost import step_costs

    prompts = PROMPTS if prompt is None else prompt
    for text in prompts:
        parse_caption(text)  # refuses before a model is loaded
    drawn, costs = {}, {}
    for name in SHOWN:
        model = load_model(name, "cpu")
        check_size(model.pipe, height, width)
        check_size(model.pipe, step_height, step_width)
        settings = Settings(
            height=height,
            width=width,
            steps=steps,
            seed=seed,
            base_size=model.base_size,
            strength=strength,
            call=model.call,
        )
        drawn[name] = compare(model.pipe, methods, prompts, settings, title=f"{name}, pictures")
        costs[name] = step_costs(
            model.pipe,
            methods,
            prompts[0],
            height=step_height,
            width=step_width,
            call=model.call,
            title=f"{name}, one step",
        )
    how = f"{width}x{height} px, {steps} steps, seed {seed}"
    comparison_sheet({f"{name}: {how}": rows for name, rows in drawn.items()}).save(out)
    figures = {"pictures": _picture_rows(drawn), "one_step": _step_rows(costs)}
    about = {"size": size, "step_size": step_size, "steps": steps, "seed": seed, "prompts": prompts}
    beside = out.with_suffix(".json")
    beside.write_text(json.dumps(about | figures, indent=1) + "\n")
    console().print(_picture_table(drawn, how))
    console().print(_step_table(costs, f"one step at {step_width}x{step_height} px"))
    console().print(f"wrote {out} and {beside}")


def _picture_table(results: Mapping[str, Sequence[Summary]], title: str) -> Table:
    table = _table(title, ("seconds", "PSNR to dense", "read back"))
    for model, rows in results.items():
        for row in rows:
            psnr = f"{row.psnr:.1f} dB" if math.isfinite(row.psnr) else "same"
            back = f"{row.bind} of {len(row.drawings)}"
            table.add_row(model, row.method, f"{row.seconds:.1f}", psnr, back)
        table.add_section()
    return table


def _step_table(results: Mapping[str, Sequence[StepCost]], title: str) -> Table:
    table = _table(title, ("tokens", "keys/query", "seconds", "largest tensor"))
    for model, rows in results.items():
        for row in rows:
            largest = f"{row.largest_tensor / 1e6:.1f} MB"
            numbers = (f"{row.tokens}", f"{row.keys:.0f}", f"{row.seconds:.2f}", largest)
            table.add_row(model, row.method, *numbers)
        table.add_section()
    return table


def _table(title: str, numbers: Sequence[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("model", no_wrap=True)
    table.add_column("method", no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _picture_rows(results: Mapping[str, Sequence[Summary]]) -> list[dict[str, object]]:
    return [
        {
            "model": model,
            "method": row.method,
            "seconds": row.seconds,
            "psnr_to_dense_db": row.psnr if math.isfinite(row.psnr) else None,
            "read_back": row.bind,
        }
        for model, rows in results.items()
        for row in rows
    ]


def _step_rows(results: Mapping[str, Sequence[StepCost]]) -> list[dict[str, object]]:
    return [{"model": model, **asdict(row)} for model, rows in results.items() for row in rows]
