"""An attention module seen with other projections: what a stock processor is given in its place."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .linear_weights import LinearLayer

__all__ = ["Projected", "check_projections"]


class Projected:
    """The module `attn`, with the projections that a layer has trained.

    The stock processor calls it as it calls the module: norms, residual connection, rescaling and
    every projection that was not trained stay the module's own.
    """

    def __init__(self, attn: nn.Module, layer: LinearLayer) -> None:
        self._attn = attn
        self._layer = layer
        self.to_v = attn.to_v if layer.to_v is None else layer.to_v
        self.to_out = attn.to_out if layer.to_out is None else layer.to_out

    def to_q(self, x: torch.Tensor) -> torch.Tensor:
        """W_q (x + g_q(x))."""
        layer = self._layer
        project = self._attn.to_q if layer.to_q is None else layer.to_q
        return project(x if layer.to_q_ is None else x + layer.to_q_(x))

    def to_k(self, x: torch.Tensor) -> torch.Tensor:
        """W_k (x + g_k(x))."""
        layer = self._layer
        project = self._attn.to_k if layer.to_k is None else layer.to_k
        return project(x if layer.to_k_ is None else x + layer.to_k_(x))

    def __getattr__(self, name: str) -> Any:
        # asked only for what is not set above
        return getattr(self._attn, name)


def check_projections(name: str, attn: nn.Module, layer: LinearLayer) -> None:
    """Raise where the trained projections of a layer cannot stand for those of `attn`.

    NotImplementedError for a module that they do not know, ValueError for other sizes.
    """
    if getattr(attn, "added_kv_proj_dim", None) is not None or getattr(attn, "pre_only", False):
        raise NotImplementedError("trained projections are for self-attention, not joint layers")
    if getattr(attn, "fused_projections", False):
        raise NotImplementedError("the projections are fused; unfuse_qkv_projections() first")
    for part in ("to_q", "to_k", "to_v"):
        trained, own = getattr(layer, part), getattr(attn, part)
        if trained is not None and trained.weight.shape != own.weight.shape:
            raise ValueError(
                f"{name}.{part} is {tuple(own.weight.shape)} in this model and "
                f"{tuple(trained.weight.shape)} in the weights; they are of another base model"
            )
