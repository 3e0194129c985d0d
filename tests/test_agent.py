"""Agent attention: formula, oracle, agents on any grid, trained parts, when it saves nothing."""

import pytest
import torch
import torch.nn.functional as F

from foveate.attn_processors import (
    AgentAttnProcessor,
    AgentLayer,
    AgentWeights,
    SoftmaxAttnProcessor,
    apply,
)
from foveate.kernels import Segment, TokenLayout, agent_attention, agent_grid, agent_keys
from oracles import FLOAT32, FLOAT64, dense, make_qkv
from tiny_pipelines import Tiny

GRIDS = [(1, 13, 17), (1, 1, 37), (1, 37, 1), (1, 8, 40), (3, 7, 9), (9, 4, 4)]


def tables(layout, heads=2, dim=16, side=3, dtype=torch.float64):
    """Trained parts with random values."""
    shapes = {"key_bias": [side] * 4, "query_bias": [side] * 4, "conv": [dim, 3, 3]}
    return {name: torch.randn(heads, *shape, dtype=dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("trained", [False, True], ids=["plain", "trained"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_it_equals_the_oracle(grid, trained):
    layout = TokenLayout(text=7 if trained else 0, grid=grid, text_first=grid[0] == 1)
    q, k, v = make_qkv(layout, batch=2)
    options = {"layout": layout, "agents": 16, "scale2_exponent": 0.2, "shortcut": 0.1}
    options |= tables(layout) if trained else {}
    out = agent_attention(q, k, v, **options)
    torch.testing.assert_close(
        out, agent_attention(q, k, v, impl="reference", **options), **FLOAT64
    )


@pytest.mark.parametrize("text", [0, 7, 77])
def test_float32_with_any_text_length(text):
    layout = TokenLayout(text=text, grid=(1, 24, 20), extra=(Segment(4),))
    q, k, v = make_qkv(layout, dim=24, dtype=torch.float32)
    options = {"layout": layout, "agents": 30, "scale": 0.2, "shortcut": 0.075}
    out = agent_attention(q, k, v, **options)
    want = agent_attention(q, k, v, impl="reference", **options)
    torch.testing.assert_close(out, want, **FLOAT32)


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_with_all_tokens_as_agents_it_is_the_formula(impl):
    """softmax(Q Q^T / sqrt(D)) softmax(Q K^T / sqrt(D)) V, which is not dense attention."""
    layout = TokenLayout(grid=(1, 6, 7))
    q, k, v = make_qkv(layout)
    out = agent_attention(q, k, v, layout=layout, agents=42, impl=impl)
    torch.testing.assert_close(out, dense(q, q, dense(q, k, v)), **FLOAT64)


def test_with_all_tokens_as_agents_and_a_sharp_second_pass_it_is_dense():
    """Among queries of one norm the nearest agent is the query itself."""
    layout = TokenLayout(text=3, grid=(1, 6, 7))
    q, k, v = make_qkv(layout)
    q = F.normalize(q, dim=-1) * 4
    out = agent_attention(q, k, v, layout=layout, agents=42, scale2_exponent=-1.5)
    torch.testing.assert_close(out, dense(q, k, v), **FLOAT64)


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_it_is_agentsds_formula_on_pooled_agents(impl):
    """AgentSD (arXiv:2312.08874): k_scale2 = 0.3, k_shortcut = 0.075, agents as given."""
    layout = TokenLayout(grid=(1, 12, 16))
    q, k, v = make_qkv(layout, heads=1)
    a = F.avg_pool2d(q[0, 0].T.view(16, 12, 16), 4).flatten(1).T
    k_scale, k_scale2 = 16**-0.5, 16 ** (-0.5 * 0.3)
    v_a = torch.einsum("an,nd->ad", (a @ k[0, 0].T * k_scale).softmax(-1), v[0, 0])
    want = (q[0, 0] @ a.T * k_scale2).softmax(-1) @ v_a + 0.075 * v[0, 0]
    out = agent_attention(
        q, k, v, layout=layout, agents=12, scale2_exponent=0.15, shortcut=0.075, impl=impl
    )
    torch.testing.assert_close(out[0, 0], want, **FLOAT64)


def test_text_keys_count_and_text_queries_are_dense():
    layout = TokenLayout(text=5, grid=(1, 8, 8))
    q, k, v = make_qkv(layout)
    out = agent_attention(q, k, v, layout=layout, agents=4)
    torch.testing.assert_close(out[:, :, :5], dense(q, k, v)[:, :, :5], **FLOAT64)
    v[:, :, :5] += 1
    moved = agent_attention(q, k, v, layout=layout, agents=4) - out
    assert (moved[:, :, 5:].abs() > 1e-4).all()


@pytest.mark.parametrize(
    ("grid", "agents", "cells"),
    [
        ((1, 64, 64), 256, (1, 16, 16)),
        ((1, 32, 64), 128, (1, 8, 16)),
        ((1, 1, 37), 9, (1, 1, 9)),
        ((16, 32, 32), 256, (4, 8, 8)),
        ((1, 8, 8), 256, (1, 8, 8)),
        ((1, 13, 17), 1, (1, 1, 1)),
    ],
)
def test_agents_have_the_proportions_of_the_grid(grid, agents, cells):
    assert agent_grid(grid, agents) == cells


def test_counts():
    layout = TokenLayout(text=64, grid=(1, 64, 64))
    assert agent_keys(layout, 256).visited == 256 + 256 * (64 + 4096) / 4096


def test_a_batch_is_its_rows_and_sizes_may_alternate():
    first, second = TokenLayout(text=2, grid=(1, 19, 21)), TokenLayout(grid=(1, 12, 30))
    q, k, v = make_qkv(first, batch=2)
    before = agent_attention(q, k, v, layout=first, agents=20)
    agent_attention(*make_qkv(second), layout=second, agents=20)
    assert torch.equal(agent_attention(q, k, v, layout=first, agents=20), before)
    one = agent_attention(q[1:], k[1:], v[1:], layout=first, agents=20)
    torch.testing.assert_close(before[1:], one, **FLOAT64)


def test_it_compiles_into_one_graph():
    layout = TokenLayout(text=2, grid=(1, 17, 9))
    q, k, v = make_qkv(layout, dtype=torch.float32)
    parts = tables(layout, dtype=torch.float32)

    def attend(q, k, v):
        return agent_attention(q, k, v, layout=layout, agents=20, shortcut=0.1, **parts)

    compiled = torch.compile(attend, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(q, k, v), attend(q, k, v))


# trained parts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [24, 64])
def test_parts_at_zero_change_no_bit(dtype, dim):
    layout = TokenLayout(text=7, grid=(1, 24, 20))
    q, k, v = make_qkv(layout, dim=dim, dtype=dtype)
    parts = AgentLayer.zeros(heads=2, head_dim=dim).parts()
    with torch.no_grad():
        plain = agent_attention(q, k, v, layout=layout, agents=30)
        zero = agent_attention(q, k, v, layout=layout, agents=30, **parts)
    assert torch.equal(zero, plain)


@pytest.mark.parametrize("part", ["key_bias", "query_bias", "conv"])
def test_each_part_does_something(part):
    layout = TokenLayout(text=7, grid=(1, 12, 10))
    q, k, v = make_qkv(layout)
    plain = agent_attention(q, k, v, layout=layout, agents=30)
    parts = {part: tables(layout)[part]}
    moved = agent_attention(q, k, v, layout=layout, agents=30, **parts) != plain
    assert not moved[:, :, :7].any()
    assert moved[:, :, 7:].all()


def test_gradients_equal_the_oracles():
    layout = TokenLayout(text=5, grid=(2, 7, 9))
    parts = tables(layout)
    inputs = [*make_qkv(layout, requires_grad=True), *(x.requires_grad_() for x in parts.values())]
    weight = torch.randn(1, 2, layout.num_tokens, 16, dtype=torch.float64)
    grads = []
    for impl in ("torch", "reference"):
        out = agent_attention(*inputs[:3], layout=layout, agents=12, impl=impl, **parts)
        grads.append(torch.autograd.grad((out * weight).sum(), inputs))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, **FLOAT64)


def resized(table):
    """A bias [H, s, s, s, s] at 8 x 12 agents and 16 x 24 tokens: [H, 96, 384]."""
    side = table.shape[-1]
    tokens = F.interpolate(table.flatten(1, 2), (16, 24), mode="bilinear").flatten(2)
    agents = tokens.mT.unflatten(2, (side, side))
    return F.interpolate(agents, (8, 12), mode="bilinear").flatten(2).mT


def plain(q, k, v, key_bias, query_bias, conv):
    """The formula on 16 x 24 tokens and a quarter as many agents."""
    agents = q.unflatten(2, (8, 2, 12, 2)).mean((3, 5)).flatten(2, 3)
    scale = q.shape[-1] ** -0.5
    seen = (agents @ k.mT * scale + resized(key_bias)).softmax(-1) @ v
    out = (q @ agents.mT * scale + resized(query_bias).mT).softmax(-1) @ seen
    picture = v.mT.flatten(1, 2).unflatten(2, (16, 24))
    near = F.conv2d(picture, conv.flatten(0, 1)[:, None], padding=1, groups=picture.shape[1])
    return out + near.flatten(2).unflatten(1, v.shape[1:4:2]).mT


@pytest.mark.parametrize("given", [(), ("key_bias", "query_bias"), ("conv",)], ids=" ".join)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_errs_no_more_than_plain_torch(dtype, given):
    layout = TokenLayout(grid=(1, 16, 24))
    low = make_qkv(layout, dim=64, dtype=dtype)
    parts = tables(layout, dim=64, dtype=dtype)
    parts = {name: x * (name in given) for name, x in parts.items()}
    truth = plain(*(x.double() for x in (*low, *parts.values())))
    out = agent_attention(*low, layout=layout, agents=96, **{name: parts[name] for name in given})
    assert out.dtype == dtype
    plainly = plain(*low, *parts.values())
    error, allowed = ((x.double() - truth).square().mean().sqrt() for x in (out, plainly))
    assert error <= 2 * allowed


# the processor


@pytest.fixture(scope="module")
def flux():
    return Tiny("flux")


def test_it_differs_from_dense_and_is_reported(flux):
    want = flux()
    with apply(flux.pipe, AgentAttnProcessor(agents=24)) as handle:
        got = flux()
    assert got.isfinite().all()
    assert not torch.allclose(got, want, atol=1e-4)
    rows = handle.report().layers
    assert {(row.operator, row.keys.visited) for row in rows} == {("agent", 24 + 24 * 112 / 96)}
    assert torch.equal(flux(), want)


def test_where_agents_save_nothing_the_call_runs_dense_and_says_so(flux):
    want = flux()
    with apply(flux.pipe, AgentAttnProcessor(agents=60), strict=True) as handle:
        assert torch.equal(flux(), want)
    reason = "60 agents for 96 image tokens save nothing (2x)"
    assert {(row.operator, row.reason) for row in handle.report().layers} == {("dense", reason)}
    before = dict(flux.model.attn_processors)
    flux.model.set_attn_processor(AgentAttnProcessor(agents=96))
    assert torch.equal(flux(), want)
    flux.model.set_attn_processor(before)


def test_a_window_of_steps(flux):
    """AgentSD runs in the first steps alone: that is `steps` of apply."""
    with apply(flux.pipe, AgentAttnProcessor(agents=24), steps=(0, 0.4)) as handle:
        flux(steps=5)
    assert {(r.forwards, r.dense_forwards) for r in handle.report().layers} == {(2, 3)}


def test_trained_weights_by_layer(flux):
    name = "transformer_blocks.0.attn"
    weights = AgentWeights({name: AgentLayer.zeros(heads=2, head_dim=16)})
    with apply(flux.pipe, AgentAttnProcessor(agents=24), layers=name):
        want = flux()
    with apply(flux.pipe, AgentAttnProcessor(agents=24, weights=weights)) as handle:
        assert torch.equal(flux(), want)
        weights.of(name).conv.data += 0.5
        assert not torch.allclose(flux(), want, atol=1e-4)
    rows = {row.layer: row for row in handle.report().layers}
    assert rows[name].operator == "agent"
    assert "no trained weights" in rows["single_transformer_blocks.0.attn"].reason


def test_weights_of_another_model_are_refused_and_nothing_is_changed(flux):
    want = flux()
    weights = AgentWeights(
        {name: AgentLayer.zeros(heads=3, head_dim=16) for name in ["transformer_blocks.0.attn"]}
    )
    with pytest.raises(ValueError, match="key_bias is for 3 heads, but the layer has 2"):
        apply(flux.pipe, AgentAttnProcessor(weights=weights))
    assert torch.equal(flux(), want)


def test_the_stock_way_cannot_name_layers(flux):
    before = dict(flux.model.attn_processors)
    flux.model.set_attn_processor(AgentAttnProcessor(agents=24, weights=AgentWeights({})))
    with pytest.raises(NotImplementedError, match="use foveate.apply"):
        flux()
    flux.model.set_attn_processor(before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"agents": 0}, "agents must be an integer >= 1, got 0"),
        ({"key_bias": torch.zeros(2, 3, 3, 3)}, r"key_bias must be \[H, s, s, s, s\] with H = 2"),
        ({"query_bias": torch.zeros(1, 3, 3, 3, 3)}, "query_bias must be .*, got .1, 3, 3, 3, 3"),
        ({"conv": torch.zeros(2, 16, 2, 2)}, "s odd"),
    ],
)
def test_bad_options_are_refused(call, message):
    layout = TokenLayout(grid=(1, 4, 4))
    with pytest.raises(ValueError, match=message):
        agent_attention(*make_qkv(layout), layout=layout, **call)


def test_weights_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="weights must be AgentWeights, got SoftmaxAttnProcessor"):
        AgentAttnProcessor(weights=SoftmaxAttnProcessor())


def test_a_named_impl_runs_or_raises():
    layout = TokenLayout(grid=(1, 4, 4))
    with pytest.raises(NotImplementedError, match="no Triton kernel"):
        agent_attention(*make_qkv(layout), layout=layout, impl="triton")
