"""Where an attention module keeps its processor, also beneath a wrapper that stands around it.

Two things take the place of a stock processor: a redirected copy of it, and a wrapper around either
of them. Each may come and go first; what is beneath is looked up, never remembered.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .hosts import set_processor

__all__ = ["Around", "processor_in", "replace_processor"]


class Around:
    """Mixin of processors that stand around another one, `inner`."""

    __slots__ = ()
    inner: Any

    def around(self, inner: object) -> Any:
        """The same wrapper around another processor."""
        raise NotImplementedError(f"{type(self).__name__} does not define around")


def processor_in(module: nn.Module) -> Any:
    """The processor of an attention module, beneath what stands around it."""
    present = module.processor
    return present.inner if isinstance(present, Around) else present


def replace_processor(module: nn.Module, old: object, new: object) -> None:
    """Put `new` where `old` stands, keeping what is around it; nothing if `old` is gone."""
    present = module.processor
    if present is old:
        set_processor(module, new)
    elif isinstance(present, Around) and present.inner is old:
        set_processor(module, present.around(new))
