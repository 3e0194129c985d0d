"""CLEAR's published files (arXiv:2412.16112): attention projections of every layer of FLUX.1.

    transformer_blocks.{i}.attn.{to_q,to_k,to_v,to_out.0}.{weight,bias}
    single_transformer_blocks.{i}.attn.{to_q,to_k,to_v}.{weight,bias}

are 380 tensors for 19 + 38 layers. The pooled files add one to each layer, 437 in all:

    {...}.{i}.attn.processor.spatial_weight                           (1, 1, 1, pool, 1, pool, 1)

They are whole weights, not differences. The radius is in the name of the file alone.
"""

from __future__ import annotations

import logging
import re

import torch
from torch import nn

from .files import Shapes, Source, check_keys, find, read, read_shapes
from .local import LocalLayer, LocalWeights

__all__ = ["read_clear"]

logger = logging.getLogger(__name__)

_KEY = re.compile(r"((?:single_)?transformer_blocks)\.(\d+)\.attn\.")
_POOL_KEY = "processor.spatial_weight"
_HEADS = {3072: 24}  # of FLUX.1, by its width


def read_clear(
    source: Source,
    window: int | None,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
) -> LocalWeights:
    """The projections in a file, or in clear_local_{window}.safetensors of a folder or repository.

    Raises ValueError where the window is left out, FileNotFoundError for no such file, ValueError
    for a file that is corrupt or has not exactly CLEAR's keys and shapes.
    """
    if window is None:
        raise ValueError(_ask_for_window(str(source)))
    path = find(
        source,
        (f"clear_local_{window}.safetensors",),
        revision=revision,
        local_files_only=local_files_only,
    )
    named = _window_in(path.name)
    if named is not None and named != window:
        logger.warning("%s was trained with window=%d, not %d", path.name, named, window)
    found = read_shapes(path)
    weights = _hollow(found, str(source))
    own = weights.model_keys().items()
    keys = {name: key.replace(".pool_weight", f".{_POOL_KEY}") for name, key in own}
    expected = {keys[name]: tuple(t.shape) for name, t in weights.state_dict().items()}
    check_keys(source, found, expected, exact=True)
    weights.fill(read(path, keys))
    return weights


def _hollow(found: Shapes, source: str) -> LocalWeights:
    """Layers without memory, of the sizes that the keys of a file tell."""
    matches = [match for match in map(_KEY.match, found) if match is not None]
    widths = [shape[0] for key, shape in found.items() if key.endswith("attn.to_q.weight")]
    pools = [shape[3] for key, shape in found.items() if key.endswith(_POOL_KEY)]
    if not (matches and widths):
        raise ValueError(
            f"{source} is no CLEAR file: it has no transformer_blocks.0.attn.to_q.weight, "
            f"its keys are such as {', '.join(list(found)[:3])}"
        )
    layers = {}
    for stack in ("transformer_blocks", "single_transformer_blocks"):
        count = len({match[2] for match in matches if match[1] == stack})
        for i in range(count):
            layer = _hollow_layer(widths[0], stack == "transformer_blocks", pools)
            layers[f"{stack}.{i}.attn"] = layer
    return LocalWeights(layers, source=source)


def _hollow_layer(width: int, is_joint: bool, pools: list[int]) -> LocalLayer:
    with torch.device("meta"):
        linears = [nn.Linear(width, width) for _ in range(4 if is_joint else 3)]
        side = pools[0] if pools else 0
        weight = nn.Parameter(torch.empty(1, 1, 1, side, 1, side, 1)) if pools else None
    return LocalLayer(
        to_q=linears[0],
        to_k=linears[1],
        to_v=linears[2],
        to_out=nn.ModuleList([linears[3], nn.Identity()]) if is_joint else None,
        pool_weight=weight,
        heads=_HEADS.get(width),
    )


def _window_in(name: str) -> int | None:
    match = re.search(r"local_(\d+)", name)
    return None if match is None else int(match[1])


def _ask_for_window(source: str) -> str:
    named = _window_in(source)
    hint = "as the file was trained" if named is None else f"window={named} by its name"
    return f"{source} does not hold its window, so it must be given: {hint}"
