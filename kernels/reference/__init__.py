"""Oracles: small, slow, obvious and dense. They share nothing with the fast path but the layout."""

from .agent import reference_agent
from .dense import reference_softmax
from .foveated import reference_foveated
from .linear import reference_hybrid, reference_linear
from .local import reference_local
from .neighborhood import reference_neighborhood
from .window import reference_window

__all__ = [
    "reference_agent",
    "reference_foveated",
    "reference_hybrid",
    "reference_linear",
    "reference_local",
    "reference_neighborhood",
    "reference_softmax",
    "reference_window",
]
