"""One row of the layout table: what the stock code of a model class does not tell.

`layouts` maps the named arguments of the model's `forward` to the token layouts that its attention
calls may have; a call of a layer whose kind is "self" or "joint" is matched to one by its number of
tokens. Layers of other kinds are never matched: a temporal layer with 16 frames is no 4 x 4 image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...kernels.layout import TokenLayout

__all__ = ["LEFT_ALONE", "TARGETS", "Arguments", "Family"]

Arguments = Mapping[str, Any]

TARGETS = ("self", "joint")
# kinds of layers that no operator runs in, and how a report calls them
LEFT_ALONE: Mapping[str, str] = {
    "cross": "cross-attention",
    "text": "text refiner",
    "temporal": "temporal attention: its tokens are the frames of one place",
    "grounding": "grounding tokens are among the image tokens",
    "audio": "audio attention",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one model class lays out its tokens.

    layouts: (model, arguments of forward) -> the layouts its self-attention and joint calls may
        have; padded text counts as text.
    kind: (layer name, attention module) -> "self", "joint", or one of LEFT_ALONE.
    valid_text: (model, arguments) -> for each sample, how many of its text tokens are not padding;
        padding comes after them and the model masks it. None where nothing is masked.
    padding_last: padding lies at the end of the call instead of the end of the text.
    sources: the arguments whose values are read, beside shapes. The answers are reused while they
        are the same objects and all shapes are the same.
    timestep: the argument of forward that holds the timestep.
    timestep_scale, timestep_offset: offset + scale * that argument lies on the scheduler's scale,
        0 to 1000.
    is_guess: the row is the generic rule's, not the table's.
    """

    layouts: Callable[[nn.Module, Arguments], tuple[TokenLayout, ...]]
    kind: Callable[[str, nn.Module], str]
    valid_text: Callable[[nn.Module, Arguments], tuple[int, ...] | None] | None = None
    padding_last: bool = False
    sources: tuple[str, ...] = ()
    timestep: str = "timestep"
    timestep_scale: float = 1.0
    timestep_offset: float = 0.0
    is_guess: bool = False
