"""Processors that carry operators into stock diffusers pipelines, and `apply` to put them on."""

from .agent import AgentAttnProcessor
from .agent_weights import AgentLayer, AgentWeights
from .apply import Handle, apply
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
from .linear_weights import LinearLayer, LinearWeights
from .local import LocalAttnProcessor
from .local_weights import LocalLayer, LocalWeights
from .neighborhood import NeighborhoodAttnProcessor
from .report import Report
from .softmax import SoftmaxAttnProcessor
from .status import Status, status
from .window import WindowAttnProcessor

__all__ = [
    "AgentAttnProcessor",
    "AgentLayer",
    "AgentWeights",
    "BroadcastAttnProcessor",
    "CalibratedPlan",
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
    "Status",
    "WindowAttnProcessor",
    "apply",
    "broadcast",
    "status",
]
