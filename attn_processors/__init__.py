"""Processors that carry operators into stock diffusers pipelines, and `apply` to put them on."""

from .apply import Handle, apply
from .foveated import FoveatedAttnProcessor
from .local import LocalAttnProcessor
from .report import Report
from .softmax import SoftmaxAttnProcessor

__all__ = [
    "FoveatedAttnProcessor",
    "Handle",
    "LocalAttnProcessor",
    "Report",
    "SoftmaxAttnProcessor",
    "apply",
]
