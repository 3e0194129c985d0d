"""Steer a pipeline by phrase and region: what the prompt's words attend to, exactly."""

from ...kernels.map_store import MapStore
from .attention_couple import AttentionCouple
from .attention_masks import AttentionMasks, MaskStore
from .base import Composed, Modulation, Reader, compose
from .emphasize import Emphasize
from .explain import Explanation, LayerExplanation
from .motion_boost import MotionBoost
from .object_focus import ObjectFocus
from .phase_weights import PhaseWeights
from .plan import Blend, Branch, Extra, GroupedKeys, LowRank, Plan, key_bias
from .prompt_to_prompt import (
    AttentionRefine,
    AttentionReplace,
    AttentionReweight,
    SelfAttentionReplace,
)
from .region_bind import RegionBind
from .run import Run, modulate
from .scene import Scene
from .self_temperature import SelfTemperature
from .site import SceneTokens, Site, Text
from .span_maps import SpanMaps
from .structured_text import StructuredText

__all__ = [
    "AttentionCouple",
    "AttentionMasks",
    "AttentionRefine",
    "AttentionReplace",
    "AttentionReweight",
    "Blend",
    "Branch",
    "Composed",
    "Emphasize",
    "Explanation",
    "Extra",
    "GroupedKeys",
    "LayerExplanation",
    "LowRank",
    "MapStore",
    "MaskStore",
    "Modulation",
    "MotionBoost",
    "ObjectFocus",
    "PhaseWeights",
    "Plan",
    "Reader",
    "RegionBind",
    "Run",
    "Scene",
    "SceneTokens",
    "SelfAttentionReplace",
    "SelfTemperature",
    "Site",
    "SpanMaps",
    "StructuredText",
    "Text",
    "compose",
    "key_bias",
    "modulate",
]
