"""Operators under autocast: the stock result in one dtype, and gradients of every trained part."""

import pytest
import torch

from foveate.attn_processors import (
    AgentAttnProcessor,
    AgentLayer,
    AgentWeights,
    DynamicResidual,
    FoveatedAttnProcessor,
    LinearAttnProcessor,
    LinearLayer,
    LinearWeights,
    LocalAttnProcessor,
    LocalLayer,
    LocalWeights,
    SoftmaxAttnProcessor,
    apply,
)
from foveate.attn_processors.layouts import TARGETS, attention_layers, family_of
from tiny_pipelines import Tiny


@pytest.mark.parametrize("name", ["sd", "flux", "sd3"])
def test_softmax_is_the_stock_result(name):
    tiny = Tiny(name)
    with torch.autocast("cpu", torch.bfloat16):
        want = tiny()
        with apply(tiny.pipe, SoftmaxAttnProcessor()):
            assert torch.equal(tiny(), want)
        with apply(tiny.pipe, LocalAttnProcessor(radius=1)):
            assert not torch.equal(tiny(), want)


def _linear(attn, parts):
    layer = LinearLayer.of_parts(attn, parts, gate=2.0)
    layer.residual = DynamicResidual(attn.heads, attn.to_q.out_features // attn.heads)
    return layer


CASES = {
    "linear": lambda layers: LinearAttnProcessor(
        weights=LinearWeights({n: _linear(m, ("to_q", "maps")) for n, m in layers.items()})
    ),
    "hybrid": lambda layers: LinearAttnProcessor(
        radius=2,
        weights=LinearWeights({n: _linear(m, ("to_q", "maps", "gate")) for n, m in layers.items()}),
    ),
    "foveated": lambda layers: FoveatedAttnProcessor(
        radius=2,
        pool=2,
        weights=LocalWeights(
            {n: LocalLayer.of_parts(m, LocalLayer.PARTS, pool=2) for n, m in layers.items()}
        ),
    ),
    "agent": lambda layers: AgentAttnProcessor(
        agents=6,
        weights=AgentWeights(
            {n: AgentLayer.of_parts(m, AgentLayer.PARTS) for n, m in layers.items()}
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_trained_parts_have_gradients(case):
    """A few roundings of bfloat16 from those in float32."""
    tiny = Tiny("sd")
    kind = family_of(tiny.model).kind
    layers = {n: m for n, m in attention_layers(tiny.model).items() if kind(n, m) in TARGETS}
    processor = CASES[case](layers)
    sample, context = torch.randn(1, 4, 12, 16), torch.randn(1, 7, 8)
    found = []
    with apply(tiny.pipe, processor, strict=True):
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                out = tiny.model(sample, 500, context, return_dict=False)[0]
            out.float().square().sum().backward()
            found.append(torch.cat([p.grad.flatten() for p in processor.weights.parameters()]))
            processor.weights.zero_grad()
    assert found[0].any()
    assert float((found[1] - found[0]).norm()) < 0.1 * float(found[0].norm())
    assert not torch.equal(*found)
