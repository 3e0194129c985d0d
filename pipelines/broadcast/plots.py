"""Pictures of a calibration: the curves of each kind of layer, and the plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ...attn_processors.broadcast.calibrated import CalibratedPlan
from ...attn_processors.broadcast.schedule import Schedule
from ...kernels.broadcast import ARMS, COMPUTE, FORECAST, REUSE

__all__ = ["plot_curves", "plot_rows"]

_COLOURS = {COMPUTE: "#1f3b57", REUSE: "#f2c14e", FORECAST: "#7fb069"}
_NAMES = {COMPUTE: "computed", REUSE: "reused", FORECAST: "forecast"}


def plot_curves(plan: CalibratedPlan, path: Path) -> None:
    """Write a PNG: difference to the evaluation before, and what it does to the latent, by kind."""
    from matplotlib.figure import Figure

    curves = plan.curves
    figure = Figure(figsize=(10, 4), layout="constrained")
    moved, felt = figure.subplots(1, 2)
    every = np.arange(len(curves.timesteps))
    for number, kind in enumerate(curves.weight):
        own = [i for i, k in enumerate(curves.layers.values()) if k == kind]
        style = {"color": f"C{number}"}
        for errors, line, name in (
            (curves.reuse[own, :, 0], "-", "reuse"),
            (curves.forecast[own, :, 0, 0], ":", "forecast"),
        ):
            shown = np.where(np.isfinite(errors), errors, np.nan)
            mean = np.nanmean(shown[:, 2:], axis=0)
            moved.plot(every[2:], mean, line, label=f"{kind}, {name}", **style)
            if name == "reuse":
                low, high = np.nanmin(shown[:, 2:], axis=0), np.nanmax(shown[:, 2:], axis=0)
                moved.fill_between(every[2:], low, high, alpha=0.12, **style)
        squared = (curves.reuse[own, :, 0] ** 2).sum(0)
        felt.plot(every[1:], (curves.weight[kind] * squared)[1:], label=kind, **style)
    moved.set(xlabel="evaluation", ylabel="relative error of a layer's output", yscale="log")
    felt.set(xlabel="evaluation", ylabel="squared error of the final latent", yscale="log")
    moved.set_title("the output one evaluation before", fontsize=10)
    felt.set_title("if all layers of the kind reuse there once", fontsize=10)
    for axes in (moved, felt):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(which="both", alpha=0.2)
        axes.legend(fontsize=8, frameon=False)
    _save(figure, path)


def plot_rows(plan: CalibratedPlan, path: Path) -> None:
    """Write a PNG: what every layer does in every evaluation of the schedule calibrated."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    found = plan.find(Schedule(plan.curves.timesteps, False, plan.scheduler))
    cells = np.array([[ARMS.index(letter) for letter in row] for row in found.rows.values()])
    figure = Figure(figsize=(10, 1.5 + 0.16 * len(cells)), layout="constrained")
    axes = figure.subplots()
    colours = ListedColormap([_COLOURS.get(letter, "white") for letter in ARMS])
    axes.pcolormesh(cells, cmap=colours, vmin=-0.5, vmax=len(ARMS) - 0.5, edgecolors="w", lw=0.5)
    axes.invert_yaxis()
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="evaluation", title=f"{found.share:.0%} of the calls compute")
    axes.set_yticks(np.arange(len(cells)) + 0.5, list(found.rows), fontsize=6)
    patches = [Patch(color=_COLOURS[letter], label=_NAMES[letter]) for letter in _COLOURS]
    figure.legend(handles=patches, loc="outside lower right", ncols=3, fontsize=8, frameon=False)
    _save(figure, path)


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=80)
    # a palette makes the file a third as large
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)
