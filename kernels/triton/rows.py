"""Rows of q, k, v in and out of a Triton program, the head dim in one or two powers of two."""

import triton
import triton.language as tl

__all__ = ["head_parts", "load_keys", "load_rows", "store_rows"]


def head_parts(dim: int) -> tuple[int, int]:
    """Two powers of two (the second may be 0) that cover a head dim with the least padding."""
    low = max(16, 1 << (dim.bit_length() - 1))
    if low >= dim:
        return low, 0
    high = max(16, triton.next_power_of_2(dim - low))
    return (2 * low, 0) if high >= low else (low, high)


@triton.jit
def load_rows(
    X, rows, stride, ok,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """WIDTH columns from FIRST of rows of X [*, DIM]; 0 beyond DIM and, if MASKED, where not ok."""
    columns = FIRST + tl.arange(0, WIDTH)
    pointers = X + rows[:, None] * stride + columns[None, :]
    if MASKED:
        x = tl.load(pointers, mask=ok[:, None] & (columns < DIM)[None, :], other=0.0)
    elif FIRST + WIDTH > DIM:
        x = tl.load(pointers, mask=(columns < DIM)[None, :], other=0.0)
    else:
        x = tl.load(pointers)
    return x


@triton.jit
def load_keys(
    K, V, rows, k_stride, v_stride, ok,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Both parts of the rows of K and of V; the second parts repeat the first where D1 = 0."""
    k0 = load_rows(K, rows, k_stride, ok, 0, D0, D, MASKED)
    v0 = load_rows(V, rows, v_stride, ok, 0, D0, D, MASKED)
    k1 = load_rows(K, rows, k_stride, ok, D0, D1, D, MASKED) if D1 > 0 else k0
    v1 = load_rows(V, rows, v_stride, ok, D0, D1, D, MASKED) if D1 > 0 else v0
    return k0, k1, v0, v1


@triton.jit
def store_rows(
    X, values, rows, stride, ok, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr
):
    """Writes what `load_rows` would read."""
    columns = FIRST + tl.arange(0, WIDTH)
    pointers = X + rows[:, None] * stride + columns[None, :]
    mask = ok[:, None] & (columns < DIM)[None, :]
    tl.store(pointers, values.to(X.dtype.element_ty), mask=mask)
