"""The processors, and the stock way: one object through diffusers' set_attn_processor."""

import copy
import inspect
import pickle

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

from foveate.attn_processors import (
    AgentAttnProcessor,
    FoveatedAttnProcessor,
    LinearAttnProcessor,
    LocalAttnProcessor,
    NeighborhoodAttnProcessor,
    SoftmaxAttnProcessor,
    WindowAttnProcessor,
    apply,
)
from foveate.kernels import TokenLayout, local_keys
from probes import GainAttnProcessor
from tiny_families import TinyFamily
from tiny_pipelines import Tiny

OPERATORS = [
    SoftmaxAttnProcessor(),
    LocalAttnProcessor(radius=3),
    FoveatedAttnProcessor(radius=2, pool=2),
    AgentAttnProcessor(agents=12, shortcut=0.1),
    NeighborhoodAttnProcessor(kernel_size=(1, 3, 5)),
    WindowAttnProcessor(window_size=(1, 4, 4), shift=0.5),
]


def name_of(value):
    return value.operator_name if hasattr(value, "operator_name") else str(value)


@pytest.fixture(scope="module")
def flux():
    return Tiny("flux")


@pytest.fixture(scope="module")
def sd():
    return Tiny("sd")


@pytest.fixture
def set_on():
    """Sets one processor on every attention of a model, and puts the old ones back afterwards."""
    undo = []

    def set_processor(tiny, processor):
        undo.append((tiny.model, dict(tiny.model.attn_processors)))
        tiny.model.set_attn_processor(processor)

    yield set_processor
    for model, processors in reversed(undo):
        model.set_attn_processor(processors)


def test_every_argument_is_named():
    parameters = inspect.signature(LocalAttnProcessor(radius=1).__call__).parameters
    host = inspect.signature(FluxAttnProcessor.__call__).parameters
    assert set(host) - {"self"} <= set(parameters)
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters.values())


@pytest.mark.parametrize("size", [(16, 24), (24, 20)], ids=str)
def test_flux_grid_is_inferred(flux, set_on, size):
    want = flux(size)
    probe = GainAttnProcessor()
    set_on(flux, probe)
    assert torch.equal(flux(size), want)
    assert set(probe.calls) == {TokenLayout(text=16, grid=(1, *flux.grid(size)))}
    # two steps, a dual and a single block
    assert len(probe.calls) == 4


@pytest.mark.parametrize("operator", OPERATORS, ids=name_of)
def test_stock_way_equals_apply_on_flux(flux, set_on, operator):
    with apply(flux.pipe, operator):
        want = flux()
    set_on(flux, operator)
    assert torch.equal(flux(), want)
    assert torch.equal(flux(flux.sizes[1]), flux(flux.sizes[1]))


@pytest.mark.parametrize("operator", OPERATORS, ids=name_of)
def test_stock_way_equals_apply_on_a_unet(sd, set_on, operator):
    with apply(sd.pipe, operator):
        want = sd()
    given = copy.copy(operator)
    given.grid = (1, *sd.grid())
    set_on(sd, given)
    assert torch.equal(sd(), want)


def test_a_radius_for_each_head(flux):
    """Every head is local attention of its own radius, as the dense oracle has it."""
    found = []
    for radius, impl in (((2, 5), None), ((2, 5), "reference"), ((5, 2), None)):
        with apply(flux.pipe, LocalAttnProcessor(radius=radius, impl=impl), strict=True) as handle:
            found.append(flux())
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0], found[2], atol=1e-3)
    layout = TokenLayout(text=16, grid=(1, *flux.grid()))
    assert {row.keys for row in handle.report().layers} == {local_keys(layout, (5, 2))}


def test_a_radius_for_each_head_where_the_layer_says_num_heads():
    tiny = TinyFamily("kandinsky5")
    with apply(tiny.pipe, LocalAttnProcessor(radius=(1, 3)), strict=True) as handle:
        tiny()
    assert sum(row.operator == "local" for row in handle.report().layers) == 2


def test_radii_for_other_heads_are_refused(flux):
    want = flux()
    message = r"attn has 2 heads, but radius=\(2, 5, 3\) is for 3; map each pattern of layers"
    with pytest.raises(ValueError, match=message):
        apply(flux.pipe, LocalAttnProcessor(radius=(2, 5, 3)))
    assert torch.equal(flux(), want)


def test_grid_given_on_flux(flux, set_on):
    with apply(flux.pipe, LocalAttnProcessor(radius=3)):
        want = flux()
    set_on(flux, LocalAttnProcessor(radius=3, grid=flux.grid()))
    assert torch.equal(flux(), want)
    with pytest.raises(
        ValueError, match="grid=.1, 8, 12. does not fit 136 tokens, 16 of them text"
    ):
        flux(flux.sizes[1])


def test_unet_needs_the_grid(sd, set_on):
    set_on(sd, LocalAttnProcessor(radius=3))
    with pytest.raises(ValueError, match="pass grid=.*or use foveate.apply"):
        sd()


def test_unet_with_a_wrong_grid(sd, set_on):
    set_on(sd, LocalAttnProcessor(radius=3, grid=(16, 16)))
    with pytest.raises(ValueError, match="192 tokens are no level of grid="):
        sd()


def test_cross_attention_runs_dense(sd, set_on):
    want = sd()
    probe = GainAttnProcessor(grid=sd.grid())
    set_on(sd, probe)
    assert torch.equal(sd(), want)
    assert {layout.text for layout in probe.calls} == {0}
    # two steps, seven self-attentions
    assert len(probe.calls) == 14


def test_other_hosts_are_refused(set_on):
    sd3 = Tiny("sd3")
    set_on(sd3, LocalAttnProcessor(radius=3, grid=sd3.grid()))
    with pytest.raises(NotImplementedError, match="cannot tell the stock processor.*foveate.apply"):
        sd3()


def test_rotated_plain_attention_is_refused():
    attention = Attention(query_dim=16, heads=2, dim_head=8)
    attention.set_processor(LocalAttnProcessor(radius=3, grid=(3, 4)))
    rotary = (torch.ones(12, 8), torch.zeros(12, 8))
    with pytest.raises(NotImplementedError, match="cannot tell the stock processor"):
        attention(torch.randn(1, 12, 16), image_rotary_emb=rotary)


def test_joint_attention_without_rotary_embedding_is_refused():
    """CogVideoX-2B and LuminaNext hand text to an `Attention` not made for cross-attention."""
    attention = Attention(query_dim=16, heads=2, dim_head=8)
    attention.set_processor(LocalAttnProcessor(radius=3, grid=(3, 4)))
    with pytest.raises(NotImplementedError, match="cannot tell the stock processor.*foveate.apply"):
        attention(torch.randn(1, 12, 16), encoder_hidden_states=torch.randn(1, 5, 16))


def test_masked_self_attention_is_refused():
    attention = Attention(query_dim=16, heads=2, dim_head=8)
    attention.set_processor(LocalAttnProcessor(radius=3, grid=(3, 4)))
    with pytest.raises(NotImplementedError, match="carries an attention mask; use foveate.apply"):
        attention(torch.randn(1, 12, 16), attention_mask=torch.zeros(1, 1, 12))


def test_lost_ip_adapter_is_named():
    attention = Attention(query_dim=16, heads=2, dim_head=8, cross_attention_dim=16)
    attention.set_processor(LocalAttnProcessor(radius=3, grid=(3, 4)))
    context = (torch.randn(1, 7, 16), [torch.randn(1, 4, 16)])
    with pytest.raises(NotImplementedError, match="IP-Adapter"):
        attention(torch.randn(1, 12, 16), encoder_hidden_states=context)


def test_context_parallel_is_refused(flux, set_on):
    processor = LocalAttnProcessor(radius=3)
    processor._parallel_config = object()
    set_on(flux, processor)
    with pytest.raises(NotImplementedError, match="context parallelism"):
        flux()


def test_attention_backend_is_accepted(flux, set_on):
    processor = LocalAttnProcessor(radius=3)
    set_on(flux, processor)
    want = flux()
    flux.model.set_attention_backend("native")
    assert processor._attention_backend is not None
    assert torch.equal(flux(), want)
    flux.model.reset_attention_backend()
    assert LocalAttnProcessor(radius=3)._attention_backend is None


def test_one_object_for_two_models(set_on):
    first, second = Tiny("flux", seed=1), Tiny("flux", seed=2)
    processor = LocalAttnProcessor(radius=3)
    for tiny in (first, second):
        set_on(tiny, processor)
    alone = first(first.sizes[0]), second(second.sizes[1])
    again = first(first.sizes[0]), second(second.sizes[1])
    assert torch.equal(alone[0], again[0])
    assert torch.equal(alone[1], again[1])


@pytest.mark.parametrize("operator", OPERATORS, ids=name_of)
def test_copies(flux, set_on, operator):
    set_on(flux, operator)
    want = flux()
    for duplicate in (copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))):
        assert repr(duplicate) == repr(operator)
        set_on(flux, duplicate)
        assert torch.equal(flux(), want)


def test_repr_shows_what_is_set():
    assert repr(LocalAttnProcessor(radius=5)) == "LocalAttnProcessor(radius=5)"
    assert repr(LocalAttnProcessor(radius=5, grid=(4, 6))) == (
        "LocalAttnProcessor(grid=(1, 4, 6), radius=5)"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocalAttnProcessor(radius=0), "radius must be an integer >= 1, got 0"),
        (lambda: LocalAttnProcessor(radius=2.5), "radius must be an integer >= 1, got 2.5"),
        (lambda: LocalAttnProcessor(frames_radius=0), "frames_radius must be an integer >= 1"),
        (lambda: LocalAttnProcessor(proportional=1), "proportional must be an integer >= 2"),
        (lambda: LocalAttnProcessor(grid=(4,)), r"grid must be \(rows, columns\) or"),
        (lambda: LocalAttnProcessor(grid=(4, 0)), r"grid must be \(rows, columns\) or"),
        (lambda: FoveatedAttnProcessor(radius=-1), "radius must be an integer >= 1, got -1"),
        (lambda: FoveatedAttnProcessor(pool=1), "pool must be an integer >= 2, got 1"),
        (
            lambda: FoveatedAttnProcessor(levels=2, partition=False),
            "partition=False takes levels=1",
        ),
        (lambda: FoveatedAttnProcessor(levels=0), "levels must be an integer >= 1, got 0"),
        (lambda: LocalAttnProcessor(radius=(4, 0)), "radius must be an integer >= 1, got 0"),
        (lambda: LocalAttnProcessor(grid=64), r"grid must be .* got 64"),
        (lambda: LocalAttnProcessor(grid=(True, 8)), r"grid must be .* got \(True, 8\)"),
        (lambda: LocalAttnProcessor(impl="tritn"), "impl must be .* got 'tritn'"),
        (lambda: SoftmaxAttnProcessor(impl="tritn"), "impl must be .* got 'tritn'"),
        (lambda: FoveatedAttnProcessor(mass="no"), "mass must be True or False, got 'no'"),
        (lambda: FoveatedAttnProcessor(pool_weight=[[1.0]]), "pool_weight must be a tensor, got"),
        (lambda: AgentAttnProcessor(shortcut="a"), "shortcut must be a number, got 'a'"),
        (lambda: AgentAttnProcessor(scale2_exponent=None), "scale2_exponent must be a number, got"),
        (lambda: LinearAttnProcessor(gate="a"), "gate must be a number >= 0, got 'a'"),
        (lambda: LinearAttnProcessor(gate=torch.ones(4)), "gate must be a number >= 0, got tensor"),
        (lambda: LinearAttnProcessor(gate=float("nan")), "gate must be a number >= 0, got nan"),
        (lambda: LinearAttnProcessor(eps="a"), "eps must be a number >= 0, got 'a'"),
        (lambda: NeighborhoodAttnProcessor(is_causal=True), "is_causal must be .* got True"),
        (lambda: WindowAttnProcessor(shift="a"), "shift must be a share .* got 'a'"),
        (lambda: WindowAttnProcessor(seed="a"), "seed must be an integer >= 0, got 'a'"),
        (lambda: AgentAttnProcessor(agents=0), "agents must be an integer >= 1, got 0"),
        (
            lambda: NeighborhoodAttnProcessor(kernel_size=(7, 7)),
            r"kernel_size must be \(frames, rows, columns\), got \(7, 7\)",
        ),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("processor", "tokens"),
    [
        (LocalAttnProcessor(radius=40, proportional=64), 112),
        (FoveatedAttnProcessor(radius=40, proportional=64), 112),
    ],
    ids=name_of,
)
def test_proportional_scale(processor, tokens):
    layout = TokenLayout(text=16, grid=(1, 8, 12))
    q, k, v = torch.randn(3, 1, 2, tokens, 8)
    scale = (torch.tensor(float(tokens)).log() / torch.tensor(64.0).log() / 8).sqrt()
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=float(scale))
    got = processor.attend(q, k, v, layout=layout, scale=None)
    assert torch.allclose(got, want, atol=1e-5)


def test_stock_way_compiles(set_on):
    tiny = Tiny("flux")
    set_on(tiny, LocalAttnProcessor(radius=3, grid=tiny.grid()))
    want = tiny()
    torch._dynamo.reset()
    tiny.model.compile(backend="eager", fullgraph=True)
    assert torch.allclose(tiny(), want, atol=1e-6)
