"""Attention outputs reused or extrapolated between denoising steps, by a plan."""

from .calibrated import CalibratedPlan
from .install import Broadcast, broadcast
from .pab import PAB_PRESETS, PabPlan
from .plan import FractionPlan, Plan, TablePlan
from .processor import BroadcastAttnProcessor
from .report import BroadcastReport

__all__ = [
    "PAB_PRESETS",
    "Broadcast",
    "BroadcastAttnProcessor",
    "BroadcastReport",
    "CalibratedPlan",
    "FractionPlan",
    "PabPlan",
    "Plan",
    "TablePlan",
    "broadcast",
]
