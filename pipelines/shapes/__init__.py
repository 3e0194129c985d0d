"""Embedded models trained on drawn scenes, and the scenes: what makes quality a number, offline."""

from .load import load_shapes

__all__ = ["load_shapes"]
