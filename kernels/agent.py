"""Agent attention: grid tokens see the rest through a few agents, queries pooled from the grid.

With agents A, V_A = softmax(s A K^T + B1) V and out = softmax(s2 Q A^T + B2) V_A + shortcut V +
DWConv(V): Agent Attention, arXiv:2312.08874, whose AgentSD runs without training at s2 = D^-0.15
and shortcut 0.075. Text keys join the first pass. A bias is a table over (agent, token) positions
resized to both grids; the paper's is tied to one number of agents, and adds row and column terms.
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F

from .counts import KeyCount
from .inputs import check_impl, check_positive, check_tensors
from .layout import TokenLayout
from .partial import partial_attention
from .reference import reference_agent
from .residual import depthwise_residual

__all__ = ["agent_attention", "agent_grid", "agent_keys"]

Sizes = tuple[int, int, int]

# head dimensions the fused kernels take are multiples of this
_DIM_STEP = 8


def agent_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    layout: TokenLayout,
    agents: int = 256,
    scale2_exponent: float = 0.5,
    shortcut: float = 0.0,
    key_bias: torch.Tensor | None = None,
    query_bias: torch.Tensor | None = None,
    conv: torch.Tensor | None = None,
    scale: float | None = None,
    impl: str | None = None,
) -> torch.Tensor:
    """Attend the grid tokens of q, k, v [B, H, N, D] through at most `agents`; out [B, H, N, D].

    `scale2_exponent` e gives the second pass the scale D^-e, or scale^(2 e). `shortcut` times the
    values is added to the grid's output. `key_bias` and `query_bias` [H, s, s, s, s] are B1 and B2
    by row and column of the agent, then of the token; `conv` [H, D, c, c] is the depth-wise kernel.
    Context queries are dense over all keys.
    """
    check_tensors(q, k, v, layout)
    check_positive("agents", agents)
    for name, table in (("key_bias", key_bias), ("query_bias", query_bias)):
        _check_table(name, table, q.shape[1])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    options = (scale2_exponent, shortcut, key_bias, query_bias, conv, scale)
    cells = agent_grid(layout.grid, agents)
    if check_impl(impl) == "reference":
        return reference_agent(q, k, v, layout, cells, *options)
    out = _through_agents(q, k, v, layout, cells, *options)
    if layout.num_context == 0:
        return out
    context, _ = partial_attention(layout.context_of(q), k, v, None, scale)
    return layout.join(out, context)


def agent_grid(grid: Sizes, agents: int) -> Sizes:
    """The largest grid of at most `agents` cells that has the proportions of `grid`."""
    longest = max(grid)
    low, high = 1, longest
    while low < high:
        middle = (low + high + 1) // 2
        if prod(_shrunk(grid, middle, longest)) <= agents:
            low = middle
        else:
            high = middle - 1
    return _shrunk(grid, low, longest)


def _shrunk(grid: Sizes, part: int, whole: int) -> Sizes:
    return tuple(max(1, size * part // whole) for size in grid)


def agent_keys(layout: TokenLayout, agents: int = 256) -> KeyCount:
    """Keys per grid query of `agent_attention`: the agents, and its share of what these see."""
    check_positive("agents", agents)
    count = prod(agent_grid(layout.grid, agents))
    keys = count + count * layout.num_tokens / layout.num_grid
    return KeyCount(keys, keys)


def _check_table(name: str, table: torch.Tensor | None, heads: int) -> None:
    if table is None:
        return
    if table.dim() != 5 or table.shape != (heads, *[table.shape[-1]] * 4):
        raise ValueError(
            f"{name} must be [H, s, s, s, s] with H = {heads}, got {tuple(table.shape)}"
        )


def _through_agents(
    q, k, v, layout, cells, scale2_exponent, shortcut, key_bias, query_bias, conv, scale
) -> torch.Tensor:
    """Both passes for the grid queries: out [B, H, f*h*w, D]."""
    grid_q = layout.grid_of(q)
    means = _pool(grid_q, layout.grid, cells)
    seen, _ = _attend(*_biased(means, k, key_bias, layout, cells, scale), v, scale)
    scale2 = scale ** (2 * scale2_exponent)
    inner = TokenLayout(grid=layout.grid)
    keys, queries = _biased(means, grid_q, query_bias, inner, cells, scale2)
    out, _ = _attend(queries, keys, seen, scale2)
    if shortcut:
        out = out + shortcut * layout.grid_of(v)
    if conv is not None:
        out = out + depthwise_residual(v, layout=layout, weight=conv)
    return out


def _pool(x: torch.Tensor, grid: Sizes, cells: Sizes) -> torch.Tensor:
    """Mean of x [B, H, f*h*w, D] over each cell: [B, H, cells, D]. Cells may share tokens."""
    planes = x.unflatten(2, grid).movedim(-1, 2).flatten(0, 1)  # [B * H, D, f, h, w]
    pooled = F.adaptive_avg_pool3d(planes, cells).flatten(2)
    return pooled.transpose(1, 2).unflatten(0, x.shape[:2])


def _biased(agents, tokens, table, layout, cells, scale) -> tuple[torch.Tensor, torch.Tensor]:
    """Agents and tokens whose products carry the bias in further dimensions of the head.

    The bias is R_a T R_t^T with matrices R that resize the table T, so no agents x tokens tensor
    is made, and gradients reach T through the fused kernels.
    """
    if table is None:
        return agents, tokens
    side = table.shape[-1]
    of_agents = _resize(side, cells, tokens) @ table.flatten(3).flatten(1, 2).to(tokens.dtype)
    of_tokens = tokens.new_zeros(tokens.shape[2], side * side)
    of_tokens[layout.grid_slice] = _resize(side, layout.grid, tokens)
    parts = ((agents, of_agents / scale), (tokens, of_tokens))
    agents, tokens = (torch.cat((x, y.expand(*x.shape[:2], -1, -1)), -1) for x, y in parts)
    fill = (0, -agents.shape[-1] % _DIM_STEP)
    return F.pad(agents, fill), F.pad(tokens, fill)


def _resize(side: int, grid: Sizes, like: torch.Tensor) -> torch.Tensor:
    """The matrix [f*h*w, side * side] of bilinear interpolation, the same in every frame."""
    frames, height, width = grid
    dtype = torch.promote_types(like.dtype, torch.float32)
    basis = torch.eye(side * side, dtype=dtype, device=like.device).view(1, -1, side, side)
    planes = F.interpolate(basis, size=(height, width), mode="bilinear")
    return planes[0].flatten(1).T.to(like.dtype).repeat(frames, 1)


def _attend(q, k, v, scale) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention of queries and keys that may have more dimensions than the values."""
    dim = v.shape[-1]
    out, lse = partial_attention(q, k, F.pad(v, (0, q.shape[-1] - dim)), None, scale)
    return out[..., :dim], lse
