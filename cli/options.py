"""Options that several commands share, and how what is typed becomes what the package takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console

from .models import DTYPES

if TYPE_CHECKING:
    from ..attn_processors.base import AttnProcessor

__all__ = [
    "ATTENTION",
    "Device",
    "Dtype",
    "ModelName",
    "Out",
    "Seed",
    "Size",
    "Steps",
    "Strength",
    "check_file",
    "check_matplotlib",
    "check_picture",
    "console",
    "parse_grids",
    "parse_list",
    "parse_size",
    "processor_of",
    "whole_number",
]

Item = TypeVar("Item")

ATTENTION = ("dense", "local", "foveated")

Out = Annotated[Path, typer.Option(help="Picture to write.", metavar="FILE")]
Steps = Annotated[int, typer.Option(help="Denoising steps.", metavar="N", min=1)]
Strength = Annotated[
    float,
    typer.Option(help="How far back to noise an enlarged picture goes, in (0, 1].", metavar="X"),
]
Size = Annotated[
    str | None,
    typer.Option(help="Pixels. Default: the model's base size.", metavar="WxH", show_default=False),
]
ModelName = Annotated[
    str,
    typer.Option(
        help="shapes-sd, shapes-sd-bow, shapes-flux, or a folder that save_pretrained wrote.",
        metavar="NAME|PATH",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Default: an accelerator, if there is one.", metavar="NAME", show_default=False
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Default: float32 on the CPU, else bfloat16.",
        metavar="|".join(DTYPES),
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of the noise.", metavar="N", min=0)]


def console(*, stderr: bool = False) -> Console:
    """Where a command prints; text is shown as it is, and lines are left to the terminal."""
    return Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False)


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of "256x192"."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text.strip().lower())
    if found is None:
        raise ValueError(f"--size must be WIDTHxHEIGHT in pixels, such as 256x192, got {text!r}")
    return int(found[1]), int(found[2])


def parse_grids(text: str | None) -> tuple[tuple[int, int], ...] | None:
    """(rows, columns) of "32,128x96", each once."""
    grids = parse_list("--grid", "sides in tokens such as 32,64,128x96", text, _grid)
    if grids is not None and len(set(grids)) < len(grids):
        raise ValueError(f"--grid names one twice: {text!r}")
    return grids


def parse_list(
    option: str, example: str, text: str | None, read: Callable[[str], Item | None]
) -> tuple[Item, ...] | None:
    """The items of a text, between commas or spaces; `read` gives None for what is none."""
    if text is None:
        return None
    items = tuple(read(word) for word in re.split(r"[,\s]+", text.strip()))
    if None in items:
        raise ValueError(f"{option} must be {example}; got {text!r}")
    return items


def whole_number(word: str) -> int | None:
    """1 or more; None for other words."""
    return int(word) if re.fullmatch(r"[1-9]\d*", word) else None


def _grid(word: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", word.lower())
    return None if found is None else (int(found[1]), int(found[2] or found[1]))


def processor_of(attention: str, radius: int | None) -> AttnProcessor | None:
    """The processor of a kind of attention, None for the pipeline's own."""
    if attention not in ATTENTION:
        raise ValueError(f"--attention must be {', '.join(ATTENTION)}, got {attention!r}")
    if attention == "dense":
        if radius is not None:
            raise ValueError("--radius is for local and foveated attention; dense sees everything")
        return None
    from ..attn_processors import FoveatedAttnProcessor, LocalAttnProcessor

    kind = {"local": LocalAttnProcessor, "foveated": FoveatedAttnProcessor}[attention]
    return kind() if radius is None else kind(radius=radius)


def check_picture(out: Path) -> None:
    """Before minutes are spent: a file that can be made, in a format that can be written."""
    from PIL import Image

    check_file("--out", out)
    if Image.registered_extensions().get(out.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"--out must end in .png or another picture format, got {out.name!r}")


def check_file(option: str, path: Path) -> None:
    """Before minutes are spent: a file that can be made."""
    if not path.parent.is_dir():
        raise ValueError(f"{option} names a folder that does not exist: {path.parent}")
    if path.is_dir():
        raise ValueError(f"{option} must be a file, and {path} is a folder")


def check_matplotlib(option: str) -> None:
    """Before minutes are spent."""
    if find_spec("matplotlib") is None:
        raise ValueError(f"{option} draws plots with matplotlib: pip install matplotlib")
