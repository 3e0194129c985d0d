"""Distillation: train the parts of an efficient attention so that the model draws as before.

Names load on first use, so that the command line reads the options without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import DistillConfig, read_config
    from .store import load_student, save_student
    from .train import distill

__all__ = ["DistillConfig", "distill", "load_student", "read_config", "save_student"]

_HOMES = {
    "DistillConfig": ".config",
    "distill": ".train",
    "load_student": ".store",
    "read_config": ".config",
    "save_student": ".store",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
