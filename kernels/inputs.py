"""Checks every operator makes on its tensors and options before any work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from math import isfinite
from numbers import Real
from typing import Any

import torch

from .layout import TokenLayout

__all__ = [
    "HAS_TRITON",
    "check_axes",
    "check_flag",
    "check_impl",
    "check_impl_name",
    "check_number",
    "check_positive",
    "check_tensors",
    "is_number",
    "why_not_attention",
]

HAS_TRITON = find_spec("triton") is not None


def check_tensors(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: TokenLayout | None = None
) -> None:
    """Raise ValueError unless q, k, v are [B, H, *, D] of one kind and fit the layout."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ValueError(f"{name} must be [B, H, N, D], got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {x.dtype}")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(
                f"{name} must be {q.dtype} on {q.device} like q, got {x.dtype}, {x.device}"
            )
    if k.shape != v.shape:
        raise ValueError(f"k and v must have one shape, got {tuple(k.shape)} and {tuple(v.shape)}")
    if q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q {tuple(q.shape)} and k {tuple(k.shape)} must agree in B, H and D")
    if layout is not None:
        _check_layout(q, k, layout)


def _check_layout(q: torch.Tensor, k: torch.Tensor, layout: TokenLayout) -> None:
    if not isinstance(layout, TokenLayout):
        raise ValueError(f"layout must be a TokenLayout, got {layout!r}")
    for name, x in (("q", q), ("k", k)):
        if x.shape[2] != layout.num_tokens:
            raise ValueError(
                f"{name} has {x.shape[2]} tokens, but {layout} holds {layout.num_tokens}; "
                "give the layout of this call"
            )


def check_positive(name: str, value: int, least: int = 1) -> None:
    """Raise ValueError unless value is an integer >= least."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def is_number(value: Any) -> bool:
    """Whether value is one finite real number."""
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)


def check_number(name: str, value: Any, least: float | None = None) -> None:
    """Raise ValueError unless value is a finite number, and not below `least`."""
    if not is_number(value) or (least is not None and value < least):
        limit = "" if least is None else f" >= {least}"
        raise ValueError(f"{name} must be a number{limit}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError unless value is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_axes(name: str, values: Sequence[int], least: int = 1) -> None:
    """Raise ValueError unless values are integers >= least for (frames, rows, columns)."""
    if not isinstance(values, Sequence) or len(values) != 3:
        raise ValueError(
            f"{name} must be (frames, rows, columns), got {values!r}; on an image frames is {least}"
        )
    for value in values:
        check_positive(name, value, least)


def check_impl_name(impl: str | None) -> None:
    """Raise ValueError unless impl is None or names an implementation."""
    if impl not in (None, "reference", "torch", "triton"):
        raise ValueError(f"impl must be None, 'reference', 'torch' or 'triton', got {impl!r}")


def check_impl(
    impl: str | None,
    q: torch.Tensor | None = None,
    why_not_triton: Callable[[], str] = lambda: "this operator has no Triton kernel yet",
) -> str:
    """The implementation to run: "reference", "torch" or "triton". A named one is never replaced.

    None means "triton" where q lies on a CUDA or ROCm device and `why_not_triton` has no reason
    against it, else "torch".
    """
    check_impl_name(impl)
    if impl is None:
        on_gpu = q is not None and q.device.type == "cuda"
        return "triton" if on_gpu and not why_not_triton() else "torch"
    if impl == "triton" and (reason := why_not_triton()):
        raise NotImplementedError(f"impl='triton': {reason}")
    return impl


def why_not_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None
) -> str:
    """Why Triton's attention kernels cannot take q, k, v [B, H, N, D]; empty when they can."""
    if not HAS_TRITON:
        return "triton is not installed"
    from .triton.device import why_not_tensors

    return why_not_tensors(q, k, v, scale=scale)
