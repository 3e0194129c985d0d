"""A short name for the weights of a model, to tell whether a student meets its own teacher."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn

__all__ = ["fingerprint", "fingerprint_of_text"]

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


def fingerprint_of_text(content: object) -> str:
    """Hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
