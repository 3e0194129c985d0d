"""One step of the gradients of attention, as Triton helpers.

With p the probabilities, g the gradient of the output and shift = grad_lse - sum_d g out:
dv = p^T g, ds = p (g v^T + shift), dq = ds k, dk = ds^T q.
"""

import triton
import triton.language as tl

from .softmax import scores

__all__ = ["key_step", "query_step"]


@triton.jit
def query_step(s, g0, g1, k0, k1, v0, v1, lse2, shift, acc0, acc1, scale2, SPLIT: tl.constexpr):
    """Add the part of dq that comes from keys with scores s [M, N], -inf where hidden."""
    p = tl.exp2(tl.fma(s, scale2, -lse2[:, None]))
    dp = scores(g0, g1, v0, v1, SPLIT, "ieee")
    ds = (p * (dp + shift[:, None])).to(k0.dtype)
    acc0 = tl.dot(ds, k0, acc0, input_precision="ieee")
    if SPLIT:
        acc1 = tl.dot(ds, k1, acc1, input_precision="ieee")
    return acc0, acc1


@triton.jit
def key_step(
    s, q0, q1, g0, g1, v0, v1, lse2, shift, dk0, dk1, dv0, dv1, scale2, SPLIT: tl.constexpr
):
    """Add the parts of dk and dv that come from queries with scores s [N, M]."""
    p = tl.exp2(tl.fma(s, scale2, -lse2[None, :]))
    dp = scores(v0, v1, g0, g1, SPLIT, "ieee")
    ds = (p * (dp + shift[None, :])).to(q0.dtype)
    p = p.to(g0.dtype)
    dv0 = tl.dot(p, g0, dv0, input_precision="ieee")
    dk0 = tl.dot(ds, q0, dk0, input_precision="ieee")
    if SPLIT:
        dv1 = tl.dot(p, g1, dv1, input_precision="ieee")
        dk1 = tl.dot(ds, q1, dk1, input_precision="ieee")
    return dk0, dk1, dv0, dv1
