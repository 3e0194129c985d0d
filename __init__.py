"""foveate: attention that is sharp where it matters, for stock diffusers pipelines.

Public names load on first use (PEP 562): importing the package loads neither torch nor diffusers.
The folder is a ComfyUI custom node too: ComfyUI loads it by path and calls `comfy_entrypoint`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attn_processors import (
        AgentAttnProcessor,
        BroadcastAttnProcessor,
        CalibratedPlan,
        Family,
        FoveatedAttnProcessor,
        FractionPlan,
        LinearAttnProcessor,
        LocalAttnProcessor,
        NeighborhoodAttnProcessor,
        PabPlan,
        SoftmaxAttnProcessor,
        WindowAttnProcessor,
        apply,
        broadcast,
        remove,
        status,
    )
    from .attn_processors.modulation import (
        AttentionCouple,
        AttentionMasks,
        AttentionRefine,
        AttentionReplace,
        AttentionReweight,
        Emphasize,
        MotionBoost,
        ObjectFocus,
        PhaseWeights,
        RegionBind,
        Scene,
        SelfAttentionReplace,
        SelfTemperature,
        SpanMaps,
        StructuredText,
        compose,
        modulate,
    )
    from .comfyui import comfy_entrypoint
    from .kernels import TokenLayout
    from .pipelines.broadcast import calibrate
    from .pipelines.distill import load_student
    from .pipelines.progressive import progressive
    from .pipelines.shapes import load_shapes

__all__ = [
    "AgentAttnProcessor",
    "AttentionCouple",
    "AttentionMasks",
    "AttentionRefine",
    "AttentionReplace",
    "AttentionReweight",
    "BroadcastAttnProcessor",
    "CalibratedPlan",
    "Emphasize",
    "Family",
    "FoveatedAttnProcessor",
    "FractionPlan",
    "LinearAttnProcessor",
    "LocalAttnProcessor",
    "MotionBoost",
    "NeighborhoodAttnProcessor",
    "ObjectFocus",
    "PabPlan",
    "PhaseWeights",
    "RegionBind",
    "Scene",
    "SelfAttentionReplace",
    "SelfTemperature",
    "SoftmaxAttnProcessor",
    "SpanMaps",
    "StructuredText",
    "TokenLayout",
    "WindowAttnProcessor",
    "apply",
    "broadcast",
    "calibrate",
    "comfy_entrypoint",
    "compose",
    "load_shapes",
    "load_student",
    "modulate",
    "progressive",
    "remove",
    "status",
]

__version__ = "0.1.0"

# where ComfyUI finds the help pages of the nodes
WEB_DIRECTORY = "./comfyui/web"

_HOMES = {
    "AgentAttnProcessor": ".attn_processors",
    "AttentionCouple": ".attn_processors.modulation",
    "AttentionMasks": ".attn_processors.modulation",
    "AttentionRefine": ".attn_processors.modulation",
    "AttentionReplace": ".attn_processors.modulation",
    "AttentionReweight": ".attn_processors.modulation",
    "BroadcastAttnProcessor": ".attn_processors",
    "CalibratedPlan": ".attn_processors",
    "Emphasize": ".attn_processors.modulation",
    "Family": ".attn_processors",
    "FoveatedAttnProcessor": ".attn_processors",
    "FractionPlan": ".attn_processors",
    "LinearAttnProcessor": ".attn_processors",
    "LocalAttnProcessor": ".attn_processors",
    "MotionBoost": ".attn_processors.modulation",
    "NeighborhoodAttnProcessor": ".attn_processors",
    "ObjectFocus": ".attn_processors.modulation",
    "PabPlan": ".attn_processors",
    "PhaseWeights": ".attn_processors.modulation",
    "RegionBind": ".attn_processors.modulation",
    "Scene": ".attn_processors.modulation",
    "SelfAttentionReplace": ".attn_processors.modulation",
    "SelfTemperature": ".attn_processors.modulation",
    "SoftmaxAttnProcessor": ".attn_processors",
    "SpanMaps": ".attn_processors.modulation",
    "StructuredText": ".attn_processors.modulation",
    "TokenLayout": ".kernels",
    "WindowAttnProcessor": ".attn_processors",
    "apply": ".attn_processors",
    "broadcast": ".attn_processors",
    "calibrate": ".pipelines.broadcast",
    "comfy_entrypoint": ".comfyui",
    "compose": ".attn_processors.modulation",
    "load_shapes": ".pipelines.shapes",
    "load_student": ".pipelines.distill",
    "modulate": ".attn_processors.modulation",
    "progressive": ".pipelines.progressive",
    "remove": ".attn_processors",
    "status": ".attn_processors",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
