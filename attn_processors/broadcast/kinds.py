"""What an attention layer attends to, as broadcasting sees it: "spatial", "temporal", "cross"...

...or "text" for the refiners of a prompt, which run once or see no picture and are left alone.
Joint layers count as spatial, as they do in PAB. No layout is needed for this, so it holds for
model families that the layout table does not know.
"""

from __future__ import annotations

from torch import nn

from ..layouts import FAMILIES

__all__ = ["KINDS", "kind_of"]

KINDS = ("spatial", "temporal", "cross")


def kind_of(model: nn.Module, name: str, attention: nn.Module) -> str:
    """The kind of the layer `name` of `model`: one of KINDS, or "text"."""
    if "refiner" in name:
        return "text"
    if "temporal" in name or "motion_modules" in name:
        return "temporal"
    known = _by_family(model, name, attention)
    if known is not None:
        return known
    # LTX and others do not say it; a second attention of a block is cross-attention by custom
    is_cross = getattr(attention, "is_cross_attention", None)
    is_cross = name.endswith("attn2") if is_cross is None else is_cross
    return "cross" if is_cross else "spatial"


def _by_family(model: nn.Module, name: str, attention: nn.Module) -> str | None:
    for base in type(model).__mro__:
        if base.__name__ in FAMILIES:
            kind = FAMILIES[base.__name__].kind(name, attention)
            return kind if kind in ("temporal", "cross", "text") else "spatial"
    return None
