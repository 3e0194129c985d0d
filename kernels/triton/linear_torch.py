"""The kernels of linear attention in plain torch, for tensors on the CPU: float32 throughout."""

import torch
import torch.nn.functional as F

__all__ = ["output", "output_backward", "state", "state_backward"]


def _wide(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _features(x, feature_map):
    if feature_map == "relu":
        return x.relu()
    if feature_map == "elu":
        return F.elu(x) + 1.0
    return x.softmax(-1) if feature_map == "softmax" else x


def _features_backward(x, f, grad, feature_map):
    if feature_map == "relu":
        return grad * (x > 0)
    if feature_map == "elu":
        return torch.where(x > 0, grad, grad * f)
    if feature_map == "softmax":
        return f * (grad - (f * grad).sum(-1, keepdim=True))
    return grad


def state(k, v, feature_map):
    factor = 1.0 / max(k.shape[2], 1)
    f = _features(_wide(k), feature_map)
    return f.transpose(-1, -2) @ _wide(v) * factor, f.sum(2) * factor


def state_backward(grad_s, grad_z, k, v, feature_map):
    factor = 1.0 / max(k.shape[2], 1)
    x = _wide(k)
    f = _features(x, feature_map)
    df = (_wide(v) @ grad_s.transpose(-1, -2) + grad_z.unsqueeze(2)) * factor
    dk = _features_backward(x, f, df, feature_map)
    return dk.to(k.dtype), (f @ grad_s * factor).to(v.dtype)


def output(q, s, z, feature_map, eps):
    f = _features(_wide(q), feature_map)
    return (f @ s / (f @ z.unsqueeze(-1) + eps)).to(q.dtype)


def output_backward(grad, q, s, z, feature_map, eps):
    x, grad = _wide(q), _wide(grad)
    f = _features(x, feature_map)
    weight = 1.0 / (f @ z.unsqueeze(-1) + eps)
    below = -(f @ s * grad).sum(-1, keepdim=True) * weight * weight
    df = grad @ s.transpose(-1, -2) * weight + below * z.unsqueeze(2)
    dq = _features_backward(x, f, df, feature_map)
    ds = (f * weight).transpose(-1, -2) @ grad
    return dq.to(q.dtype), ds, (f * below).sum(2)
