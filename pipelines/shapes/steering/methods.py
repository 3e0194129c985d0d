"""The ways of steering that the tables compare, each a list of modulations for one prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ....attn_processors.modulation import (
    AttentionCouple,
    AttentionMasks,
    AttentionReweight,
    Emphasize,
    Modulation,
    ObjectFocus,
    PhaseWeights,
    RegionBind,
    SelfTemperature,
    SpanMaps,
    StructuredText,
)
from .prompts import Prompt

__all__ = ["COST_ALONE", "METHODS", "ONE_BY_ONE", "SHARED", "methods_of"]

Method = Callable[[Prompt], Sequence[Modulation]]


def _emphasis(strength: float) -> Method:
    def method(prompt: Prompt) -> Sequence[Modulation]:
        scene = prompt.scene()
        return [Emphasize(scene, dict.fromkeys(scene.phrases, strength))]

    return method


def _couple(swapped: bool = False, base: float = 0.0) -> Method:
    """A prompt of one object for the box of each, on the asked background."""

    def method(prompt: Prompt) -> Sequence[Modulation]:
        boxes = prompt.boxes[::-1] if swapped else prompt.boxes
        return [
            AttentionCouple(
                prompt.scene(), dict(zip(prompt.alone(), boxes, strict=True)), base=base
            )
        ]

    return method


# None is the pipeline as it is; "control" marks what must not help
METHODS: dict[str, Method | None] = {
    "plain": None,
    "RegionBind": lambda p: [RegionBind(p.scene())],
    "RegionBind, never alone": lambda p: [RegionBind(p.scene(), alone=0.0)],
    "RegionBind, soft": lambda p: [RegionBind(p.scene(), hard=False)],
    "RegionBind, boxes swapped (control)": lambda p: [RegionBind(p.scene(swapped=True))],
    "PhaseWeights": lambda p: [PhaseWeights(p.scene())],
    "PhaseWeights, wrong phrases (control)": lambda p: [PhaseWeights(p.mismatched())],
    "Emphasize 0.5": _emphasis(0.5),
    "Emphasize 2": _emphasis(2.0),
    "Emphasize 4": _emphasis(4.0),
    "ObjectFocus": lambda p: [ObjectFocus(p.scene())],
    "ObjectFocus, wrong phrases (control)": lambda p: [ObjectFocus(p.mismatched())],
    "RegionBind + ObjectFocus": lambda p: [RegionBind(p.scene()), ObjectFocus(p.scene())],
    "AttentionCouple": _couple(),
    "AttentionCouple, base 0.3": _couple(base=0.3),
    "AttentionCouple, boxes swapped (control)": _couple(swapped=True),
    "StructuredText": lambda p: [StructuredText(p.scene())],
    "StructuredText, conjunction": lambda p: [StructuredText(p.scene(), conjunction=True)],
    "StructuredText, wrong phrases (control)": lambda p: [StructuredText(p.mismatched())],
}
# timed, but not scored: what edits nothing, or edits a picture that is there
COST_ALONE: dict[str, Method] = {
    "SpanMaps": lambda p: [SpanMaps(p.scene())],
    "AttentionMasks": lambda p: [AttentionMasks(p.scene())],
    "AttentionMasks, power 4": lambda p: [AttentionMasks(p.scene(), power=4)],
    "AttentionReweight": lambda p: [
        AttentionReweight(p.scene(), dict.fromkeys(p.scene().phrases, 2.0))
    ],
}
# methods of layers that a model may lack, or of batches of one prompt
_ONLY_CROSS = tuple(name for name in METHODS if name.startswith("StructuredText"))
ONE_BY_ONE = tuple(
    name for name in METHODS if name.startswith(("AttentionCouple", "StructuredText"))
)
# modulations that need no prompt act on the whole batch, so one list serves all
SHARED: dict[str, Sequence[Modulation]] = {
    f"SelfTemperature {factor:g}, first 20 % of steps": [
        SelfTemperature(factor).where(steps=(0, 0.2))
    ]
    for factor in (1.5, 2.0)
}


def methods_of(model: str) -> list[str]:
    """The names of the methods that an embedded model has the layers for."""
    is_joint = model == "flux"
    return [name for name in (*METHODS, *SHARED) if not (is_joint and name in _ONLY_CROSS)]
