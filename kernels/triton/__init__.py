"""Triton kernels of the operators; every module here imports triton, so import none at load time."""

__all__: list[str] = []
