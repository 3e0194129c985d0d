"""LinearAttnProcessor on stock pipelines: trained parts by layer, zero initialisation, refusals."""

import copy
import pickle

import pytest
import torch
from torch import nn

from foveate.attn_processors import (
    DynamicResidual,
    LinearAttnProcessor,
    LinearLayer,
    LinearWeights,
    LocalAttnProcessor,
    StaticResidual,
    apply,
)
from foveate.attn_processors.layouts import attention_layers
from foveate.kernels import TokenLayout, hybrid_attention, linear_attention
from tiny_pipelines import Tiny


@pytest.fixture(scope="module")
def flux():
    return Tiny("flux")


@pytest.fixture(scope="module")
def sd():
    return Tiny("sd")


@pytest.fixture(params=["sd", "flux"])
def tiny(request):
    return request.getfixturevalue(request.param)


def attn1(model):
    """The self-attentions of a UNet by name."""
    return {n: m for n, m in attention_layers(model).items() if n.endswith("attn1")}


def linfusion(model, mid_dim=None):
    """LinFusion's parts as they are before training, of every self-attention."""
    layers = {n: LinearLayer.from_attention(m, mid_dim) for n, m in attn1(model).items()}
    return LinearWeights(layers)


def hybrid(model, gate=0.0):
    """Hedgehog maps and gates of every self-attention or joint layer."""
    layers = (
        attention_layers(model) if hasattr(model, "single_transformer_blocks") else attn1(model)
    )
    sizes = {n: (m.heads, m.to_q.out_features // m.heads) for n, m in layers.items()}
    return LinearWeights({n: LinearLayer.hybrid(*size, gate=gate) for n, size in sizes.items()})


def shake(weights, size=0.5):
    for parameter in weights.parameters():
        nn.init.normal_(parameter, std=size)
    return weights


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"feature_map": "focused"},
        {"feature_map": "identity", "affine": True},
        {"rank_augment": True},
        {"radius": 2, "gate": 1.0},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "elu",
)
def test_it_runs_and_is_undone(tiny, options):
    want = tiny()
    with apply(tiny.pipe, LinearAttnProcessor(**options)) as handle:
        got = tiny()
    assert got.isfinite().all()
    assert not torch.equal(got, want)
    rows = [row for row in handle.report().layers if row.kind in ("self", "joint")]
    assert rows
    assert all(row.operator == "linear" and row.forwards == 2 for row in rows)
    assert torch.equal(tiny(), want)


def test_the_options_reach_the_operator():
    layout = TokenLayout(text=5, grid=(1, 6, 7))
    q, k, v = torch.randn(3, 1, 2, layout.num_tokens, 8)
    processor = LinearAttnProcessor(feature_map="relu", eps=0.5, rank_augment=True)
    want = linear_attention(
        q, k, v, layout=layout, feature_map="relu", eps=0.5, rank_augment=True, scale=0.3
    )
    assert torch.equal(processor.attend(q, k, v, layout=layout, scale=0.3), want)
    processor = LinearAttnProcessor(feature_map="hedgehog", radius=2, gate=0.7)
    want = hybrid_attention(q, k, v, layout=layout, radius=2, gate=0.7, feature_map="hedgehog")
    assert torch.equal(processor.attend(q, k, v, layout=layout, scale=None), want)


# parts that start at zero


def test_untrained_projections_change_nothing(sd):
    with apply(sd.pipe, LinearAttnProcessor()):
        want = sd()
    for mid_dim in (None, 3):
        with apply(sd.pipe, LinearAttnProcessor(weights=linfusion(sd.model, mid_dim))):
            assert torch.equal(sd(), want)


def test_a_zero_gate_is_local_attention(tiny):
    with apply(tiny.pipe, LocalAttnProcessor(radius=3)):
        want = tiny()
    with apply(tiny.pipe, LinearAttnProcessor(radius=3)):
        assert torch.equal(tiny(), want)
    with apply(tiny.pipe, LinearAttnProcessor(radius=3, weights=hybrid(tiny.model))):
        assert torch.equal(tiny(), want)
    with apply(tiny.pipe, LinearAttnProcessor(radius=3, weights=hybrid(tiny.model, 1.0))):
        assert not torch.equal(tiny(), want)


@pytest.mark.parametrize("residual", [StaticResidual(2, 8), DynamicResidual(2, 8)], ids=["5", "3"])
def test_an_untrained_residual_changes_nothing(residual):
    layout = TokenLayout(text=5, grid=(1, 6, 7))
    q, k, v = torch.randn(3, 2, 2, layout.num_tokens, 8)
    weights = LinearWeights({"one": LinearLayer(residual=residual)})
    bound = LinearAttnProcessor(weights=weights).bind("one", nn.Identity())
    want = linear_attention(q, k, v, layout=layout)
    assert torch.equal(bound.attend(q, k, v, layout=layout, scale=None), want)
    shake(weights)
    got = bound.attend(q, k, v, layout=layout, scale=None)
    torch.testing.assert_close(layout.grid_of(got), layout.grid_of(want) + residual(v, layout))
    assert torch.equal(layout.context_of(got), layout.context_of(want))
    assert (layout.grid_of(got) != layout.grid_of(want)).any()


def test_kernels_of_the_dynamic_residual_follow_the_picture():
    residual, layout = DynamicResidual(2, 8), TokenLayout(grid=(1, 6, 7))
    shake(residual)
    v = torch.randn(2, 2, 42, 8)
    both, first = residual(v, layout), residual(v[:1], layout)
    torch.testing.assert_close(both[:1], first)
    ratio = residual(2 * v, layout) / both
    assert not torch.allclose(ratio, torch.full_like(ratio, 2.0), atol=0.1)


# trained projections


def linfusion_formula(layer, heads, x):
    """LinFusion's attention of x [B, N, C], from its tensors."""

    def generalised(name):
        inner = getattr(layer, f"{name}_")
        return getattr(layer, name)(x + inner[3](nn.functional.leaky_relu(inner[1](inner[0](x)))))

    q, k, v = (
        y.unflatten(-1, (heads, -1)).transpose(1, 2)
        for y in (generalised("to_q"), generalised("to_k"), layer.to_v(x))
    )
    q, k = nn.functional.elu(q) + 1, nn.functional.elu(k) + 1
    state, mean = k.mT @ v / x.shape[1], k.mean(2, keepdim=True)
    out = q @ state / ((q * mean).sum(-1, keepdim=True) + 1e-4)
    return layer.to_out[0](out.transpose(1, 2).flatten(2))


def test_a_layer_computes_linfusions_formula(sd):
    weights = shake(linfusion(sd.model, 5))
    name, attention = next(iter(attn1(sd.model).items()))
    seen = []
    hook = attention.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    with apply(sd.pipe, LinearAttnProcessor(weights=weights)):
        sd()
    hook.remove()
    x, got = seen[0]
    with torch.no_grad():
        want = linfusion_formula(weights.of(name), attention.heads, x)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("mid_dim", "tensors"), [(None, 17), (-1, 5), (3, 17)])
def test_tensors_have_the_names_of_linfusions_files(sd, mid_dim, tensors):
    weights = linfusion(sd.model, mid_dim)
    inner = [f"{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")]
    own = ["to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias"]
    if mid_dim != -1:
        own += [f"to_{x}_.{name}" for x in "qk" for name in inner]
    assert len(own) == tensors
    assert set(weights.state_dict()) == {f"{i}.{n}" for i in range(len(weights)) for n in own}
    shaken = shake(linfusion(sd.model, mid_dim))
    weights.load_state_dict(shaken.state_dict())
    with apply(sd.pipe, LinearAttnProcessor(weights=shaken)):
        want = sd()
    with apply(sd.pipe, LinearAttnProcessor(weights=weights)):
        assert torch.equal(sd(), want)


def test_an_identity_inner_map_doubles_its_input(sd):
    weights = linfusion(sd.model, -1)
    doubled = LinearWeights({n: LinearLayer() for n in weights.names})
    for name, attention in attn1(sd.model).items():
        layer = doubled.of(name)
        layer.to_q, layer.to_k = copy.deepcopy(attention.to_q), copy.deepcopy(attention.to_k)
        with torch.no_grad():
            layer.to_q.weight *= 2
            layer.to_k.weight *= 2
    with apply(sd.pipe, LinearAttnProcessor(weights=weights)):
        want = sd()
    with apply(sd.pipe, LinearAttnProcessor(weights=doubled)):
        assert torch.allclose(sd(), want, atol=1e-5)


def test_dense_calls_keep_the_models_own_projections(sd):
    want = sd()
    processor = LinearAttnProcessor(weights=shake(linfusion(sd.model)))
    with apply(sd.pipe, processor, min_tokens=10_000):
        assert torch.equal(sd(), want)
    with apply(sd.pipe, processor, min_tokens=100) as handle:
        assert not torch.equal(sd(), want)
    ran = {row.operator for row in handle.report().layers if row.kind == "self"}
    assert ran == {"linear", "dense"}
    with apply(sd.pipe, processor, steps=(0, 0.5)) as handle:
        sd()
    rows = [row for row in handle.report().layers if row.kind == "self"]
    assert all((row.forwards, row.dense_forwards) == (1, 1) for row in rows)
    assert torch.equal(sd(), want)


def test_masked_calls_keep_the_models_own_projections(sd):
    attention = next(iter(attn1(sd.model).values()))
    call = {"hidden_states": torch.randn(1, 192, 8), "attention_mask": torch.zeros(1, 192)}
    with torch.no_grad():
        want = attention(**call)
        with apply(sd.pipe, LinearAttnProcessor(weights=shake(linfusion(sd.model)))):
            sd()
            assert torch.equal(attention(**call), want)
            assert not torch.equal(attention(call["hidden_states"]), want)


def test_layers_without_weights_stay_dense(sd):
    name = next(iter(attn1(sd.model)))
    weights = LinearWeights({name: LinearLayer.from_attention(attn1(sd.model)[name])})
    with apply(sd.pipe, LinearAttnProcessor(weights=weights)) as handle:
        sd()
    rows = {row.layer: row for row in handle.report().layers if row.kind == "self"}
    assert rows.pop(name).operator == "linear"
    assert rows
    assert {row.reason for row in rows.values()} == {"no trained weights for this layer"}
    with pytest.raises(NotImplementedError, match="no trained weights for this layer"):
        apply(sd.pipe, LinearAttnProcessor(weights=weights), strict=True)


def test_projections_of_another_base_model_are_refused(sd):
    before = dict(sd.model.attn_processors)
    name, attention = next(iter(attn1(sd.model).items()))
    wide = nn.Linear(attention.to_q.in_features + 1, attention.to_q.out_features, bias=False)
    weights = linfusion(sd.model)
    weights.of(name).to_k = wide
    with pytest.raises(ValueError, match=r"to_k is \(8, 8\) in this model and \(8, 9\)"):
        apply(sd.pipe, LinearAttnProcessor(weights=weights))
    assert all(sd.model.attn_processors[n] is p for n, p in before.items())


def test_projections_of_joint_layers(flux):
    layers = {n: LinearLayer.from_attention(m, 3) for n, m in attention_layers(flux.model).items()}
    weights = LinearWeights(layers)
    with apply(flux.pipe, LinearAttnProcessor()):
        want = flux()
    with apply(flux.pipe, LinearAttnProcessor(weights=weights)):
        assert torch.equal(flux(), want)
    shake(weights)
    with apply(flux.pipe, LinearAttnProcessor(weights=weights)) as handle:
        assert not torch.equal(flux(), want)
    assert {row.operator for row in handle.report().layers} == {"linear"}


# training


def test_gradients_reach_every_trained_part(sd):
    weights = shake(linfusion(sd.model, 3), 0.3)
    sample, context = torch.randn(1, 4, 12, 16), torch.randn(1, 7, 8)
    with apply(sd.pipe, LinearAttnProcessor(weights=weights)):
        sd.model(sample, 500, context, return_dict=False)[0].square().sum().backward()
    sd.model.zero_grad()
    assert all(p.grad is not None and p.grad.any() for p in weights.parameters())


def test_gradients_reach_maps_and_closed_gates(flux):
    weights = hybrid(flux.model)
    layout = TokenLayout(text=4, grid=(1, 6, 7))
    q, k, v = torch.randn(3, 1, 2, layout.num_tokens, 16)
    bound = LinearAttnProcessor(radius=2, weights=weights).bind(weights.names[0], nn.Identity())
    bound.attend(q, k, v, layout=layout, scale=None).square().sum().backward()
    layer = weights[0]
    assert layer.gate.grad.all()
    assert not layer.map_q.weight.grad.any()
    nn.init.ones_(layer.gate)
    bound.attend(q, k, v, layout=layout, scale=None).square().sum().backward()
    assert layer.map_q.weight.grad.any()
    assert layer.map_k.weight.grad.any()


# the object


def test_weights_move(sd):
    processor = LinearAttnProcessor(weights=linfusion(sd.model))
    assert processor.to(dtype=torch.float64) is processor
    assert {p.dtype for p in processor.weights.parameters()} == {torch.float64}
    twin = Tiny("sd")
    twin.model.double()
    sample, context = torch.randn(1, 4, 12, 16).double(), torch.randn(1, 7, 8).double()
    with apply(twin.model, processor), torch.no_grad():
        assert twin.model(sample, 500, context, return_dict=False)[0].isfinite().all()


def test_copies(sd):
    processor = LinearAttnProcessor(weights=shake(linfusion(sd.model)))
    with apply(sd.pipe, processor):
        want = sd()
        twin = Tiny("sd")
        twin.pipe = copy.deepcopy(sd.pipe)
    assert torch.equal(twin(), want)
    for duplicate in (copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
        assert repr(duplicate) == repr(processor)
        with apply(sd.pipe, duplicate):
            assert torch.equal(sd(), want)


def test_undo_leaves_nothing_on_the_stock_processor(sd):
    before = {name: dict(vars(p)) for name, p in sd.model.attn_processors.items()}
    with apply(sd.pipe, LinearAttnProcessor(weights=linfusion(sd.model))):
        sd()
    assert {name: dict(vars(p)) for name, p in sd.model.attn_processors.items()} == before


def test_repr_is_short(sd):
    text = repr(LinearAttnProcessor(weights=linfusion(sd.model)))
    assert text.endswith("weights=LinearWeights(7 layers))")
    assert "\n" not in text


def test_trained_projections_compile():
    tiny = Tiny("sd")
    block = tiny.model.mid_block.attentions[0].transformer_blocks[0]
    with apply(tiny.pipe, LinearAttnProcessor(weights=shake(linfusion(tiny.model)))):
        want = tiny()
        torch._dynamo.reset()
        block.compile(backend="eager", fullgraph=True)
        assert torch.allclose(tiny(), want, atol=1e-6)


def test_the_stock_way_has_no_layers_to_train(flux):
    processors = dict(flux.model.attn_processors)
    flux.model.set_attn_processor(LinearAttnProcessor(weights=hybrid(flux.model), radius=2))
    with pytest.raises(NotImplementedError, match=r"use foveate.apply"):
        flux()
    flux.model.set_attn_processor(processors)


def test_the_stock_way_without_weights(flux):
    with apply(flux.pipe, LinearAttnProcessor()):
        want = flux()
    processors = dict(flux.model.attn_processors)
    flux.model.set_attn_processor(LinearAttnProcessor())
    assert torch.equal(flux(), want)
    flux.model.set_attn_processor(processors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_map": "gelu"}, "feature_map must be one of"),
        ({"feature_map": "identity"}, "needs affine=True"),
        ({"eps": -1}, "eps must be a number >= 0, got -1"),
        ({"radius": 0}, "radius must be an integer >= 1, got 0"),
        ({"gate": -0.5}, "gate must be a number >= 0, got -0.5"),
        ({"radius": 2, "affine": True}, "goes with neither affine nor rank_augment"),
        ({"weights": {}}, "weights must be LinearWeights, got dict"),
    ],
    ids=str,
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        LinearAttnProcessor(**options)
