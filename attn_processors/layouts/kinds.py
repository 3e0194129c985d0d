"""Kinds of attention layers, told by their names or by the module."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from torch import nn

__all__ = ["Kinds", "always", "by_name", "unet_kind"]


# a class and not a closure: it is pickled with the models that carry an operator
@dataclass(frozen=True)
class Kinds:
    """The kind of the first (pattern, kind) whose pattern the layer's name matches."""

    rules: tuple[tuple[str, str], ...]

    def __call__(self, name: str, attention: nn.Module) -> str:
        return next(kind for pattern, kind in self.rules if fnmatch.fnmatchcase(name, pattern))


def by_name(*rules: tuple[str, str]) -> Kinds:
    """Kinds by (pattern, kind); the last pattern should be "*"."""
    return Kinds(rules)


def always(kind: str) -> Kinds:
    """Every layer is of this kind."""
    return Kinds((("*", kind),))


_OF_UNET = by_name(
    ("*motion_modules*", "temporal"),
    ("*temporal*", "temporal"),
    ("*temp_attentions*", "temporal"),
    ("transformer_in.*", "temporal"),
    ("*fuser*", "grounding"),
    ("*", "self"),
)


def unet_kind(name: str, attention: nn.Module) -> str:
    """Of a UNet's layer, with or without motion modules."""
    kind = _OF_UNET(name, attention)
    return "cross" if kind == "self" and attention.is_cross_attention else kind
