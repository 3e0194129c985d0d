"""A processor object with a gate around it, which may answer for it.

Its class inherits from the class of the processor inside and its attributes are that processor's
own (one `__dict__` for both), so whatever diffusers looks for or sets on a processor (a backend, an
adapter's scale, trained weights, its type, the arguments its call names) is where it was.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from ..slot import Around
from .gate import Gate

__all__ = ["Broadcasting", "gated"]


class Broadcasting(Around):
    """Mixin of the wrapper classes; `inner` is the processor inside, `gate` decides."""

    __slots__ = ()
    gate: Gate

    def around(self, inner: object) -> Broadcasting:
        return gated(inner, self.gate)

    def __reduce_ex__(self, protocol: int) -> tuple:
        # the class is made at run time: pickle and deepcopy put a gate around the inner one again
        return gated, (self.inner, self.gate)


@functools.cache
def _class_around(inner_class: type) -> type:
    operator = inner_class.__call__
    # a redirected processor still has the call of the stock one
    dense = getattr(inner_class, "stock_class", inner_class).__call__

    def __call__(self, attn: nn.Module, hidden_states: torch.Tensor, *args: Any, **kwargs: Any):
        return self.gate(operator, dense, self, attn, hidden_states, args, kwargs)

    # attention modules pass only what the signature names; dynamo follows this and no __signature__
    __call__.__wrapped__ = operator
    members = {"__slots__": ("gate", "inner"), "__call__": __call__, "__module__": __name__}
    return type(f"Broadcast{inner_class.__name__}", (Broadcasting, inner_class), members)


def gated(inner: object, gate: Gate) -> Broadcasting:
    """`inner` with `gate` around it.

    Raises NotImplementedError where it cannot be: a processor without attributes of its own.
    """
    if not hasattr(inner, "__dict__"):
        raise NotImplementedError(f"{type(inner).__name__} has no __dict__ to share")
    new_class = _class_around(type(inner))
    new = new_class.__new__(new_class)
    # past the setter of nn.Module, which some processors are
    object.__setattr__(new, "__dict__", inner.__dict__)
    object.__setattr__(new, "inner", inner)
    object.__setattr__(new, "gate", gate)
    return new
