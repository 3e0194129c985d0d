"""`foveate maps`: what each phrase of a prompt is attended by, as heat maps over the picture."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cut_prompt import note_cut_prompt
from .models import load_model
from .options import ModelName, Out, Seed, Size, Steps, check_picture, console, parse_size

if TYPE_CHECKING:
    from ..attn_processors.modulation import MapStore, Scene

__all__ = ["maps"]


def maps(
    prompt: Annotated[
        str,
        typer.Option(
            help="What to draw; phrases may be marked: 'a \\[red circle]{a} on gray'.",
            metavar="TEXT",
            show_default=False,
        ),
    ],
    phrase: Annotated[
        list[str] | None,
        typer.Option(
            help="Phrase to map, may be given several times. Default: those marked, or every word.",
            metavar="TEXT",
            show_default=False,
        ),
    ] = None,
    model: ModelName = "shapes-sd",
    rows: Annotated[
        int,
        typer.Option(help="Parts of the schedule, each a row of maps.", metavar="N", min=1),
    ] = 1,
    size: Size = None,
    steps: Steps = 25,
    seed: Seed = 0,
    out: Out = Path("maps.png"),
) -> None:
    """Draw a picture and show, phrase by phrase, how much each pixel attends to it.

    Maps are means over heads, layers and the steps of their row; the number
    under a phrase is its largest value. They are exact, and are read without
    any attention matrix.
    """
    check_picture(out)
    if rows > steps:
        raise ValueError(f"--rows must be at most --steps, got {rows} rows of {steps} steps")
    asked = None if size is None else parse_size(size)
    scene = _scene(prompt, phrase or [])
    loaded = load_model(model)
    width, height = (loaded.base_size, loaded.base_size) if asked is None else asked

    import torch

    from ..attn_processors.modulation import SpanMaps, modulate
    from ..pipelines.heat_sheet import heat_sheet
    from ..pipelines.sizes import check_size

    check_size(loaded.pipe, height, width)
    note_cut_prompt(loaded.pipe, scene.prompt)
    loaded.pipe.set_progress_bar_config(desc="draw")
    with modulate(loaded.pipe, [SpanMaps(scene)]) as run:
        picture = loaded.pipe(
            scene.prompt,
            height=height,
            width=width,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            **loaded.call,
        ).images[0]
        sheet = heat_sheet(picture, _rows(run.map_store, scene, rows))
    sheet.save(out)
    count = len(scene.phrases)
    maps = "1 map" if count == 1 else f"{count} maps"
    console().print(f"drew {width}x{height} px and {maps}, wrote {out}")


def _scene(prompt: str, phrases: list[str]) -> Scene:
    """The phrases asked for: named, marked, or every word."""
    from ..attn_processors.modulation import Scene

    if phrases or "]{" in prompt:
        return Scene(prompt, phrases=phrases)
    words = re.findall(r"\w+", prompt)
    numbered = [
        word if words.count(word) == 1 else f"{word}#{words[: i + 1].count(word)}"
        for i, word in enumerate(words)
    ]
    return Scene(prompt, phrases=numbered)


def _rows(store: MapStore, scene: Scene, rows: int) -> list:
    """(label, maps) of equal parts of the schedule."""
    found = []
    for row in range(rows):
        window = (row / rows, (row + 1) / rows)
        maps = store.maps(steps=window)
        label = "all steps" if rows == 1 else f"steps {window[0]:.0%} to {window[1]:.0%}"
        found.append((label, {_name(scene, n): one[0].numpy() for n, one in maps.items()}))
    return found


def _name(scene: Scene, name: str) -> str:
    return name if name.partition("#")[0] == scene.text(name) else f"{name}: {scene.text(name)}"
