"""`of_parts`: parts as they are before training change nothing, trained ones act as the model's."""

import copy

import pytest
import torch
from torch import nn

from foveate.attn_processors import (
    AgentAttnProcessor,
    AgentLayer,
    AgentWeights,
    FoveatedAttnProcessor,
    LinearAttnProcessor,
    LinearLayer,
    LinearWeights,
    LocalAttnProcessor,
    LocalLayer,
    LocalWeights,
    apply,
)
from foveate.attn_processors.layouts import TARGETS, attention_layers, family_of
from foveate.attn_processors.trained.projections import PROJECTIONS
from tiny_pipelines import Tiny


@pytest.fixture(params=["sd", "flux", "sd3"])
def tiny(request):
    return Tiny(request.param)


def grid_layers(model):
    kind = family_of(model).kind
    return {n: m for n, m in attention_layers(model).items() if kind(n, m) in TARGETS}


def made(model, weights, layer, parts, **options):
    layers = grid_layers(model)
    return weights({n: layer.of_parts(m, parts, **options) for n, m in layers.items()})


@pytest.mark.parametrize(
    ("processor", "weights", "layer", "parts"),
    [
        (LocalAttnProcessor, LocalWeights, LocalLayer, PROJECTIONS),
        (FoveatedAttnProcessor, LocalWeights, LocalLayer, PROJECTIONS),
        (LinearAttnProcessor, LinearWeights, LinearLayer, (*PROJECTIONS, "g")),
    ],
    ids=["local", "foveated", "linear"],
)
def test_untrained_projections_change_nothing(tiny, processor, weights, layer, parts):
    dense = tiny()
    with apply(tiny.pipe, processor(radius=2)):
        want = tiny()
    copies = made(tiny.model, weights, layer, parts)
    with apply(tiny.pipe, processor(radius=2, weights=copies), strict=True):
        assert torch.equal(tiny(), want)
    assert not torch.allclose(dense, want)


def test_untrained_biases_change_nothing(tiny):
    with apply(tiny.pipe, AgentAttnProcessor(agents=4)):
        want = tiny()
    weights = made(tiny.model, AgentWeights, AgentLayer, AgentLayer.PARTS)
    with apply(tiny.pipe, AgentAttnProcessor(agents=4, weights=weights), strict=True):
        torch.testing.assert_close(tiny(), want, rtol=1e-5, atol=1e-6)


def test_cell_weights_start_at_the_mean(tiny):
    options = {"radius": 2, "pool": 2}
    with apply(tiny.pipe, FoveatedAttnProcessor(**options)):
        want = tiny()
    weights = made(tiny.model, LocalWeights, LocalLayer, ("pool_weight",), pool=2)
    with apply(tiny.pipe, FoveatedAttnProcessor(**options, weights=weights), strict=True):
        torch.testing.assert_close(tiny(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("processor", "weights", "layer"),
    [
        (
            lambda weights=None: LocalAttnProcessor(radius=2, weights=weights),
            LocalWeights,
            LocalLayer,
        ),
        (LinearAttnProcessor, LinearWeights, LinearLayer),
    ],
    ids=["local", "linear"],
)
def test_trained_projections_act_as_if_they_were_the_models(tiny, processor, weights, layer):
    """In joint layers those of the image tokens: the text's stay the model's."""
    trained = made(tiny.model, weights, layer, PROJECTIONS)
    for parameter in trained.parameters():
        nn.init.normal_(parameter, std=0.2)
    with apply(tiny.pipe, processor(weights=trained)):
        found = tiny()
    with apply(tiny.pipe, processor()):
        untrained = tiny()
    for name, module in grid_layers(tiny.model).items():
        for part in PROJECTIONS:
            if getattr(trained.of(name), part) is not None:
                setattr(module, part, copy.deepcopy(getattr(trained.of(name), part)))
    with apply(tiny.pipe, processor()):
        assert torch.equal(tiny(), found)
    assert not torch.allclose(found, untrained)


def test_parts_are_where_the_layer_is():
    attn = next(iter(grid_layers(Tiny("sd").model).values())).double().to("meta")
    for layer, options in ((LocalLayer, {"pool": 2}), (LinearLayer, {}), (AgentLayer, {})):
        parameters = list(layer.of_parts(attn, layer.PARTS, **options).parameters())
        assert {(p.dtype, p.device.type) for p in parameters} == {(torch.float64, "meta")}


def test_what_is_asked_is_made():
    attn = next(iter(grid_layers(Tiny("sd").model).values()))
    wanted = {
        (LocalLayer, ("to_v",)): {"to_v.weight"},
        (LinearLayer, ("maps", "gate")): {"map_q.weight", "map_k.weight", "gate"},
        (AgentLayer, ("conv",)): {"conv"},
    }
    for (layer, parts), names in wanted.items():
        assert set(layer.of_parts(attn, parts).state_dict()) == names
    assert LinearLayer.of_parts(attn, ("gate",), gate=3.0).gate.tolist() == [3.0] * attn.heads


def test_mistakes():
    attn = next(iter(grid_layers(Tiny("sd").model).values()))
    with pytest.raises(
        ValueError, match="AgentLayer has no part to_q; it has key_bias, query_bias"
    ):
        AgentLayer.of_parts(attn, ("to_q", "conv"))
    with pytest.raises(ValueError, match="pool_weight needs pool"):
        LocalLayer.of_parts(attn, ("pool_weight",))
