"""Triton kernels of the operators. Most modules here import triton: load them inside functions."""

__all__: list[str] = []
