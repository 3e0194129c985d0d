"""LinFusion's published folders (arXiv:2409.02097): config.json and one file of tensors.

`modules_list` of the configuration names each layer with its width, its heads and the middle width
of g (null: the layer's width; -1: g is the identity). Layer i of that list has in the file

    {i}.{to_q,to_k,to_v}.weight    {i}.to_out.0.{weight,bias}
    {i}.{to_q_,to_k_}.{0,1,3}.{weight,bias}

17 tensors, or 5 where g is the identity. They are whole weights, not differences.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from .files import Source, check_keys, find, read, read_json, read_shapes
from .linear import LinearLayer, LinearWeights, generalised

__all__ = ["read_linfusion"]

_CONFIG = "config.json"
_TENSORS = "diffusion_pytorch_model.safetensors"


def read_linfusion(
    source: Source, *, revision: str | None = None, local_files_only: bool = False
) -> LinearWeights:
    """The trained layers in a folder or repository, or of a file with its config.json beside it.

    Raises FileNotFoundError where one of the two is not there, ValueError for a file that is
    corrupt or has not exactly the keys and shapes of its configuration.
    """
    where = {"revision": revision, "local_files_only": local_files_only}
    path = find(source, (_TENSORS,), **where)
    is_file = Path(source).expanduser().is_file()
    config = read_json(find(path.parent if is_file else source, (_CONFIG,), **where))
    weights = _hollow(config, str(source))
    expected = {name: tuple(tensor.shape) for name, tensor in weights.state_dict().items()}
    check_keys(source, read_shapes(path), expected, exact=True)
    weights.fill(read(path, {name: name for name in expected}))
    return weights


def _hollow(config: dict[str, Any], source: str) -> LinearWeights:
    """Layers without memory, of the sizes that the configuration tells."""
    modules = config.get("modules_list")
    if not isinstance(modules, list) or not modules:
        raise ValueError(f"{source}: {_CONFIG} has no modules_list, so it is no LinFusion folder")
    layers = {}
    for i, module in enumerate(modules):
        try:
            layers[module["module_name"]] = _hollow_layer(
                module["dim_n"], module["heads"], module["projection_mid_dim"]
            )
        except (KeyError, TypeError):
            raise ValueError(
                f"{source}: modules_list[{i}] must give module_name, dim_n, heads and "
                f"projection_mid_dim, got {module!r}"
            ) from None
    return LinearWeights(layers, source=source)


def _hollow_layer(width: int, heads: int, mid_dim: int | None) -> LinearLayer:
    with torch.device("meta"):
        return LinearLayer(
            to_q=nn.Linear(width, width, bias=False),
            to_k=nn.Linear(width, width, bias=False),
            to_v=nn.Linear(width, width, bias=False),
            to_out=nn.ModuleList([nn.Linear(width, width), nn.Identity()]),
            to_q_=generalised(width, mid_dim),
            to_k_=generalised(width, mid_dim),
            heads=heads,
        )
