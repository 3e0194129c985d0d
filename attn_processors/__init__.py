"""Processors that carry operators into stock diffusers pipelines, and `apply` to put them on."""

from .apply import Handle, apply
from .foveated import FoveatedAttnProcessor
from .linear import LinearAttnProcessor
from .linear_weights import LinearLayer, LinearWeights
from .local import LocalAttnProcessor
from .report import Report
from .softmax import SoftmaxAttnProcessor

__all__ = [
    "FoveatedAttnProcessor",
    "Handle",
    "LinearAttnProcessor",
    "LinearLayer",
    "LinearWeights",
    "LocalAttnProcessor",
    "Report",
    "SoftmaxAttnProcessor",
    "apply",
]
