"""The plan of a modulation in plain formulas, with every queries x keys matrix written out."""

import dataclasses

import torch


def eager(q, k, v, plan, scale=None):
    """Attention of q [b, H, N, D] to k, v [b, H, M, D], edited as the plan says."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if plan.blend is not None:
        own = eager(q, k, v, dataclasses.replace(plan, blend=None), scale)
        v = v if plan.value_map is None else plan.value_map(v)
        other = torch.einsum("bhnm,bhmd->bhnd", plan.blend.weights, v)
        return (1 - plan.blend.share) * own + plan.blend.share * other
    if plan.branches:
        outs = [
            branch.weight * _one(q, k, v, [plan, branch.plan], scale) for branch in plan.branches
        ]
        return torch.stack(outs).sum(0)
    return _one(q, k, v, [plan], scale)


def _one(q, k, v, plans, scale):
    extras = [extra for plan in plans for extra in plan.extra]
    for plan in plans:
        q = q if plan.queries is None else plan.queries.expand_as(q)
        k = k if plan.keys is None else plan.keys.expand_as(k)
        v = v if plan.values is None else plan.values.expand_as(v)
    for plan in plans:
        v = v if plan.value_scale is None else torch.einsum("m,bhmd->bhmd", plan.value_scale, v)
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


class Watched:
    """What one attention module of a pipeline is given and answers, before its output layer."""

    def __init__(self, attn):
        self.attn = attn
        self._hooks = [
            attn.register_forward_pre_hook(self._given, with_kwargs=True),
            attn.to_out[0].register_forward_pre_hook(self._answered),
        ]

    def _given(self, attn, args, kwargs):
        self.hidden, self.text = args[0].double(), kwargs["encoder_hidden_states"]

    def _answered(self, linear, args):
        self.out = args[0].unflatten(2, (self.attn.heads, -1)).transpose(1, 2)  # [B, H, N, D]

    def project(self, name, x):
        """x [..., N, C] in float64 -> [..., H, N, D]."""
        layer = getattr(self.attn, name)
        bias = None if layer.bias is None else layer.bias.double()
        y = torch.nn.functional.linear(x.double(), layer.weight.double(), bias)
        return y.unflatten(-1, (self.attn.heads, -1)).transpose(-3, -2)

    def q(self, row):
        return self.project("to_q", self.hidden[row])

    def weights(self, row, text, source=None):
        """softmax of the row's queries to a text [T, C], [H, N, T]."""
        q, k = self.q(row if source is None else source), self.project("to_k", text)
        return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for hook in self._hooks:
            hook.remove()
