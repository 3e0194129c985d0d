"""What a modulation asks of one attention call, in a form that needs no queries x keys tensor.

    s'_ij = q_scale_i gamma_g(i),j s_ij + bias_g(i),j + a_i . b_j
    O     = (1 - a) sum_b w_b softmax(s'_b) L diag(c) v + a W L diag(c) v

g is the group of a query. Plans merge: scales multiply, biases add, groups refine each other, value
maps apply in order, branches nest. Queries, keys or values can be replaced by one plan only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

__all__ = ["Blend", "Branch", "Extra", "GroupedKeys", "LowRank", "Plan", "key_bias", "merge_plans"]


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupedKeys:
    """What each group of queries does with the keys.

    groups: [b, N] int64, the group of every query; b is 1 where all rows agree.
    bias: [G, M], added to the logits; -inf hides a key.
    scale: [G, M], factors of the logits, or None.
    gives_way: whether its bias is left out where it and another would leave a group no key.
    """

    groups: torch.Tensor
    bias: torch.Tensor
    scale: torch.Tensor | None = None
    gives_way: bool = False

    @functools.cached_property
    def queries(self) -> list[torch.Tensor]:
        """The queries of each group, where all rows agree."""
        return [(self.groups[0] == g).nonzero()[:, 0] for g in range(len(self.bias))]

    @functools.cached_property
    def keys(self) -> list[torch.Tensor]:
        """The keys that each group sees."""
        return [row.nonzero()[:, 0] for row in self.bias > -torch.inf]

    def merge(self, other: GroupedKeys) -> GroupedKeys:
        """Both at once: a group for every pair of groups that occurs."""
        count = len(other.bias)
        pairs, groups = torch.unique(self.groups * count + other.groups, return_inverse=True)
        one, two = pairs // count, pairs % count
        scale = None
        if self.scale is not None or other.scale is not None:
            scale = self._scale()[one] * other._scale()[two]
        bias = self.bias[one] + other.bias[two]
        if self.gives_way != other.gives_way:
            stays = other.bias[two] if self.gives_way else self.bias[one]
            bias = torch.where((bias > -torch.inf).any(1, keepdim=True), bias, stays)
        gives_way = self.gives_way and other.gives_way
        return GroupedKeys(groups=groups, bias=bias, scale=scale, gives_way=gives_way)

    def _scale(self) -> torch.Tensor:
        return torch.ones_like(self.bias) if self.scale is None else self.scale


@dataclass(frozen=True, eq=False)
class LowRank:
    """The bias a_i . b_j: a [b, H, N, R], b [b, H, M, R]; b and H may be 1."""

    a: torch.Tensor
    b: torch.Tensor

    def merge(self, other: LowRank) -> LowRank:
        return LowRank(_beside(self.a, other.a), _beside(self.b, other.b))


@dataclass(frozen=True, eq=False)
class Extra:
    """Further keys and values [b, H, M', D] behind the call's own; `grouped` says who sees them."""

    k: torch.Tensor
    v: torch.Tensor
    grouped: GroupedKeys | None = None


@dataclass(frozen=True, eq=False)
class Blend:
    """Weights W [b, H, N, M] from elsewhere and their share a: for few queries and keys."""

    weights: torch.Tensor
    share: float


@dataclass(frozen=True, eq=False)
class Branch:
    """One of several softmaxes: its weight [b, 1, N, 1], and what is its own."""

    weight: torch.Tensor
    plan: Plan


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Edits of one call; what is left out changes nothing.

    q_scale: a number, or [b, H, N, 1].
    extra: further keys and values, behind the call's own.
    queries [b, H, N, D], keys, values [b, H, M, D]: in place of the call's own; b may be 1. A plan
        that replaces the keys says by `grouped` which of them are padding.
    value_scale: [M], factors c of the values: of the attention to each token, not normalised again.
    value_map: linear in the scaled values [b, H, M, D], which it returns mapped.
    branches: whose weighted outputs add up; weights are taken as they are.
    blend: of the whole with weights from elsewhere.
    """

    q_scale: float | torch.Tensor = 1.0
    grouped: GroupedKeys | None = None
    low_rank: LowRank | None = None
    extra: tuple[Extra, ...] = ()
    queries: torch.Tensor | None = None
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None
    value_scale: torch.Tensor | None = None
    value_map: Callable[[torch.Tensor], torch.Tensor] | None = None
    branches: tuple[Branch, ...] = ()
    blend: Blend | None = None

    def of_columns(self) -> Plan:
        """The same weights over the call's own tokens, for columns in the place of values."""
        extra = tuple(replace(one, v=torch.zeros_like(one.v)) for one in self.extra)
        branches = tuple(replace(one, plan=one.plan.of_columns()) for one in self.branches)
        return replace(self, values=None, extra=extra, branches=branches)


def key_bias(bias: torch.Tensor, num_queries: int) -> GroupedKeys:
    """A bias [M] that is the same for every query."""
    groups = torch.zeros(1, num_queries, dtype=torch.int64, device=bias.device)
    return GroupedKeys(groups=groups, bias=bias[None])


def merge_plans(plans: Sequence[Plan]) -> Plan:
    """One plan that does what all of them ask."""
    # what gives way comes last, so that it gives way to all others
    groups = [plan.grouped for plan in plans if plan.grouped is not None]
    groups.sort(key=lambda one: one.gives_way)
    merged = functools.reduce(_merge, [replace(plan, grouped=None) for plan in plans])
    grouped = functools.reduce(GroupedKeys.merge, groups) if groups else None
    return replace(merged, grouped=grouped)


def _merge(one: Plan, two: Plan) -> Plan:
    """Both but for their groups."""
    return Plan(
        q_scale=one.q_scale * two.q_scale,
        low_rank=_either(one.low_rank, two.low_rank, LowRank.merge),
        extra=one.extra + two.extra,
        queries=_either(one.queries, two.queries, _refuse),
        keys=_either(one.keys, two.keys, _refuse),
        values=_either(one.values, two.values, _refuse),
        value_scale=_either(one.value_scale, two.value_scale, torch.mul),
        value_map=_either(one.value_map, two.value_map, _in_turn),
        branches=_nest(one.branches, two.branches),
        blend=_either(one.blend, two.blend, _refuse),
    )


def _either(one, two, both):
    if one is None or two is None:
        return two if one is None else one
    return both(one, two)


def _refuse(one, two):
    raise ValueError(
        "two modulations replace the same queries, keys or values; leave one of them out"
    )


def _in_turn(one, two):
    return lambda v: two(one(v))


def _nest(one: tuple[Branch, ...], two: tuple[Branch, ...]) -> tuple[Branch, ...]:
    if not one or not two:
        return one or two
    return tuple(
        Branch(a.weight * b.weight, merge_plans([a.plan, b.plan])) for a in one for b in two
    )


def _beside(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    shape = torch.broadcast_shapes(one.shape[:2], two.shape[:2])
    return torch.cat([x.expand(*shape, -1, -1) for x in (one, two)], -1)
