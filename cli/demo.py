"""`foveate demo`: kinds of attention side by side on the embedded models."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from .models import EMBEDDED, load_model
from .options import Out, Seed, Steps, check_writable, console, parse_size, processor_of

if TYPE_CHECKING:
    from ..pipelines.demo import Summary

__all__ = ["demo"]

PROMPTS = (
    "a red circle on a teal background",
    "a yellow star left of a blue square on a gray background",
    "a green triangle above a white circle on a brown background",
)


def demo(
    out: Out = Path("demo.png"),
    size: Annotated[str, typer.Option(help="Pixels.", metavar="WxH")] = "256x256",
    radius: Annotated[
        int, typer.Option(help="Of local and foveated attention alike.", metavar="TOKENS")
    ] = 8,
    steps: Steps = 25,
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

    Writes one labelled picture, prints a table, and writes its figures as .json beside the picture.
    """
    width, height = parse_size(size)
    check_writable(out)
    methods = {
        "dense": None,
        f"local {radius}": processor_of("local", radius),
        f"foveated {radius}": processor_of("foveated", radius),
    }

    from ..pipelines.comparison_sheet import comparison_sheet
    from ..pipelines.demo import Settings, compare
    from ..pipelines.shapes.scene import parse_caption

    prompts = PROMPTS if prompt is None else prompt
    for text in prompts:
        parse_caption(text)  # refuses before a model is loaded
    results = {}
    for name in EMBEDDED:
        model = load_model(name, "cpu")
        settings = Settings(
            height=height,
            width=width,
            steps=steps,
            seed=seed,
            base_size=model.base_size,
            call=model.call,
        )
        results[name] = compare(model.pipe, prompts, methods, settings, title=name)
    how = f"{width}x{height} px, {steps} steps, seed {seed}"
    comparison_sheet({f"{name}: {how}": rows for name, rows in results.items()}).save(out)
    figures = out.with_suffix(".json")
    figures.write_text(json.dumps(_figures(results, how), indent=1) + "\n")
    console().print(_table(results, how))
    console().print(f"wrote {out} and {figures}")


def _table(results: Mapping[str, Sequence[Summary]], how: str) -> Table:
    table = Table(title=how, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("model", no_wrap=True)
    table.add_column("method", no_wrap=True)
    for name in ("tokens", "keys/\nquery", "seconds"):
        table.add_column(name, justify="right")
    for name in ("largest\ntensor MB", "PSNR to\ndense dB", "BIND"):
        table.add_column(name, justify="right")
    for model, rows in results.items():
        for row in rows:
            table.add_row(
                model,
                row.method,
                f"{row.tokens}",
                f"{row.keys:.0f}",
                f"{row.seconds:.1f}",
                f"{row.largest_tensor / 1e6:.1f}",
                f"{row.psnr:.1f}" if math.isfinite(row.psnr) else "same",
                f"{sum(drawing.bind for drawing in row.drawings)}/{len(row.drawings)}",
            )
        table.add_section()
    return table


def _figures(results: Mapping[str, Sequence[Summary]], how: str) -> dict[str, object]:
    rows = [
        {
            "model": model,
            "method": row.method,
            "tokens": row.tokens,
            "keys_per_query": row.keys,
            "seconds": row.seconds,
            "largest_tensor_bytes": row.largest_tensor,
            "psnr_to_dense_db": row.psnr if math.isfinite(row.psnr) else None,
            "bind": row.bind,
        }
        for model, summaries in results.items()
        for row in summaries
    ]
    prompts = [drawing.prompt for drawing in next(iter(results.values()))[0].drawings]
    return {"how": how, "prompts": prompts, "rows": rows}
