"""Feature maps of linear attention: phi(q) . phi(k) stands in for exp(q . k / sqrt(D)).

A map takes x [B, H, n, D] in float32 or wider, n any run of tokens, to [B, H, n, D'], each token by
itself. elu + 1: arXiv:2006.16236, Eq. 7. focused: arXiv:2308.00442, Eq. 5. hedgehog:
arXiv:2402.04347, as arXiv:2410.10254 trains it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F

__all__ = [
    "FEATURE_MAPS",
    "FeatureMap",
    "FeatureMaps",
    "elu_map",
    "focused_map",
    "hedgehog_map",
    "identity_map",
    "map_pair",
    "relu_map",
    "softmax_map",
]

FeatureMap = Callable[[torch.Tensor], torch.Tensor]
FeatureMaps = str | FeatureMap | tuple[FeatureMap, FeatureMap]

# keeps a token whose entries are all negative from the zero vector
_FOCUSED_FLOOR = 1e-6
_HEDGEHOG_FLOOR = 1e-12


def elu_map(x: torch.Tensor) -> torch.Tensor:
    """elu(x) + 1, positive."""
    return F.elu(x) + 1


def relu_map(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0)."""
    return F.relu(x)


def softmax_map(x: torch.Tensor) -> torch.Tensor:
    """softmax over the features of a token, positive."""
    return x.softmax(-1)


def identity_map(x: torch.Tensor) -> torch.Tensor:
    """x itself, which may be negative: for the affine form alone."""
    return x


def focused_map(
    x: torch.Tensor, scale: torch.Tensor | None = None, power: float = 3
) -> torch.Tensor:
    """|y| y^power / |y^power| with y = (relu(x) + 1e-6) / softplus(scale).

    Norms run over all heads of a token together. `scale` [H, 1, D] is trained; None divides by 1.
    """
    x = F.relu(x) + _FOCUSED_FLOOR
    if scale is not None:
        x = x / F.softplus(scale)
    sharp = x.pow(power)
    return sharp * (_token_norm(x) / _token_norm(sharp))


def hedgehog_map(x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """[softmax(x W), softmax(-x W)] over features, W [H, D, D'] trained; D' doubles.

    None is the identity times D^(-1/4), which splits the softmax's scale between both sides.
    """
    x = x * x.shape[-1] ** -0.25 if weight is None else x @ weight.to(x.dtype)
    return torch.cat((x.softmax(-1), (-x).softmax(-1)), -1).clamp_min(_HEDGEHOG_FLOOR)


FEATURE_MAPS: Mapping[str, FeatureMap] = MappingProxyType(
    {
        "elu": elu_map,
        "relu": relu_map,
        "softmax": softmax_map,
        "identity": identity_map,
        "focused": focused_map,
        "hedgehog": hedgehog_map,
    }
)


def map_pair(feature_map: FeatureMaps) -> tuple[FeatureMap, FeatureMap]:
    """The maps of queries and of keys, from a name, one callable for both, or the pair."""
    if isinstance(feature_map, str) and feature_map in FEATURE_MAPS:
        return (FEATURE_MAPS[feature_map],) * 2
    if callable(feature_map):
        return feature_map, feature_map
    if isinstance(feature_map, tuple) and len(feature_map) == 2 and all(map(callable, feature_map)):
        return feature_map
    raise ValueError(
        f"feature_map must be one of {', '.join(map(repr, FEATURE_MAPS))}, a callable, "
        f"or a pair of callables for queries and keys, got {feature_map!r}"
    )


def _token_norm(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum((-3, -1), keepdim=True).sqrt()
