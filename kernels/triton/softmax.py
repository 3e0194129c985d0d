"""One step of the online softmax, as a Triton helper shared by the attention kernels.

The running maximum stays in raw units (before the scale), and differences are taken before they
are scaled: with a fused multiply-add, alpha = exp2(m_old c - m_new c) would be wrong by the
rounding error of the products, which is infinite while both still hold their first value.
"""

import triton
import triton.language as tl

__all__ = ["LN2", "LOG2E", "scores", "update"]

LOG2E = 1.4426950408889634
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def scores(q0, q1, k0, k1, SPLIT: tl.constexpr, PRECISION: tl.constexpr):
    """q k^T [M, N] in float32, the head dim in one part or two."""
    s = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
    if SPLIT:
        s = tl.dot(q1, tl.trans(k1), s, input_precision=PRECISION)
    return s


@triton.jit
def update(
    s, v0, v1, m, l, acc0, acc1, scale2, SPLIT: tl.constexpr, PRECISION: tl.constexpr, shift=0.0
):
    """Take scores s [M, N], -inf where hidden, and values into maximum m, sum l and accumulators.

    `scale2` is the scale of the logits times log2(e); `shift` adds to all scores, row by row.
    """
    m_new = tl.maximum(m, tl.max(s, 1) + shift)
    p = tl.exp2(tl.fma(s, scale2, ((shift - m_new) * scale2)[:, None]))
    alpha = tl.exp2((m - m_new) * scale2)
    l = l * alpha + tl.sum(p, 1)
    weights = p.to(v0.dtype)
    acc0 = tl.dot(weights, v0, acc0 * alpha[:, None], input_precision=PRECISION)
    if SPLIT:
        acc1 = tl.dot(weights, v1, acc1 * alpha[:, None], input_precision=PRECISION)
    return m_new, l, acc0, acc1
