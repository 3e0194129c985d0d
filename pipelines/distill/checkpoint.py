"""Checkpoints of a stage by accelerate: the newest complete one is where a stopped run goes on."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from accelerate import Accelerator

__all__ = ["load_newest", "save_checkpoint"]

_DONE = "complete"  # written last: a checkpoint without it was cut short


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Save everything prepared or registered, then drop the older checkpoints."""
    path = folder / f"step-{step:07d}"
    accelerator.save_state(str(path))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (path / _DONE).touch()
        for older in _steps(folder):
            if older != step:
                shutil.rmtree(folder / f"step-{older:07d}")
    accelerator.wait_for_everyone()


def load_newest(accelerator: Accelerator, folder: Path) -> int:
    """Load the newest complete checkpoint; returns its step, 0 where there is none."""
    complete = [s for s in _steps(folder) if (folder / f"step-{s:07d}" / _DONE).exists()]
    if not complete:
        return 0
    step = max(complete)
    accelerator.load_state(str(folder / f"step-{step:07d}"))
    return step


def _steps(folder: Path) -> list[int]:
    found = (re.fullmatch(r"step-(\d+)", path.name) for path in folder.glob("step-*"))
    return [int(match[1]) for match in found if match]
