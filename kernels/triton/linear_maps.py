"""Feature maps of linear attention and their gradients, as Triton helpers on float32 rows."""

import triton
import triton.language as tl

__all__ = ["FEATURE_MAPS", "features", "features_backward"]

FEATURE_MAPS = ("identity", "relu", "elu", "softmax")


@triton.jit
def features(x, ok, inside, MAP: tl.constexpr):
    """phi of rows x [rows, columns], 0 where not ok [rows] or not inside [columns]."""
    if MAP == "relu":
        x = tl.maximum(x, 0.0)
    elif MAP == "elu":
        x = tl.where(x > 0, x + 1.0, tl.exp(tl.minimum(x, 0.0)))
    elif MAP == "softmax":
        x = tl.where(inside[None, :], x, -float("inf"))
        x = tl.exp(x - tl.max(x, 1)[:, None])
        x = x / tl.sum(x, 1)[:, None]
    return tl.where(ok[:, None] & inside[None, :], x, 0.0)


@triton.jit
def features_backward(x, f, grad, MAP: tl.constexpr):
    """The gradient of x from that of f = phi(x)."""
    if MAP == "relu":
        grad = tl.where(x > 0, grad, 0.0)
    elif MAP == "elu":
        grad = tl.where(x > 0, grad, grad * f)
    elif MAP == "softmax":
        grad = f * (grad - tl.sum(f * grad, 1)[:, None])
    return grad
