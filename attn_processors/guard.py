"""The first outputs of an operator are looked at: a layer whose numbers are not finite goes dense.

Looked at is the first call of each layer with each layout, so a GPU is waited for there and never
again. What happens in a compiled graph cannot be looked at inside of it; there the output of the
whole model is, and only if that is not finite does the forward run again without the graph, where
each layer is looked at by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..kernels.layout import TokenLayout

__all__ = ["INPUTS", "IN_GRAPH", "OUTPUT", "Guard", "is_finite", "run_again"]

OUTPUT = "the operator's output was not finite"
INPUTS = "its queries, keys or values were not finite already"
IN_GRAPH = "the model's output was not finite where a compiled graph ran the operator"


class Guard:
    """Of one layer. `broken` is why its operator shall not run any more, or None."""

    def __init__(self) -> None:
        # the only one that a forward reads, so the only one that a compiled graph depends on
        self.broken: str | None = None
        self._seen: set[TokenLayout] = set()

    def is_new(self, layout: TokenLayout | None) -> bool:
        """Whether the operator ran with a layout, and its first output has not been looked at."""
        return layout is not None and layout not in self._seen and self.broken is None

    def pass_unseen(self, layout: TokenLayout) -> None:
        """The first output with this layout counts as looked at."""
        self._seen.add(layout)

    def why_not(
        self, layout: TokenLayout, out: torch.Tensor, inputs: Iterable[torch.Tensor]
    ) -> str | None:
        """Why the output of this call is not to be used, or None."""
        if torch.compiler.is_compiling() or not self.is_new(layout):
            return None
        self.pass_unseen(layout)
        if is_finite(out):
            return None
        if not is_finite(tuple(inputs)):
            return INPUTS
        self.broken = OUTPUT
        return OUTPUT


def is_finite(value: Any) -> bool:
    """Whether all numbers of the tensors in a tensor, tuple, list or mapping are finite."""
    if isinstance(value, torch.Tensor):
        if value.is_meta or not value.is_floating_point():
            return True
        # one pass, twenty times as fast as isfinite().all(); NaN is carried into both. detached:
        # a checkpoint wants to save what its recomputation, unlooked at, saves
        return bool(torch.stack(value.detach().aminmax()).isfinite().all())
    if isinstance(value, Mapping):
        return is_finite(tuple(value.values()))
    return not isinstance(value, (tuple, list)) or all(is_finite(one) for one in value)


def run_again(model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """The model's output for the same arguments, without its hooks and without a compiled graph."""
    with torch.compiler.set_stance("force_eager"):
        return model.forward(*args, **kwargs)
