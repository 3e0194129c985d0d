"""The layout table: per model class, token order, grid, and what each layer attends to."""

from .family import LEFT_ALONE, TARGETS, Arguments, Family
from .grids import halved_grids
from .table import FAMILIES, attention_layers, family_of, known_family

__all__ = [
    "FAMILIES",
    "LEFT_ALONE",
    "TARGETS",
    "Arguments",
    "Family",
    "attention_layers",
    "family_of",
    "halved_grids",
    "known_family",
]
