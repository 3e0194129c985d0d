"""`foveate info`: what is installed, on what it can run, what can be applied to what."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich import box
from rich.table import Table

from .models import EMBEDDED, devices, quieten
from .options import console

__all__ = ["info"]


def info() -> None:
    """Show versions, devices, processors and embedded models."""
    import torch

    quieten()
    for table in (_versions(), _processors(), _models()):
        console().print(table)
    console().print(f"devices: {', '.join(devices())} ({torch.get_num_threads()} threads)")


def _versions() -> Table:
    table = Table("package", "version", box=box.SIMPLE_HEAD)
    table.add_row("python", platform.python_version())
    for name in ("foveate", "torch", "diffusers", "transformers", "triton"):
        try:
            table.add_row(name, version(name))
        except PackageNotFoundError:
            table.add_row(name, "not installed")
    return table


def _processors() -> Table:
    from .. import attn_processors

    table = Table("processor", "what a query sees", box=box.SIMPLE_HEAD)
    for name in attn_processors.__all__:
        if name.endswith("AttnProcessor"):
            summary, _, _ = getattr(attn_processors, name).__doc__.partition("\n\n")
            table.add_row(name, " ".join(summary.split()))
    return table


def _models() -> Table:
    from ..pipelines.shapes.load import MODELS, weights_folder

    table = Table("embedded model", "base size", "figures", box=box.SIMPLE_HEAD)
    for name, short in EMBEDDED.items():
        figures = _card(weights_folder(short))
        table.add_row(name, f"{MODELS[short].base_size} px", figures)
    return table


def _card(folder: Path) -> str:
    """The means of a model card, one line."""
    if not (folder / "model_index.json").is_file():
        return "weights missing"
    card = folder / "card.json"
    if not card.is_file():
        return "no card"
    figures = json.loads(card.read_text())["figures"]
    shown = ("BIND 1", "BIND 2", "BIND 3", "REL")
    return ", ".join(f"{key}: {figures[key]['mean']:.0%}" for key in shown if key in figures)
