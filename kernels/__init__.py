"""Attention operators on [B, H, N, D] tensors and a TokenLayout; they need torch alone."""

from .agent import agent_attention, agent_grid, agent_keys
from .foveated import foveated_attention, foveated_keys
from .hybrid import hybrid_attention
from .layout import Segment, TokenLayout
from .linear import linear_attention
from .local import local_attention, local_keys
from .merge import merge
from .neighborhood import neighborhood_attention, neighborhood_keys
from .residual import depthwise_residual
from .scale import proportional_scale
from .softmax import softmax_attention
from .window import window_attention, window_keys

__all__ = [
    "Segment",
    "TokenLayout",
    "agent_attention",
    "agent_grid",
    "agent_keys",
    "depthwise_residual",
    "foveated_attention",
    "foveated_keys",
    "hybrid_attention",
    "linear_attention",
    "local_attention",
    "local_keys",
    "merge",
    "neighborhood_attention",
    "neighborhood_keys",
    "proportional_scale",
    "softmax_attention",
    "window_attention",
    "window_keys",
]
