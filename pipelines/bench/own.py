"""The candidates of this package, and the dense attention that everything is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from ...kernels import (
    agent_attention,
    agent_grid,
    agent_keys,
    foveated_attention,
    foveated_keys,
    linear_attention,
    local_attention,
    local_keys,
    neighborhood_attention,
    neighborhood_keys,
    window_attention,
    window_keys,
)
from ...kernels.counts import KeyCount
from .candidate import Candidate, Prepared, exact_dense
from .case import Case

__all__ = ["DENSE", "SDPA", "dense", "own_candidates"]

DENSE, SDPA = "dense", "sdpa"
LEVELS = (1, 2)
AGENTS = 256
_AGENT = f"agent, {AGENTS} agents"

Attend = Callable[..., torch.Tensor]


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
    """Every operator, by every implementation that may run."""
    impls = ("torch", "triton") if case.device.startswith("cuda") else ("torch",)
    windows = [one for radius in radii for one in _windows(case, radius)]
    return [
        _candidate(case, method, attend, keys, impl)
        for method, attend, keys in (*windows, *_global(case))
        for impl in impls
    ]


def _windows(case: Case, radius: int) -> Iterator[tuple[str, Attend, KeyCount]]:
    """The operators with a window of this radius."""
    layout = case.layout
    attend = partial(local_attention, layout=layout, radius=radius)
    yield f"local, radius {radius}", attend, local_keys(layout, radius)
    for levels in LEVELS:
        name = f"foveated, radius {radius}, {levels} level{'s' * (levels > 1)}"
        attend = partial(foveated_attention, layout=layout, radius=radius, levels=levels)
        yield name, attend, foveated_keys(layout, radius, levels=levels)
    side = 2 * radius - 1
    size = (1, *(min(side, tokens) for tokens in case.grid))
    attend = partial(neighborhood_attention, layout=layout, kernel_size=size)
    yield f"neighbourhood {side}x{side}", attend, neighborhood_keys(layout, size)
    size = (1, 2 * radius, 2 * radius)
    attend = partial(window_attention, layout=layout, window_size=size)
    yield f"window {2 * radius}x{2 * radius}", attend, window_keys(layout, size)


def _global(case: Case) -> Iterator[tuple[str, Attend, KeyCount]]:
    """The operators without a window."""
    layout = case.layout
    attend = partial(agent_attention, layout=layout, agents=AGENTS)
    yield _AGENT, attend, agent_keys(layout, AGENTS)
    # a state of D x D numbers takes the arithmetic of D keys
    keys = KeyCount(case.head_dim, case.head_dim)
    yield "linear, elu", partial(linear_attention, layout=layout), keys


def _plain_agent(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Agents are rounded to the type, so that their error grows with the logits: two passes."""
    layout, attend = case.layout, F.scaled_dot_product_attention
    queries = layout.grid_of(q)
    picture = queries.mT.unflatten(-1, case.grid).flatten(0, 1)
    pooled = F.adaptive_avg_pool2d(picture, agent_grid(layout.grid, AGENTS)[1:])
    agents = pooled.flatten(2).mT.unflatten(0, q.shape[:2])
    grid = attend(queries, agents, attend(agents, k, v))
    return layout.join(grid, attend(layout.context_of(q), k, v)) if case.text else grid


def _candidate(case: Case, method: str, attend: Attend, keys: KeyCount, impl: str) -> Candidate:
    return Candidate(
        method=method,
        impl=impl,
        needed=keys.needed,
        visited=keys.visited if impl == "torch" else None,
        prepare=lambda q, k, v: Prepared(partial(attend, impl=impl)),
        exact=partial(attend, impl="reference"),
        plain=partial(_plain_agent, case) if method == _AGENT else None,
    )
