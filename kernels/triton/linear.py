"""Linear attention as PyTorch operators, with gradients, for torch.compile: state and output.

out_i = phi(q_i) S / (phi(q_i) z + eps) with the means S = 1/N sum_j phi(k_j) v_j^T and
z = 1/N sum_j phi(k_j): LinFusion's convention (arXiv:2409.02097 and its code), to which its eps of
1e-4 belongs. The state alone is what ranks exchange and what hybrids subtract from. CPU tensors run
the torch path of the same operators, unless Triton interprets its kernels.
"""

import torch

from . import linear_backward, linear_forward, linear_torch
from .device import interprets, why_not_device
from .linear_maps import FEATURE_MAPS
from .linear_tiles import empty_rows

__all__ = ["linear_attention", "linear_output", "linear_state", "why_not"]

Pair = tuple[torch.Tensor, torch.Tensor]
Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    feature_map: str = "elu",
    eps: float = 1e-4,
) -> torch.Tensor:
    """out [B, H, M, V] of q [B, H, M, K] over k [B, H, N, K] and v [B, H, N, V].

    `feature_map` is "identity", "relu", "elu" (elu + 1) or "softmax" (over the K features).
    """
    return linear_output(q, *linear_state(k, v, feature_map), feature_map, eps)


def linear_state(k: torch.Tensor, v: torch.Tensor, feature_map: str = "elu") -> Pair:
    """S [B, H, K, V] and z [B, H, K], at least float32, of k [B, H, N, K] and v [B, H, N, V]."""
    _require(feature_map, k, v)
    return _state(k, v, feature_map)


def linear_output(
    q: torch.Tensor, s: torch.Tensor, z: torch.Tensor, feature_map: str = "elu", eps: float = 1e-4
) -> torch.Tensor:
    """out [B, H, N, V] of q [B, H, N, K] from a state s [B, H, K, V], z [B, H, K]."""
    _require(feature_map, q)
    return _output(q, s, z, feature_map, eps)


def why_not(*tensors: torch.Tensor) -> str:
    """Why the kernels cannot take these tensors [B, H, N, D]; empty when they can."""
    for x in tensors:
        if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            return f"{x.dtype}, the kernels take float16, bfloat16 and float32"
        if x.dtype != tensors[0].dtype:
            return f"{x.dtype} beside {tensors[0].dtype}, must be one type"
        if x.shape[-1] > 256:
            return f"head dim {x.shape[-1]}, at most 256"
        if x.shape[0] * x.shape[1] > 65535:
            return f"{x.shape[0] * x.shape[1]} pairs of batch entry and head, at most 65535"
        if x.stride(-1) != 1:
            return "the head dim is not contiguous"
    return why_not_device(tensors[0].device)


def _require(feature_map: str, *tensors: torch.Tensor) -> None:
    if feature_map not in FEATURE_MAPS:
        raise ValueError(f"feature_map must be one of {FEATURE_MAPS}, got {feature_map!r}")
    on_cpu = tensors[0].device.type == "cpu" and not interprets()
    if not on_cpu and (reason := why_not(*tensors)):
        raise NotImplementedError(f"linear attention: {reason}")


@torch.library.custom_op("foveate::linear_state_forward", mutates_args=(), device_types="cuda")
def _state(k: torch.Tensor, v: torch.Tensor, feature_map: str) -> Pair:
    return linear_forward.state(k, v, feature_map)


@torch.library.custom_op("foveate::linear_state_backward", mutates_args=(), device_types="cuda")
def _state_backward(
    grad_s: torch.Tensor, grad_z: torch.Tensor, k: torch.Tensor, v: torch.Tensor, feature_map: str
) -> Pair:
    return linear_backward.state_backward(grad_s, grad_z, k, v, feature_map)


@torch.library.custom_op("foveate::linear_output_forward", mutates_args=(), device_types="cuda")
def _output(
    q: torch.Tensor, s: torch.Tensor, z: torch.Tensor, feature_map: str, eps: float
) -> torch.Tensor:
    return linear_forward.output(q, s, z, feature_map, eps)


@torch.library.custom_op("foveate::linear_output_backward", mutates_args=(), device_types="cuda")
def _output_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    s: torch.Tensor,
    z: torch.Tensor,
    feature_map: str,
    eps: float,
) -> Triple:
    return linear_backward.output_backward(grad, q, s, z, feature_map, eps)


@_state.register_kernel("cpu")
def _(k, v, feature_map):
    if interprets():
        return linear_forward.state(k, v, feature_map)
    s, z = linear_torch.state(k, v, feature_map)
    return s.contiguous(), z.contiguous()


@_state_backward.register_kernel("cpu")
def _(grad_s, grad_z, k, v, feature_map):
    if interprets():
        return linear_backward.state_backward(grad_s, grad_z, k, v, feature_map)
    dk, dv = linear_torch.state_backward(grad_s, grad_z, k, v, feature_map)
    return torch.empty_like(k).copy_(dk), torch.empty_like(v).copy_(dv)


@_output.register_kernel("cpu")
def _(q, s, z, feature_map, eps):
    if interprets():
        return linear_forward.output(q, s, z, feature_map, eps)
    return empty_rows(q, s.shape[-1]).copy_(linear_torch.output(q, s, z, feature_map, eps))


@_output_backward.register_kernel("cpu")
def _(grad, q, s, z, feature_map, eps):
    if interprets():
        return linear_backward.output_backward(grad, q, s, z, feature_map, eps)
    dq, ds, dz = linear_torch.output_backward(grad, q, s, z, feature_map, eps)
    return torch.empty_like(q).copy_(dq), ds.contiguous(), dz.contiguous()


@_state.register_fake
def _(k, v, feature_map):
    wide = torch.promote_types(k.dtype, torch.float32)
    s = k.new_empty(*k.shape[:2], k.shape[3], v.shape[3], dtype=wide)
    return s, k.new_empty(*k.shape[:2], k.shape[3], dtype=wide)


@_state_backward.register_fake
def _(grad_s, grad_z, k, v, feature_map):
    return torch.empty_like(k), torch.empty_like(v)


@_output.register_fake
def _(q, s, z, feature_map, eps):
    return empty_rows(q, s.shape[-1])


@_output_backward.register_fake
def _(grad, q, s, z, feature_map, eps):
    return torch.empty_like(q), s.new_empty(s.shape), z.new_empty(z.shape)


def _save_state(ctx, inputs, output):
    k, v, ctx.feature_map = inputs
    ctx.save_for_backward(k, v)


def _differentiate_state(ctx, grad_s, grad_z):
    return *_state_backward(grad_s, grad_z, *ctx.saved_tensors, ctx.feature_map), None


def _save_output(ctx, inputs, output):
    q, s, z, ctx.feature_map, ctx.eps = inputs
    ctx.save_for_backward(q, s, z)


def _differentiate_output(ctx, grad):
    return *_output_backward(grad, *ctx.saved_tensors, ctx.feature_map, ctx.eps), None, None


_state.register_autograd(_differentiate_state, setup_context=_save_state)
_output.register_autograd(_differentiate_output, setup_context=_save_output)
