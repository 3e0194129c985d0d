"""The log of a training: a line of JSON for every few steps, and a plot of its losses."""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from pathlib import Path

import torch

__all__ = ["Log", "peak_memory", "plot_losses", "read_log"]


class Log:
    """Rows of one file. A resumed run drops the rows after its checkpoint, then goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, stage: str, step: int) -> None:
        """Drop the rows of `stage` after `step`."""
        rows = read_log(self.path)
        kept = [row for row in rows if row["stage"] != stage or row["step"] <= step]
        if len(kept) < len(rows):
            self.path.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def write(self, row: dict[str, object]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_log(path: Path) -> list[dict]:
    """The rows so far, none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def peak_memory(device: torch.device) -> int:
    """Largest memory in MiB: allocated on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def plot_losses(rows: Sequence[dict], path: Path) -> None:
    """Write a PNG: a panel for each stage, every loss over the steps. Needs matplotlib."""
    from matplotlib.figure import Figure

    stages = list(dict.fromkeys(row["stage"] for row in rows))
    figure = Figure(figsize=(5 * len(stages), 4), layout="constrained")
    panels = figure.subplots(1, len(stages), squeeze=False)[0]
    for axes, stage in zip(panels, stages, strict=True):
        own = [row for row in rows if row["stage"] == stage]
        for name in ("loss", "task", "prediction", "attention"):
            if all(name in row for row in own) and (name != "loss" or "task" in own[0]):
                axes.plot([row["step"] for row in own], [row[name] for row in own], label=name)
        axes.set(yscale="log", xlabel="step", title=stage)
        axes.grid(which="both", alpha=0.2)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=100)
