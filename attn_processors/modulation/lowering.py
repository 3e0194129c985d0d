"""Runs a plan as plain softmax attention calls: the cheapest exact form it has.

    scales, value maps, replaced queries and keys   edited tensors
    keys that groups of queries see or weigh        one call a group, on the keys it sees
                                                    and row, where factors differ by row
    low-rank bias; groups that differ by row, or
    inside another operator                         further head dimensions
    branches                                        one call each, weighted and added
    weights from elsewhere                          their product with the values, blended in

Nothing here is approximate, and no tensor holds queries times keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from .plan import Extra, GroupedKeys, LowRank, Plan, merge_plans

__all__ = ["HIDDEN", "Lowered", "Operator", "lower"]

Operator = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]

# the logit of a hidden key in the low-rank form: finite, and its square root fits float16
HIDDEN = -1e4
# head dimensions that fused kernels take are multiples of this
_DIM_STEP = 8


@dataclass(frozen=True, slots=True)
class Lowered:
    """The form of one call: its name, attention calls made, and bytes beyond a plain call."""

    form: str
    calls: int
    extra_bytes: int

    def __add__(self, other: Lowered) -> Lowered:
        return Lowered(self.form, self.calls + other.calls, self.extra_bytes + other.extra_bytes)


def lower(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    plan: Plan,
    scale: float | None = None,
    operator: Operator | None = None,
    padding: GroupedKeys | None = None,
) -> tuple[torch.Tensor, Lowered]:
    """Attend q [b, H, N, D] to k, v [b, H, M, D] as the plan asks; out [b, H, N, D].

    `operator` takes q, k, v and the scale in the place of dense attention; a bias then goes into
    further head dimensions, so it must be a softmax over some of the keys. `padding` hides keys
    of the call's own, for plans that do not replace them.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if plan.blend is not None:
        return _blended(q, k, v, plan, scale, operator, padding)
    if plan.branches:
        return _branches(q, k, v, plan, scale, operator, padding)
    if padding is not None and plan.keys is None:
        plan = merge_plans([plan, Plan(grouped=padding)])
    q, k, v = _replaced(q, k, v, plan)
    grouped, k, v = _with_extra(q, k, v, plan)
    if grouped is not None:
        _check_sees(grouped)
    if isinstance(plan.q_scale, torch.Tensor):
        q = q * plan.q_scale.to(q)
    else:
        scale = scale * plan.q_scale
    low_rank = plan.low_rank
    if grouped is not None and operator is None:
        if len(grouped.groups) == 1:
            return _split(q, k, v, grouped, low_rank, scale)
        if grouped.scale is not None:
            return _split_rows(q, k, v, grouped, low_rank, scale)
    if grouped is not None:
        low_rank = _both(low_rank, _as_low_rank(grouped))
    attend = _dense if operator is None else operator
    if low_rank is None:
        edited = k.numel() + v.numel() if plan.extra else 0
        return attend(q, k, v, scale), Lowered("edited tensors", 1, edited * q.element_size())
    return _augmented(q, k, v, low_rank, scale, attend)


def _dense(q, k, v, scale, mask=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _replaced(q, k, v, plan):
    """The call's own tensors, or those in their place; the values scaled and mapped."""
    q, k, v = (
        own if new is None else new.to(own).expand(len(own), -1, -1, -1)
        for own, new in ((q, plan.queries), (k, plan.keys), (v, plan.values))
    )
    v = v if plan.value_scale is None else v * plan.value_scale.to(v)[:, None]
    v = v if plan.value_map is None else plan.value_map(v)
    return q, k, v


def _blended(q, k, v, plan, scale, operator, padding):
    rest = replace(plan, blend=None)
    out, lowered = lower(q, k, v, plan=rest, scale=scale, operator=operator, padding=padding)
    weights, values = plan.blend.weights.to(v), _replaced(q, k, v, plan)[2]
    out = torch.lerp(out, weights @ values, plan.blend.share)
    kept = weights.numel() * weights.element_size()
    return out, Lowered("blended weights", lowered.calls, lowered.extra_bytes + kept)


def _branches(q, k, v, plan, scale, operator, padding):
    rest = replace(plan, branches=())
    parts = []
    for branch in plan.branches:
        own = merge_plans([rest, branch.plan])
        out, lowered = lower(q, k, v, plan=own, scale=scale, operator=operator, padding=padding)
        parts.append((out * branch.weight.to(out), lowered))
    out = functools.reduce(torch.add, (part for part, _ in parts))
    total = functools.reduce(Lowered.__add__, (lowered for _, lowered in parts))
    kept = (len(parts) - 1) * out.numel() * out.element_size()
    return out, Lowered("branches", total.calls, total.extra_bytes + kept)


def _with_extra(q, k, v, plan) -> tuple[GroupedKeys | None, torch.Tensor, torch.Tensor]:
    """Keys and values with the further ones behind them, and what groups of queries do with all."""
    grouped = plan.grouped
    if not plan.extra:
        return grouped, k, v
    counts = [k.shape[2], *(extra.k.shape[2] for extra in plan.extra)]
    parts = [grouped, *(extra.grouped for extra in plan.extra)]
    for i, part in enumerate(parts):
        if part is None:
            continue
        before, behind = sum(counts[:i]), sum(counts[i + 1 :])
        parts[i] = replace(
            part,
            bias=F.pad(part.bias, (before, behind)),
            scale=None if part.scale is None else F.pad(part.scale, (before, behind), value=1.0),
        )
    present = [part for part in parts if part is not None]
    grouped = functools.reduce(GroupedKeys.merge, present) if present else None
    k, v = (_behind(x, plan.extra, name) for x, name in ((k, "k"), (v, "v")))
    return grouped, k, v


def _behind(x: torch.Tensor, extra: tuple[Extra, ...], name: str) -> torch.Tensor:
    parts = [getattr(one, name).to(x).expand(*x.shape[:2], -1, -1) for one in extra]
    return torch.cat([x, *parts], 2)


def _check_sees(grouped: GroupedKeys) -> None:
    is_blind = (grouped.bias == -torch.inf).all(1)
    count = int(is_blind[grouped.groups].sum()) if is_blind.any() else 0
    if count:
        raise ValueError(
            f"{count} queries see no key at all; leave some tokens outside of every phrase"
        )


def _split(q, k, v, grouped, low_rank, scale):
    """One call a group of queries, on the keys that the group sees."""
    outs, order, copied = [], [], 0
    present = [g for g, rows in enumerate(grouped.queries) if len(rows)]
    for g in present:
        rows, keys = grouped.queries[g], grouped.keys[g]
        part_q = q if len(present) == 1 else q[:, :, rows]
        part_k, part_v = (x if len(keys) == x.shape[2] else x[:, :, keys] for x in (k, v))
        if grouped.scale is not None:
            part_k = part_k * grouped.scale[g, keys][:, None].to(k)
        copied += part_k.numel() + part_v.numel() if part_k is not k else 0
        mask = _mask(grouped.bias[g, keys], q)
        part = low_rank
        if low_rank is not None:
            a = low_rank.a if len(present) == 1 else low_rank.a[:, :, rows]
            part = LowRank(a, low_rank.b[:, :, keys])
        outs.append(_call(part_q, part_k, part_v, mask, part, scale))
        order.append(rows)
    form = "key bias" if len(present) == 1 else "query split"
    lowered = Lowered(form, len(present), copied * k.element_size())
    if len(present) == 1:
        return outs[0], lowered
    return torch.cat(outs, 2)[:, :, torch.cat(order).argsort()], lowered


def _split_rows(q, k, v, grouped, low_rank, scale):
    """The same one row of the batch at a time, where each has groups of its own."""
    outs, costs = [], []
    for i in range(len(q)):
        row = slice(i, i + 1)
        own = replace(grouped, groups=grouped.groups[row])
        part = low_rank
        if low_rank is not None:
            a, b = (x if len(x) == 1 else x[row] for x in (low_rank.a, low_rank.b))
            part = LowRank(a, b)
        out, cost = _split(q[row], k[row], v[row], own, part, scale)
        outs.append(out)
        costs.append(cost)
    return torch.cat(outs), functools.reduce(Lowered.__add__, costs)


def _mask(bias: torch.Tensor, q: torch.Tensor) -> torch.Tensor | None:
    return bias.to(q)[None, None, None] if bias.any() else None


def _call(q, k, v, mask, low_rank, scale):
    attend = functools.partial(_dense, mask=mask)
    if low_rank is None:
        return attend(q, k, v, scale)
    return _augmented(q, k, v, low_rank, scale, attend)[0]


def _both(one: LowRank | None, two: LowRank) -> LowRank:
    return two if one is None else one.merge(two)


def _as_low_rank(grouped: GroupedKeys) -> LowRank:
    """The bias of groups as (one-hot group of the query) . (bias of the key in every group)."""
    if grouped.scale is not None:
        raise NotImplementedError(
            "factors on the keys of a group of queries need one dense call a group, and an "
            "operator underneath makes one for all"
        )
    used = grouped.bias.clamp_min(HIDDEN)
    one_hot = F.one_hot(grouped.groups, len(used)).to(used)  # [b, N, G]
    return LowRank(one_hot[:, None], used.T[None, None])


def _augmented(q, k, v, low_rank, scale, attend):
    """The bias as further head dimensions of queries and keys; further values are zero."""
    a, b = _balanced(low_rank)
    rank, dim = a.shape[-1], v.shape[-1]
    fill = -(q.shape[-1] + rank) % _DIM_STEP
    wide_q, wide_k = (
        F.pad(torch.cat([x, (y / scale**0.5).to(x).expand(*x.shape[:2], -1, -1)], -1), (0, fill))
        for x, y in ((q, a), (k, b))
    )
    wide_v = F.pad(v, (0, rank + fill))
    added = wide_q.numel() + wide_k.numel() + wide_v.numel()
    out = attend(wide_q, wide_k, wide_v, scale)[..., :dim]
    return out, Lowered("further head dimensions", 1, added * q.element_size())


def _balanced(low_rank: LowRank) -> tuple[torch.Tensor, torch.Tensor]:
    """The same products with factors of like size, so that large ones fit half precision."""
    a, b = low_rank.a, low_rank.b
    tops = [x.abs().amax((0, 1, 2)).clamp_min(torch.finfo(x.dtype).tiny) for x in (a, b)]
    # a group that no query is in has a top of almost 0, and the ratio of tops would overflow
    balance = tops[1].sqrt() / tops[0].sqrt()
    return a * balance, b / balance
