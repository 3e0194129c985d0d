"""What an attention layer attends to, as broadcasting sees it: "spatial", "temporal", "cross"...

...or "text" for the refiners of a prompt, which run once or see no picture and are left alone.
Joint layers count as spatial, as they do in PAB. No layout is needed for this, so it holds for
model families that the layout table does not know.
"""

from __future__ import annotations

from torch import nn

from ..layouts import known_family

__all__ = ["KINDS", "kind_of"]

KINDS = ("spatial", "temporal", "cross")


def kind_of(model: nn.Module, name: str, attention: nn.Module) -> str:
    """The kind of the layer `name` of `model`: one of KINDS, or "text"."""
    family = known_family(model)
    if family is not None:
        kind = family.kind(name, attention)
        return kind if kind in ("temporal", "cross", "text") else "spatial"
    if "refiner" in name:
        return "text"
    if "temporal" in name or "motion_modules" in name:
        return "temporal"
    # LTX and others do not say it; a second attention of a block is cross-attention by custom
    is_cross = getattr(attention, "is_cross_attention", None)
    is_cross = name.endswith("attn2") if is_cross is None else is_cross
    return "cross" if is_cross else "spatial"
