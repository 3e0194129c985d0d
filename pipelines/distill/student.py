"""A student: the processor with untrained parts that takes the place of a model's attention."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Protocol

from torch import nn

from ...attn_processors import (
    AgentAttnProcessor,
    AgentLayer,
    AgentWeights,
    FoveatedAttnProcessor,
    LinearAttnProcessor,
    LinearLayer,
    LinearWeights,
    LocalAttnProcessor,
    LocalLayer,
    LocalWeights,
)
from ...attn_processors.base import AttnProcessor
from ...attn_processors.layouts import TARGETS, attention_layers, family_of
from ...attn_processors.trained.layers import LayerWeights, TrainedLayer
from .config import DistillConfig

__all__ = ["WEIGHTS", "StudentOptions", "fresh_weights", "student_processor"]

# what holds the trained parts of a student
WEIGHTS: Mapping[str, type[LayerWeights]] = {
    "linear": LinearWeights,
    "local": LocalWeights,
    "foveated": LocalWeights,
    "agent": AgentWeights,
    "hybrid": LinearWeights,
}


class StudentOptions(Protocol):
    """What makes the processor of a student: its kind and the options of its operator."""

    student: str
    radius: int | None
    pool: int | None
    agents: int | None
    feature_map: str
    gate: float


def fresh_weights(model: nn.Module, config: DistillConfig) -> LayerWeights:
    """The parts to train, in float32: every self-attention and joint layer that was asked for."""
    family = family_of(model)
    wanted = ("*",) if config.layers is None else config.layers
    modules = {
        name: module
        for name, module in attention_layers(model).items()
        if family.kind(name, module) in TARGETS
        and any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted)
    }
    if not modules:
        raise ValueError(f"no self-attention or joint layer matches layers={list(wanted)}")
    layers = {name: _fresh_layer(module, config) for name, module in modules.items()}
    return WEIGHTS[config.student](layers).float().eval().requires_grad_(True)


def _fresh_layer(attn: nn.Module, config: DistillConfig) -> TrainedLayer:
    weights = WEIGHTS[config.student]
    if weights is AgentWeights:
        return AgentLayer.of_parts(attn, config.parts)
    if weights is LocalWeights:
        return LocalLayer.of_parts(attn, config.parts, pool=config.pool)
    return LinearLayer.of_parts(attn, config.parts, mid_dim=config.mid_dim, gate=config.gate)


def student_processor(options: StudentOptions, weights: LayerWeights) -> AttnProcessor:
    """The processor of a student with these trained parts."""
    kind, radius = options.student, options.radius
    if kind == "local":
        return LocalAttnProcessor(radius=radius, weights=weights)
    if kind == "foveated":
        return FoveatedAttnProcessor(radius=radius, pool=options.pool, weights=weights)
    if kind == "agent":
        return AgentAttnProcessor(agents=options.agents, weights=weights)
    return LinearAttnProcessor(
        feature_map=options.feature_map,
        radius=radius,
        gate=options.gate if kind == "hybrid" else 0.0,
        weights=weights,
    )
