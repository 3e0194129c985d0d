"""Whether the layers of a pipeline still hold what `apply` put there, and what to call if not.

diffusers replaces attention processors when projections are fused, an IP-Adapter is loaded or
unloaded, or slicing is switched on. What was applied is read back from the hooks on the model, so
copies of a pipeline can be asked too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from .applied import applied_to
from .base import AttnProcessor
from .hosts import denoisers_of
from .layer import Layer
from .layouts import attention_layers
from .redirect import Redirected, redirected_class
from .sequence import group_of
from .slot import processor_in

__all__ = ["LayerStatus", "Status", "status"]


_NOT_BY_HAND = (
    "set_attn_processor does not run under context parallelism; set the stock processors back, "
    "then foveate.apply"
)


@dataclass(frozen=True, kw_only=True)
class LayerStatus:
    """One attention layer that carries, or should carry, an operator.

    processor: our processor, as it was given.
    replaced_by: class of the stock processor that has taken its place, or None.
    remedy: what to call, or None where all is well.
    """

    layer: str
    processor: str
    replaced_by: str | None
    remedy: str | None


@dataclass(frozen=True)
class Status:
    """The layers that carry an operator, or have lost it; `print` says what to call."""

    layers: tuple[LayerStatus, ...]

    @property
    def lost(self) -> tuple[LayerStatus, ...]:
        """Layers whose operator has been replaced."""
        return tuple(row for row in self.layers if row.replaced_by is not None)

    def __str__(self) -> str:
        if not self.layers:
            return "no foveate operator on this model: call foveate.apply"
        processors = ", ".join(dict.fromkeys(row.processor for row in self.layers))
        held = len(self.layers) - len(self.lost)
        lines = [f"{processors}: in place in {held} of {len(self.layers)} layers"]
        for remedy in dict.fromkeys(row.remedy for row in self.layers if row.remedy is not None):
            rows = [row for row in self.layers if row.remedy == remedy]
            where = f"{rows[0].layer} and {len(rows) - 1} more"
            lines.append(f"{where} hold {rows[0].replaced_by or rows[0].processor}: {remedy}")
        return "\n".join(lines)


def status(pipe_or_model: object) -> Status:
    """What the attention layers of a pipeline or its denoiser hold now.

    Where a pipeline has two denoisers, names of layers begin with theirs.
    """
    models, _ = denoisers_of(pipe_or_model, "status")
    rows = {name: _applied(model) or _set_by_hand(model) for name, model in models.items()}
    if len(rows) == 1:
        return Status(tuple(next(iter(rows.values()))))
    named = [replace(row, layer=f"{name}.{row.layer}") for name in rows for row in rows[name]]
    return Status(tuple(named))


def _applied(model: nn.Module) -> list[LayerStatus]:
    """Of the layers that `apply` chose."""
    layers = [layer for on in applied_to(model) for layer in on.recorder.layers if layer.processor]
    is_split = group_of(model) is not None
    return [
        _row(layer, processor_in(model.get_submodule(layer.name)), is_split) for layer in layers
    ]


def _row(layer: Layer, present: object, is_split: bool) -> LayerStatus:
    attend = present.attend if isinstance(present, Redirected) else None
    is_held = getattr(attend, "__self__", None) is layer
    idle = layer.processor.why_not_split() if is_split else None
    return LayerStatus(
        layer=layer.name,
        processor=repr(layer.processor),
        replaced_by=None if is_held else _stock_name(present),
        remedy=idle if is_held else _remedy(present),
    )


def _stock_name(present: object) -> str:
    stock = present.stock_class if isinstance(present, Redirected) else type(present)
    return stock.__name__


def _remedy(present: object) -> str:
    again = "foveate.remove(pipe), then foveate.apply again"
    try:
        if not isinstance(present, Redirected):
            redirected_class(type(present))
    except NotImplementedError as error:
        return f"{error}; take it off, {again}"
    return again


def _set_by_hand(model: nn.Module) -> list[LayerStatus]:
    """Of the layers that `set_attn_processor` gave a processor of ours."""
    held = {name: processor_in(module) for name, module in attention_layers(model).items()}
    remedy = None if group_of(model) is None else _NOT_BY_HAND
    return [
        LayerStatus(layer=name, processor=repr(present), replaced_by=None, remedy=remedy)
        for name, present in held.items()
        if isinstance(present, AttnProcessor)
    ]
