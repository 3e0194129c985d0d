"""Outputs kept from one evaluation of a model to later ones: when, how held, how forecast."""

from .arms import ARMS, COMPUTE, CORRECT, FORECAST, LEGEND, REUSE, check_row, last_read
from .cache import Cache, Entry
from .forecast import forecast, recall
from .fractions import MIN_EVALUATIONS, TAIL, check_every, fraction_row
from .stores import STORES, Kept, Packed, Store, num_bytes, store_of

__all__ = [
    "ARMS",
    "COMPUTE",
    "CORRECT",
    "FORECAST",
    "LEGEND",
    "MIN_EVALUATIONS",
    "REUSE",
    "STORES",
    "TAIL",
    "Cache",
    "Entry",
    "Kept",
    "Packed",
    "Store",
    "check_every",
    "check_row",
    "forecast",
    "fraction_row",
    "last_read",
    "num_bytes",
    "recall",
    "store_of",
]
