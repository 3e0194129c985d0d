"""Processors that carry operators into stock diffusers pipelines, and `apply` to put them on."""

from .agent import AgentAttnProcessor
from .apply import Handle, apply, remove
from .broadcast import (
    BroadcastAttnProcessor,
    CalibratedPlan,
    FractionPlan,
    PabPlan,
    broadcast,
)
from .foveated import FoveatedAttnProcessor
from .layouts import Family
from .linear import LinearAttnProcessor
from .local import LocalAttnProcessor
from .neighborhood import NeighborhoodAttnProcessor
from .report import Report
from .softmax import SoftmaxAttnProcessor
from .status import Status, status
from .trained.agent import AgentLayer, AgentWeights
from .trained.linear import DynamicResidual, LinearLayer, LinearWeights, StaticResidual
from .trained.local import LocalLayer, LocalWeights
from .window import WindowAttnProcessor

__all__ = [
    "AgentAttnProcessor",
    "AgentLayer",
    "AgentWeights",
    "BroadcastAttnProcessor",
    "CalibratedPlan",
    "DynamicResidual",
    "Family",
    "FoveatedAttnProcessor",
    "FractionPlan",
    "Handle",
    "LinearAttnProcessor",
    "LinearLayer",
    "LinearWeights",
    "LocalAttnProcessor",
    "LocalLayer",
    "LocalWeights",
    "NeighborhoodAttnProcessor",
    "PabPlan",
    "Report",
    "SoftmaxAttnProcessor",
    "StaticResidual",
    "Status",
    "WindowAttnProcessor",
    "apply",
    "broadcast",
    "remove",
    "status",
]
