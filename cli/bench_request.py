"""What was typed for `foveate bench`, checked, as what the package takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .models import DTYPES, devices
from .options import check_matplotlib, parse_grids, parse_list, whole_number

if TYPE_CHECKING:
    import torch

    from ..pipelines.bench.gpus import GPU
    from ..pipelines.bench.settings import Settings

__all__ = [
    "Shape",
    "check_out",
    "parse_device",
    "parse_gpu",
    "parse_models",
    "settings_of",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The options of a shape as they were typed; None is what suits the device."""

    grid: str | None
    radius: str | None
    heads: int | None
    head_dim: int | None
    dtype: str | None
    batch: int | None
    text: int | None
    rounds: int | None
    threads: int | None


def settings_of(part: str, device: str, flex: bool, backward: bool, shape: Shape) -> Settings:
    """The settings of a part: its defaults for the device, and what was asked for."""
    import torch

    from ..pipelines.bench.settings import DEFAULTS

    kind = "cpu" if device == "cpu" and part != "plan" else "gpu"
    asked = {
        "grids": parse_grids(shape.grid),
        "radii": parse_list("--radius", "such as 8,16", shape.radius, whole_number),
        "dtype": _dtype(shape.dtype),
        "threads": torch.get_num_threads() if shape.threads is None else shape.threads,
    }
    for name in ("heads", "head_dim", "batch", "text", "rounds"):
        asked[name] = getattr(shape, name)
    given = {name: value for name, value in asked.items() if value is not None}
    backward = backward and part == "operators"
    return replace(DEFAULTS[part, kind], device=device, flex=flex, backward=backward, **given)


def parse_device(name: str | None) -> str:
    """A device that PyTorch can use here."""
    present = devices()
    if name is None:
        return present[0]
    if name.partition(":")[0] not in present:
        raise ValueError(f"--device must be {', '.join(present)} here, got {name!r}")
    return name


def parse_gpu(name: str | None) -> GPU | None:
    """A GPU whose data sheet is known."""
    if name is None:
        return None
    from ..pipelines.bench.gpus import GPUS

    known = {gpu.name: gpu for gpu in GPUS}
    if name.upper() not in known:
        raise ValueError(f"--plan must be {', '.join(known)}, got {name!r}")
    return known[name.upper()]


def parse_models(text: str | None) -> Sequence[tuple[str, int]] | None:
    """(model, pixels) of "sd:512,flux:1024"."""
    return parse_list("--pipelines", "such as sd:512,flux:1024", text, _model)


def check_out(out: Path | None, page: Path | None) -> None:
    """Before minutes are spent: a folder that can be made, and what draws the plots."""
    if page is not None and out is None:
        raise ValueError("--page needs --out: figures and plots go into its folder")
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}")
    check_matplotlib("--out")


def _model(word: str) -> tuple[str, int] | None:
    found = re.fullmatch(r"(?:shapes-)?(sd|flux):([1-9]\d*)", word)
    return None if found is None else (found[1], int(found[2]))


def _dtype(name: str | None) -> torch.dtype | None:
    import torch

    if name not in (None, *DTYPES):
        raise ValueError(f"--dtype must be {', '.join(DTYPES)}, got {name!r}")
    return None if name is None else getattr(torch, name)
