"""The projections of an official base model, read from its own files beside trained ones."""

from __future__ import annotations

from pathlib import Path

import torch

from .files import Source, check_keys, find, read, read_json, read_shapes
from .layers import LayerWeights, frozen_copy
from .projections import PROJECTIONS

__all__ = ["read_base"]

_SINGLE = "diffusion_pytorch_model.safetensors"
_INDEX = f"{_SINGLE}.index.json"
_DENOISERS = ("", "/transformer", "/unet")  # a model's own folder, or that of its pipeline


def read_base(
    source: Source, weights: LayerWeights, *, local_files_only: bool = False
) -> LayerWeights:
    """The projections in `source` that those in `weights` replace.

    source: a diffusers model or pipeline: file, folder, or repository of the hub. Raises ValueError
        where it lacks one or has another shape.
    """
    base = _hollow(weights)
    keys = base.model_keys()
    expected = {keys[name]: tuple(t.shape) for name, t in base.state_dict().items()}
    shards = _shards(source, expected, local_files_only)
    shapes = {path: read_shapes(path) for path in shards}
    check_keys(source, {k: s for of in shapes.values() for k, s in of.items()}, expected)
    tensors = {}
    for path, held in shapes.items():
        tensors |= read(path, {name: key for name, key in keys.items() if key in held})
    base.fill(tensors)
    return base


def _hollow(weights: LayerWeights) -> LayerWeights:
    """`weights` without memory, and without what no base model has."""
    layers = {}
    for name, layer in zip(weights.names, weights, strict=True):
        hollow = frozen_copy(layer, lambda p: torch.empty_like(p, device="meta"))
        layers[name] = type(layer)(**{part: getattr(hollow, part) for part in PROJECTIONS})
    return type(weights)(layers)


def _shards(source: Source, keys: dict[str, tuple[int, ...]], local_files_only: bool) -> set[Path]:
    """The files of `source` that hold the keys, or its only file."""
    refused = None
    for folder in _DENOISERS:
        place = f"{source}{folder}"
        try:
            path = find(place, (_INDEX, _SINGLE), local_files_only=local_files_only)
        except FileNotFoundError as error:
            refused = refused or error
            continue
        if path.suffix != ".json":
            return {path}
        shard_of = read_json(path).get("weight_map", {})
        names = {shard_of[key] for key in keys if key in shard_of}
        return {find(place, (name,), local_files_only=local_files_only) for name in names}
    raise refused
