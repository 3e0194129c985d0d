"""Time, and speed against dense attention, over the number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from PIL import Image

from .operators import Timed
from .own import DENSE

__all__ = ["plot_operators"]


def plot_operators(rows: Sequence[Timed], title: str, path: Path) -> None:
    """Write a PNG: two panels, logarithmic, a line for each implementation."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    colours = colormaps["tab20"].colors
    figure = Figure(figsize=(11, 5), layout="constrained")
    times, speeds = figure.subplots(1, 2)
    for number, name in enumerate(dict.fromkeys((row.method, row.impl) for row in rows)):
        own = [row for row in rows if (row.method, row.impl) == name]
        tokens = [row.tokens for row in own]
        style = {
            "color": colours[number % len(colours)],
            "linestyle": _style(*name),
            "marker": "os^v"[number // len(colours) % 4],
            "markersize": 4,
            "label": f"{name[0]} ({name[1]})",
        }
        times.plot(tokens, [row.seconds for row in own], **style)
        speeds.plot(tokens, [row.speed or float("nan") for row in own], **style)
    for axes, label in ((times, "seconds"), (speeds, "times faster than dense")):
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
        axes.grid(which="both", alpha=0.2)
    handles, labels = times.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    figure.suptitle(fill(title, 140), fontsize=9)
    figure.savefig(path, dpi=80)
    # a palette makes the file a third as large
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


def _style(method: str, impl: str) -> str:
    if method == DENSE:
        return "-."
    return "-" if impl in ("torch", "triton") else ":"
