"""The plan of a modulation in plain formulas, with every queries x keys matrix written out."""

import torch


def eager(q, k, v, plan, scale=None):
    """Attention of q [b, H, N, D] to k, v [b, H, M, D], edited as the plan says."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if plan.branches:
        outs = [
            branch.weight * _one(q, k, v, [plan, branch.plan], scale) for branch in plan.branches
        ]
        return torch.stack(outs).sum(0)
    return _one(q, k, v, [plan], scale)


def _one(q, k, v, plans, scale):
    extras = [extra for plan in plans for extra in plan.extra]
    for plan in plans:
        k = k if plan.keys is None else plan.keys
        v = v if plan.values is None else plan.values
    for plan in plans:
        v = v if plan.value_map is None else plan.value_map(v)
    own = k.shape[2]
    keys = torch.cat([k, *(extra.k.expand(*k.shape[:2], -1, -1) for extra in extras)], 2)
    values = torch.cat([v, *(extra.v.expand(*k.shape[:2], -1, -1) for extra in extras)], 2)
    scores = torch.einsum("bhnd,bhmd->bhnm", q, keys) * scale
    for plan in plans:
        scores = scores * plan.q_scale
        if plan.grouped is not None:
            _edit(scores, plan.grouped, slice(0, own))
        if plan.low_rank is not None:
            scores[..., :own] += plan.low_rank.a @ plan.low_rank.b.mT
    start = own
    for extra in extras:
        stop = start + extra.k.shape[2]
        if extra.grouped is not None:
            _edit(scores, extra.grouped, slice(start, stop))
        start = stop
    return torch.einsum("bhnm,bhmd->bhnd", scores.softmax(-1), values)


def _edit(scores, grouped, keys):
    """Factors first, then the bias, of the group of every query."""
    for b in range(len(scores)):
        groups = grouped.groups[b if len(grouped.groups) > 1 else 0]
        for n, g in enumerate(groups.tolist()):
            if grouped.scale is not None:
                scores[b, :, n, keys] *= grouped.scale[g]
            scores[b, :, n, keys] += grouped.bias[g]
