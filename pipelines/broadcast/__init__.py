"""Measuring what broadcasting does to a pipeline, and choosing a plan by it."""

from .calibrate import calibrate

__all__ = ["calibrate"]
