"""Every lowering of a plan equals the plan in plain formulas, without queries x keys tensors."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from foveate.attn_processors.modulation import (
    Blend,
    Branch,
    Extra,
    GroupedKeys,
    LowRank,
    Plan,
    key_bias,
)
from foveate.attn_processors.modulation.lowering import lower
from foveate.attn_processors.modulation.plan import merge_plans
from foveate.kernels import (
    TokenLayout,
    foveated_attention,
    local_attention,
    neighborhood_attention,
    window_attention,
)
from modulation_oracle import eager
from oracles import FLOAT32, FLOAT64, LargestTensor

B, H, N, M, D = 2, 3, 35, 11, 8
DTYPES = [torch.float64, torch.float32]
TOLERANCE = {torch.float64: FLOAT64, torch.float32: FLOAT32}


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def grouped(rows=1, groups=3, keys=M, hidden=0.4, scale=False):
    """Random groups with a random bias; every group sees its first key."""
    bias = rand(groups, keys)
    bias[:, 1:][torch.rand(groups, keys - 1) < hidden] = -torch.inf
    return GroupedKeys(
        groups=torch.randint(groups, (rows, N)),
        bias=bias,
        scale=rand(groups, keys).exp() if scale else None,
    )


def low_rank(rank=3):
    return LowRank(rand(B, 1, N, rank), rand(1, H, M, rank))


def branches():
    weights = torch.rand(2, B, 1, N, 1, dtype=torch.float64)
    own = Plan(grouped=grouped(), values=rand(B, H, M, D))
    return (Branch(weights[0], own), Branch(weights[1], Plan(q_scale=0.5)))


PLANS = {
    "number": lambda: Plan(q_scale=1.7),
    "query scale": lambda: Plan(q_scale=rand(B, 1, N, 1).exp()),
    "key bias": lambda: Plan(grouped=key_bias(rand(M), N)),
    "hidden keys": lambda: Plan(grouped=grouped(groups=1)),
    "groups": lambda: Plan(grouped=grouped()),
    "groups by row": lambda: Plan(grouped=grouped(rows=B)),
    "groups by row, one of them empty": lambda: Plan(
        grouped=replace(grouped(rows=B, groups=4), groups=torch.randint(3, (B, N)))
    ),
    "key scale": lambda: Plan(grouped=grouped(scale=True)),
    "key scale by row": lambda: Plan(grouped=grouped(rows=B, scale=True)),
    "low rank and key scale by row": lambda: Plan(
        low_rank=low_rank(), grouped=grouped(rows=B, scale=True)
    ),
    "low rank": lambda: Plan(low_rank=low_rank()),
    "low rank and groups": lambda: Plan(low_rank=low_rank(), grouped=grouped()),
    "low rank and groups by row": lambda: Plan(low_rank=low_rank(9), grouped=grouped(rows=B)),
    "keys and values": lambda: Plan(keys=rand(B, H, M, D), values=rand(B, H, M, D)),
    "queries and keys of one row": lambda: Plan(queries=rand(1, H, N, D), keys=rand(1, H, M, D)),
    "value scale": lambda: Plan(value_scale=rand(M), value_map=lambda v: v.flip(2)),
    "value map": lambda: Plan(value_map=lambda v: v.flip(2) - 0.5 * v),
    "extra": lambda: Plan(extra=(Extra(rand(B, H, 4, D), rand(1, 1, 4, D)),)),
    "extra with groups": lambda: Plan(
        grouped=grouped(scale=True),
        extra=(Extra(rand(B, H, 4, D), rand(B, H, 4, D), grouped(groups=2, keys=4)),),
    ),
    "branches": lambda: Plan(branches=branches()),
    "blend": lambda: Plan(
        value_map=lambda v: 2 * v,
        branches=branches(),
        blend=Blend(rand(B, H, N, M).softmax(-1), 0.3),
    ),
    "all": lambda: Plan(
        q_scale=rand(B, H, N, 1).exp(),
        grouped=grouped(),
        low_rank=low_rank(),
        value_map=lambda v: 2 * v,
        branches=(Branch(rand(1, 1, N, 1), Plan(low_rank=low_rank(2))),),
    ),
}


def cast(plan, dtype):
    """The plan with every floating tensor in this precision."""

    def to(x):
        if isinstance(x, torch.Tensor):
            return x.to(dtype) if x.is_floating_point() else x
        if isinstance(x, tuple):
            return tuple(map(to, x))
        if isinstance(x, (Plan, GroupedKeys, LowRank, Extra, Branch, Blend)):
            return type(x)(**{name: to(value) for name, value in vars(x).items()})
        return x

    return to(plan)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PLANS)
def test_lowering_equals_the_formulas(name, dtype):
    plan = PLANS[name]()
    q, k, v = rand(B, H, N, D), rand(B, H, M, D), rand(B, H, M, D)
    want = eager(q, k, v, plan)
    assert not torch.allclose(want, eager(q, k, v, Plan()), rtol=1e-3)
    got, lowered = lower(*(x.to(dtype) for x in (q, k, v)), plan=cast(plan, dtype))
    assert got.dtype == dtype
    assert lowered.calls >= 1
    torch.testing.assert_close(got.double(), want, **TOLERANCE[dtype])


def test_merged_plans_do_what_both_ask():
    one = Plan(q_scale=2.0, grouped=grouped(scale=True), low_rank=low_rank())
    two = Plan(q_scale=rand(B, 1, N, 1).exp(), grouped=grouped(hidden=0), low_rank=low_rank(2))
    q, k, v = rand(B, H, N, D), rand(B, H, M, D), rand(B, H, M, D)
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) * D**-0.5
    for plan in (one, two):
        own = plan.grouped
        gamma = 1 if own.scale is None else own.scale[own.groups[0]]
        scores = scores * plan.q_scale * gamma
    for plan in (one, two):
        scores = scores + plan.grouped.bias[plan.grouped.groups[0]]
        scores = scores + plan.low_rank.a @ plan.low_rank.b.mT
    want = scores.softmax(-1) @ v
    got, _ = lower(q, k, v, plan=merge_plans([one, two]))
    torch.testing.assert_close(got, want, **FLOAT64)


def test_value_maps_apply_in_order_and_branches_nest():
    q, k, v = rand(B, H, N, D), rand(B, H, M, D), rand(B, H, M, D)
    first, second = Plan(value_map=lambda v: v + 1), Plan(value_map=lambda v: v * 3)
    got, _ = lower(q, k, v, plan=merge_plans([first, second]))
    torch.testing.assert_close(got, eager(q, k, (v + 1) * 3, Plan()), **FLOAT64)

    halves = [Plan(branches=(Branch(rand(1, 1, N, 1), Plan(q_scale=s)),)) for s in (2.0, 3.0)]
    got, _ = lower(q, k, v, plan=merge_plans(halves))
    weight = halves[0].branches[0].weight * halves[1].branches[0].weight
    torch.testing.assert_close(got, weight * eager(q, k, v, Plan(q_scale=6.0)), **FLOAT64)


@pytest.mark.parametrize("name", ["queries", "keys", "values"])
def test_two_replacements_are_refused(name):
    plan = Plan(**{name: rand(B, H, M, D)})
    with pytest.raises(ValueError, match="replace the same"):
        merge_plans([plan, plan])


def test_scales_of_values_multiply_and_come_before_maps():
    one, two = Plan(value_scale=rand(M)), Plan(value_scale=rand(M))
    mapped = Plan(value_map=lambda v: v.cumsum(2))
    q, k, v = rand(B, H, N, D), rand(B, H, M, D), rand(B, H, M, D)
    scaled = v * (one.value_scale * two.value_scale)[:, None]
    want = eager(q, k, scaled.cumsum(2), Plan())
    for plans in ([one, two, mapped], [mapped, two, one]):
        torch.testing.assert_close(lower(q, k, v, plan=merge_plans(plans))[0], want, **FLOAT64)


@pytest.mark.parametrize("rows", [1, B])
def test_padding_is_hidden_unless_keys_are_replaced(rows):
    q, k, v = rand(B, H, N, D), rand(B, H, M, D), rand(B, H, M, D)
    bias = torch.zeros(rows, M, dtype=torch.float64)
    for row in range(rows):
        bias[row, M - 2 - row :] = -torch.inf
    padding = GroupedKeys(groups=torch.arange(rows)[:, None].expand(-1, N), bias=bias)
    other = rand(B, H, M, D)
    halves = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    plan = Plan(q_scale=1.3, branches=(Branch(halves, Plan()), Branch(halves, Plan(keys=other))))
    got, _ = lower(q, k, v, plan=plan, padding=padding)
    hidden = eager(q, k, v, Plan(q_scale=1.3, grouped=padding))
    want = (hidden + eager(q, other, v, Plan(q_scale=1.3))) / 2
    torch.testing.assert_close(got, want, **FLOAT64)


def test_columns_see_the_weights_alone():
    q, k = rand(B, H, N, D), rand(B, H, M, D)
    half = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    extra = Extra(rand(1, H, 4, D), rand(1, H, 4, D))
    own = Plan(values=rand(B, H, M, D), extra=(extra,), value_scale=rand(M))
    plan = Plan(branches=(Branch(half, own), Branch(half, Plan())))
    unit = torch.eye(M, dtype=torch.float64)[:, :D].expand(B, H, -1, -1)
    got, _ = lower(q, k, unit, plan=plan.of_columns())
    keys = torch.cat([k, extra.k.expand(B, -1, -1, -1)], 2)
    wide = (q @ keys.mT * D**-0.5).softmax(-1)[..., :M] * own.value_scale
    want = (wide + (q @ k.mT * D**-0.5).softmax(-1)) / 2
    torch.testing.assert_close(got, want[..., :D], **FLOAT64)


@pytest.mark.parametrize("rows", [1, B])
def test_a_query_without_keys_is_refused(rows):
    bias = torch.zeros(2, M).index_fill(0, torch.tensor([1]), -torch.inf)
    groups = (torch.arange(N)[None] % 2).expand(rows, -1)
    plan = Plan(grouped=GroupedKeys(groups=groups, bias=bias))
    with pytest.raises(ValueError, match=f"{17 * rows} queries see no key"):
        lower(rand(B, H, N, D), rand(B, H, M, D), rand(B, H, M, D), plan=plan)


@pytest.mark.parametrize("rows", [1, B])
def test_what_gives_way_leaves_every_query_a_key(rows):
    """Keys 0 and 1 are all that the first plan shows, 1 and 2 all the second or the third."""
    shown = [[0, 1], [1, 2], [0, 2]]
    bias = torch.full((3, M), -torch.inf, dtype=torch.float64)
    for one, keys in zip(bias, shown, strict=True):
        one[keys] = 0
    region = Plan(grouped=GroupedKeys(groups=torch.zeros(1, N, dtype=torch.int64), bias=bias[:1]))
    groups = torch.arange(N).expand(rows, -1) % 2
    focus = Plan(
        grouped=GroupedKeys(
            groups=groups,
            bias=torch.stack([bias[1], bias[2].index_fill(0, torch.tensor([0]), -torch.inf)]),
            gives_way=True,
        )
    )
    other = Plan(grouped=key_bias(rand(M), N))
    want = [[1] if n % 2 == 0 else [0, 1] for n in range(N)]
    for plans in itertools.permutations([region, focus, other]):
        grouped = merge_plans(plans).grouped
        got = grouped.bias[grouped.groups[-1]]
        assert [row.isfinite().nonzero()[:, 0].tolist() for row in got] == want
        q, k, v = rand(B, H, N, D), rand(B, H, M, D), rand(B, H, M, D)
        found = lower(q, k, v, plan=merge_plans(plans))[0]
        own = GroupedKeys(groups=grouped.groups, bias=grouped.bias)
        torch.testing.assert_close(found, eager(q, k, v, Plan(grouped=own)), **FLOAT64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_hides_keys_and_stays_near(dtype):
    plan = Plan(grouped=grouped(rows=B))
    q, k, v = rand(B, H, N, D), rand(B, H, M, D), rand(B, H, M, D)
    got, _ = lower(*(x.to(dtype) for x in (q, k, v)), plan=cast(plan, torch.float32))
    assert got.isfinite().all()
    torch.testing.assert_close(got.double(), eager(q, k, v, plan), rtol=0, atol=0.05)


OPERATORS = {
    "local": lambda layout: (
        lambda q, k, v, s: local_attention(q, k, v, layout=layout, radius=3, scale=s)
    ),
    "neighborhood": lambda layout: (
        lambda q, k, v, s: neighborhood_attention(
            q, k, v, layout=layout, kernel_size=(1, 3, 3), scale=s
        )
    ),
    "window": lambda layout: (
        lambda q, k, v, s: window_attention(q, k, v, layout=layout, window_size=(1, 3, 4), scale=s)
    ),
    "foveated": lambda layout: (
        lambda q, k, v, s: foveated_attention(q, k, v, layout=layout, radius=2, pool=2, scale=s)
    ),
}


def weights_of(operator, q, k, v, scale):
    """The attention weights of an operator, [b, H, N, N]: its answer to the unit vectors."""
    tokens = q.shape[2]
    outs = []
    for start in range(0, tokens, D):
        unit = torch.eye(tokens, dtype=q.dtype)[:, start : start + D]
        unit = torch.nn.functional.pad(unit, (0, D - unit.shape[1]))
        outs.append(operator(q, k, unit.expand_as(k).contiguous(), scale))
    return torch.cat(outs, -1)[..., :tokens]


@pytest.mark.parametrize("name", OPERATORS)
def test_text_bias_inside_an_operator(name):
    layout = TokenLayout(text=5, grid=(1, 6, 7))
    tokens = layout.num_tokens
    q, k, v = (rand(B, H, tokens, D) for _ in range(3))
    operator = OPERATORS[name](layout)
    bias = torch.zeros(3, tokens, dtype=torch.float64)
    bias[:, :5] = rand(3, 5)
    bias[0, 2] = -torch.inf
    plan = Plan(q_scale=1.3, grouped=GroupedKeys(groups=torch.randint(3, (B, tokens)), bias=bias))
    got, lowered = lower(q, k, v, plan=plan, operator=operator)
    # a weight before the bias, times exp(bias), normalised anew
    weights = weights_of(operator, q, k, v, 1.3 * D**-0.5)
    edited = weights * bias.exp()[plan.grouped.groups][:, None]
    want = edited / edited.sum(-1, keepdim=True) @ v
    if name == "foveated":
        # cells answer with the mean of their values, as their weights do
        assert (weights[..., 5:, 5:] > 0).all()
    torch.testing.assert_close(got, want, **FLOAT64)
    assert lowered.form == "further head dimensions"


def test_gradients_pass_through():
    plan = Plan(grouped=grouped(), low_rank=low_rank())
    tensors = [rand(B, H, n, D).requires_grad_() for n in (N, M, M)]
    lower(*tensors, plan=plan)[0].square().sum().backward()
    got = [x.grad.clone() for x in tensors]
    for x in tensors:
        x.grad = None
    eager(*tensors, plan).square().sum().backward()
    for x, grad in zip(tensors, got, strict=True):
        torch.testing.assert_close(grad, x.grad, **FLOAT64)


@pytest.mark.parametrize("rows", [1, 2])
def test_nothing_of_queries_times_keys(rows):
    tokens = 1024
    q, k, v = (torch.randn(B, 1, tokens, D) for _ in range(3))
    bias = torch.zeros(3, tokens).masked_fill(torch.rand(3, tokens) < 0.1, -torch.inf)
    plan = Plan(
        q_scale=torch.rand(1, 1, tokens, 1) + math.e,
        grouped=GroupedKeys(groups=torch.randint(3, (rows, tokens)), bias=bias),
        low_rank=LowRank(torch.randn(1, 1, tokens, 2), torch.randn(1, 1, tokens, 2)),
    )
    with LargestTensor() as log:
        lower(q, k, v, plan=plan)
    assert log.elements <= B * tokens * 32 < tokens**2 / 10
