"""Which model a plan was calibrated on: its attention layers and a sample of all weights."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

__all__ = ["fingerprint"]

_SAMPLES = 64  # of each weight


def fingerprint(model: nn.Module) -> str:
    """The same for the same weights in any precision down to bfloat16, on any device."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        if not weight.is_floating_point():
            continue
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES]
        digest.update(sample.to(torch.bfloat16).float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
