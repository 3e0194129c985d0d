"""Steer a pipeline by phrase and region: what the prompt's words attend to, exactly."""

from ...kernels.map_store import MapStore
from .base import Composed, Modulation, Reader, compose
from .emphasize import Emphasize
from .explain import Explanation, LayerExplanation
from .object_focus import ObjectFocus
from .phase_weights import PhaseWeights
from .plan import Branch, Extra, GroupedKeys, LowRank, Plan, key_bias
from .region_bind import RegionBind
from .run import Run, modulate
from .scene import Scene
from .self_temperature import SelfTemperature
from .site import SceneTokens, Site
from .span_maps import SpanMaps

__all__ = [
    "Branch",
    "Composed",
    "Emphasize",
    "Explanation",
    "Extra",
    "GroupedKeys",
    "LayerExplanation",
    "LowRank",
    "MapStore",
    "Modulation",
    "ObjectFocus",
    "PhaseWeights",
    "Plan",
    "Reader",
    "RegionBind",
    "Run",
    "Scene",
    "SceneTokens",
    "SelfTemperature",
    "Site",
    "SpanMaps",
    "compose",
    "key_bias",
    "modulate",
]
