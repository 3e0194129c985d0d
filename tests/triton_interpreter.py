"""Triton kernels without a GPU: its interpreter, with bfloat16 as the hardware has it.

Import it before triton. Triton 3.9's interpreter multiplies the raw bits of bfloat16 in `tl.dot`
(triton#11584) and truncates where the hardware rounds to nearest even; both are mended here. It
also looks through the whole language at every call of a helper and computes every integer twice,
for overflow: here it does neither, and takes half the time. Where there is a GPU nothing of this
matters: the kernels run on it.
"""

import os
from types import SimpleNamespace

import numpy as np
import torch

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, InterpreterOptions, TensorHandle

__all__ = ["DEVICE"]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_PATCHED = SimpleNamespace(restore=lambda: None)

_create_dot, _cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl


def _create_dot_of_values(builder, a, b, *rest):
    return _create_dot(builder, _widened(a), _widened(b), *rest)


def _cast_to_nearest(builder, src, dst_type):
    if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
        return TensorHandle(_nearest(src.data), tl.bfloat16)
    return _cast(builder, src, dst_type)


def _widened(handle):
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _nearest(data):
    bits = np.ascontiguousarray(data, np.float32).view(np.uint32)
    upper = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(data), 0x7FC0, upper).astype(np.uint16)


InterpreterBuilder.create_dot = _create_dot_of_values
InterpreterBuilder.cast_impl = _cast_to_nearest

if DEVICE == "cpu":
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda fn: _PATCHED
    interpreter.interpreter_builder.options = InterpreterOptions(sanitize_overflow=False)
