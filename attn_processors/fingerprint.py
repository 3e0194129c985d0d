"""A short name for weights: does a plan or a student meet the model it was made for?"""

from __future__ import annotations

import hashlib

import torch
from torch import nn

__all__ = ["fingerprint"]

_SAMPLES = 1024  # values looked at in each tensor: reading all of a large model takes minutes


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """Hash of tensor names, shapes and evenly spaced values, rounded to bfloat16.

    Equal for float32 and bfloat16 copies of the same weights.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.flatten()
        picked = flat[:: max(1, flat.numel() // _SAMPLES)].to("cpu", torch.bfloat16)
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(picked.contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
