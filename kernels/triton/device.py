"""What a device lacks to run the kernels, and what they are compiled for there."""

from __future__ import annotations

import torch
import triton

__all__ = ["interprets", "target", "tile_class", "why_not_device", "why_not_tensors"]


def why_not_tensors(*tensors: torch.Tensor, scale: float | None) -> str:
    """Why the attention kernels cannot take q, k, v [B, H, N, D]; empty when they can."""
    dtype, dim = tensors[0].dtype, tensors[0].shape[-1]
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"{dtype}, the kernels take float16, bfloat16 and float32"
    if dim > 160:
        return f"head dim {dim}, the kernels take up to 160"
    if any(x.stride(-1) != 1 for x in tensors):
        return "the head dim of q, k or v is not contiguous"
    if scale is not None and scale <= 0:
        return f"scale {scale}, the kernels take positive ones"
    return why_not_device(tensors[0].device)


def why_not_device(device: torch.device) -> str:
    """Why no kernel runs on a device; empty when they do."""
    if device.type == "cpu":
        return "" if interprets() else "the tensors are on the CPU"
    if device.type != "cuda":
        return f"no kernels for device {device.type}"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "compute capability below 8.0, which has no bfloat16 tensor cores"
    return ""


def target(device: torch.device) -> str:
    """The architecture of a device, such as "sm_89" or "gfx942"; "interpreter" on the CPU."""
    if device.type == "cpu":
        return "interpreter"
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def tile_class(architecture: str) -> str:
    """The architecture whose shipped tiles another one takes."""
    if architecture.startswith("gfx"):
        return "gfx942"
    return {"sm_9": "sm_90", "sm_10": "sm_100"}.get(architecture[:-1], "sm_80")


@torch.compiler.assume_constant_result
def interprets() -> bool:
    """Whether Triton interprets its kernels, on the CPU."""
    return triton.knobs.runtime.interpret
