"""The candidates of this package, and the dense attention that everything is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from ...kernels import foveated_attention, foveated_keys, local_attention, local_keys
from ...kernels.counts import KeyCount
from .candidate import Candidate, Prepared, exact_dense
from .case import Case

__all__ = ["DENSE", "SDPA", "dense", "own_candidates"]

DENSE, SDPA = "dense", "sdpa"
LEVELS = (1, 2)


def dense(case: Case) -> Candidate:
    """PyTorch's fused attention over every key."""
    return Candidate(
        method=DENSE,
        impl=SDPA,
        needed=case.layout.num_tokens,
        visited=case.layout.num_tokens,
        prepare=lambda q, k, v: Prepared(F.scaled_dot_product_attention),
        exact=exact_dense,
    )


def own_candidates(case: Case, radii: Sequence[int]) -> list[Candidate]:
    """Local and foveated attention of every radius, by every implementation that may run."""
    layout = case.layout
    impls = ("torch", "triton") if case.device.startswith("cuda") else ("torch",)
    found = []
    for radius in radii:
        keys = local_keys(layout, radius)
        attend = partial(local_attention, layout=layout, radius=radius)
        found += [_candidate(f"local, radius {radius}", attend, keys, impl) for impl in impls]
        for levels in LEVELS:
            keys = foveated_keys(layout, radius, levels=levels)
            attend = partial(foveated_attention, layout=layout, radius=radius, levels=levels)
            name = f"foveated, radius {radius}, {levels} level{'s' * (levels > 1)}"
            found += [_candidate(name, attend, keys, impl) for impl in impls]
    return found


def _candidate(
    method: str, attend: Callable[..., torch.Tensor], keys: KeyCount, impl: str
) -> Candidate:
    return Candidate(
        method=method,
        impl=impl,
        needed=keys.needed,
        visited=keys.visited if impl == "torch" else None,
        prepare=lambda q, k, v: Prepared(partial(attend, impl=impl)),
        exact=partial(attend, impl="reference"),
    )
