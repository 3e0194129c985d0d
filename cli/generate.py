"""`foveate generate`: one picture, from an embedded model or any diffusers folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from .cut_prompt import note_cut_prompt
from .models import load_model
from .options import (
    ATTENTION,
    Device,
    Dtype,
    ModelName,
    Out,
    Seed,
    Size,
    Steps,
    Strength,
    check_picture,
    console,
    parse_size,
    processor_of,
)

__all__ = ["generate"]


def generate(
    prompt: Annotated[str, typer.Option(help="What to draw.", metavar="TEXT", show_default=False)],
    model: ModelName = "shapes-sd",
    attention: Annotated[
        str, typer.Option(help="What an image token sees.", metavar="|".join(ATTENTION))
    ] = "dense",
    radius: Annotated[
        int | None,
        typer.Option(
            help="Distance up to which tokens are seen one by one. Default: 16 local, 8 foveated.",
            metavar="TOKENS",
            show_default=False,
        ),
    ] = None,
    size: Size = None,
    base_size: Annotated[
        int | None,
        typer.Option(
            help="Side of the pictures the model draws best; larger ones grow in stages. "
            "Default: what the model says.",
            metavar="PIXELS",
            min=1,
            show_default=False,
        ),
    ] = None,
    strength: Strength = 0.5,
    steps: Steps = 25,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("picture.png"),
) -> None:
    """Draw one picture and say what ran in each layer.

    Above the model's base size the picture grows in stages: low resolution
    first, with dense attention, then enlarged, re-noised and drawn finer
    with the attention asked for.
    """
    processor = processor_of(attention, radius)
    check_picture(out)
    asked = None if size is None else parse_size(size)
    loaded = load_model(model, device, dtype)

    import torch

    from ..pipelines.progressive import progressive

    note_cut_prompt(loaded.pipe, prompt)
    base = loaded.base_size if base_size is None else base_size
    width, height = (base, base) if asked is None else asked
    start = time.perf_counter()
    drawn = progressive(
        loaded.pipe,
        prompt,
        height=height,
        width=width,
        steps=steps,
        base_size=base,
        strength=strength,
        attention=processor,
        generator=torch.Generator().manual_seed(seed),
        call=loaded.call,
    )
    seconds = time.perf_counter() - start
    drawn.images[0].save(out)
    stages = ", then ".join(f"{w}x{h}" for h, w in drawn.sizes)
    ran = "stock attention in every layer" if drawn.report is None else str(drawn.report)
    console().print(ran)
    console().print(f"drew {stages} px in {seconds:.1f} s, wrote {out}")
