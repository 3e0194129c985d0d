"""The ComfyUI patch on doubles of its models: right layouts, exact fallbacks, nothing left over."""

import logging

import pytest
import torch

import foveate.comfyui.families as families
from comfyui_double import (
    SD3,
    SLOT,
    Base,
    Flux,
    Patcher,
    UNet,
    Unknown,
    Wan,
    attention_settings,
    stock,
)
from foveate.comfyui.call import read_call
from foveate.comfyui.modes import MODES
from foveate.comfyui.patch import find_patch, install
from foveate.comfyui.settings import parse_layers
from foveate.kernels import TokenLayout
from oracles import FLOAT32, FLOAT64, dense

FAMILIES = {"flux": Flux, "sd3": SD3, "unet": UNet, "wan": Wan}
each_family = pytest.mark.parametrize("family", FAMILIES)


def _model(family):
    return Patcher(Base(FAMILIES[family]()))


def _inputs(family, height=26, width=30, batch=2, text=7):
    shape = (batch, 4, 3, height, width) if family == "wan" else (batch, 4, height, width)
    return torch.randn(shape).double(), torch.randn(batch, text, 16).double()


def _exact(model, x, context):
    return Patcher(Base(type(model.model.diffusion_model)())).sample(x, context)


def _report(model):
    return find_patch(model).report()


def _disc(grid, text, radius):
    """Which keys each query of a joint sequence sees, by the definition of local attention."""
    frames, height, width = grid
    where = torch.cartesian_prod(*(torch.arange(n).double() for n in (frames, height, width)))
    near = torch.cdist(where.reshape(-1, 3), where.reshape(-1, 3)) < radius - 1e-4
    total = text + frames * height * width
    visible = torch.ones(total, total, dtype=torch.bool)
    visible[text:, text:] = near
    return visible


def _local_oracle(sizes, radius):
    """An override that masks by the disc in float64, written without the package."""

    def override(func, q, k, v, heads, *args, **kwargs):
        grid_of = dict(sizes)
        if q.shape[0] != k.shape[0] or q.shape[-2] != k.shape[-2]:
            return func(q, k, v, heads, *args, **kwargs)
        tokens = q.shape[2] if kwargs.get("skip_reshape") else q.shape[1]
        batch = kwargs["transformer_options"].get("activations_shape", [q.shape[0]])[0]
        if tokens not in grid_of or q.shape[0] != batch:
            return func(q, k, v, heads, *args, **kwargs)
        if not kwargs.get("skip_reshape"):
            q, k, v = (x.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        grid, text = grid_of[tokens]
        out = dense(q, k, v, _disc(grid, text, radius))
        return out.transpose(1, 2).flatten(2)

    return override


SIZES = {
    "flux": {202: ((1, 13, 15), 7)},
    "sd3": {202: ((1, 13, 15), 7), 195: ((1, 13, 15), 0)},
    "unet": {780: ((1, 26, 30), 0), 195: ((1, 13, 15), 0)},
    "wan": {585: ((3, 13, 15), 0)},
}


@each_family
def test_local_equals_a_masked_softmax(family):
    model, (x, context) = _model(family), _inputs(family)
    masked = Patcher(model.model, options={SLOT: _local_oracle(SIZES[family], 2)})
    ours = install(model, attention_settings())
    torch.testing.assert_close(ours.sample(x, context), masked.sample(x, context), **FLOAT64)
    assert not torch.equal(ours.sample(x, context), model.sample(x, context))


@each_family
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(34, 46), (37, 53), (1, 397)], ids=str)
def test_every_mode_on_every_family(family, mode, size):
    model, (x, context) = _model(family), _inputs(family, *size)
    ours = install(model, attention_settings(mode=mode))
    out = ours.sample(x, context)
    assert out.isfinite().all()
    assert not torch.equal(out, model.sample(x, context))
    one = torch.cat([ours.sample(x[i : i + 1], context[i : i + 1]) for i in (0, 1)], 1)
    if family != "unet":  # its attention over the batch is another one then
        torch.testing.assert_close(out, one, **FLOAT64)


@each_family
@pytest.mark.parametrize("mode", MODES)
def test_inference_mode_and_half_precision(family, mode):
    model, (x, context) = _model(family), _inputs(family)
    ours = install(model, attention_settings(mode=mode))
    expected = ours.sample(x, context)
    model.model.diffusion_model.weight = model.model.diffusion_model.weight.bfloat16()
    with torch.inference_mode():  # what ComfyUI runs its nodes in
        half = ours.sample(x.bfloat16(), context.bfloat16())
        plain = model.sample(x.bfloat16(), context.bfloat16())
    exact = _exact(model, x, context)
    assert half.dtype == torch.bfloat16
    # twice the error of dense attention in the same precision
    error, allowed = (half - expected).norm(), 2 * (plain - exact).norm()
    assert error <= allowed


@each_family
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "agent"])
def test_a_radius_beyond_the_grid_is_bitwise_dense(family, mode):
    model, (x, context) = _model(family), _inputs(family)
    ours = install(model, attention_settings(mode=mode, radius=64))
    assert torch.equal(ours.sample(x, context), model.sample(x, context))
    assert "every query would be compared with every key" in _report(ours)


@each_family
def test_nothing_is_left_behind(family):
    model, (x, context) = _model(family), _inputs(family)
    before = model.sample(x, context)
    ours = install(model, attention_settings())
    ours.sample(x, context)
    assert model.wrappers == {}
    assert find_patch(model) is None
    assert torch.equal(model.sample(x, context), before)


@each_family
def test_nothing_is_left_behind_by_an_error(family, monkeypatch):
    model, (x, context) = _model(family), _inputs(family)
    before = model.sample(x, context)
    ours = install(model, attention_settings())

    def fail(self, *args, **kwargs):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(FAMILIES[family], "call", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            ours.sample(x, context)
    assert torch.equal(model.sample(x, context), before)


def test_prompts_of_another_length_in_one_sampling():
    model, (x, _) = _model("flux"), _inputs("flux")
    ours = install(model, attention_settings(mode="foveated"))
    for text in (7, 11, 1, 7):
        assert ours.sample(x, torch.randn(2, text, 16).double()).isfinite().all()
        assert f"{text + 195} " in _report(ours)


def test_references_are_seen_by_all():
    model, (x, context) = _model("flux"), _inputs("flux")
    given = {"ref_latents": [torch.randn(2, 4, h, w).double() for h, w in ((6, 7), (3, 4))]}
    ours = install(model, attention_settings())
    out = ours.sample(x, context, **given)
    assert "ran in 2 of 2 layers" in _report(ours)
    visible = torch.ones(218, 218, dtype=torch.bool)
    visible[7:202, 7:202] = _disc((1, 13, 15), 0, 2)

    def masked(func, q, k, v, heads, **kwargs):
        return dense(q, k, v, visible).transpose(1, 2).flatten(2)

    expected = Patcher(model.model, options={SLOT: masked}).sample(x, context, **given)
    torch.testing.assert_close(out, expected, **FLOAT64)


def test_tokens_another_node_adds_run_as_before():
    class Longer(Flux):
        def forward(self, x, context, transformer_options, **conds):
            image = torch.cat([context, torch.ones(2, 3, 16).double()], 1)
            return super().forward(x, image, transformer_options, **conds)

    model, (x, context) = Patcher(Base(Longer())), _inputs("flux")
    ours = install(model, attention_settings())
    assert torch.equal(ours.sample(x, context), model.sample(x, context))
    assert "205 tokens are not 7 of text + 13 x 15 of grid" in _report(ours)


def test_a_mask_runs_as_before():
    model, (x, context) = _model("flux"), _inputs("flux")
    given = {"attention_mask": torch.rand(2, 1, 202, 202) > 0.3}
    ours = install(model, attention_settings())
    assert torch.equal(ours.sample(x, context, **given), model.sample(x, context, **given))
    assert "the call carries an attention mask" in _report(ours)


def test_a_prompt_as_long_as_the_grid_runs_as_before():
    model, (x, context) = _model("wan"), _inputs("wan", text=585)
    ours = install(model, attention_settings())
    assert torch.equal(ours.sample(x, context), model.sample(x, context))
    assert "look alike" in _report(ours)


def test_a_model_that_is_not_in_the_table_runs_as_before(caplog):
    model, (x, context) = Patcher(Base(Unknown())), _inputs("wan")
    ours = install(model, attention_settings())
    assert torch.equal(ours.sample(x, context, (0.9, 0.5)), model.sample(x, context, (0.9, 0.5)))
    assert "Unknown is not in the layout table" in _report(ours)
    assert sum("layout table" in line for line in caplog.messages) == 1


def test_a_subclass_has_the_row_of_its_base():
    class Vace(Wan):
        pass

    assert families.family_of(Vace()) is families.FAMILIES["wan.model.WanModel"]
    assert families.family_of(torch.nn.Linear(1, 1)) is None


def test_earlier_override_runs_where_ours_does_not():
    seen = []

    def other(func, *args, **kwargs):
        seen.append(kwargs["transformer_options"].get("block_index"))
        return func(*args, **kwargs) * 2

    model, (x, context) = _model("wan"), _inputs("wan")
    model.options[SLOT] = other
    ours = install(model, attention_settings(dense_layers="1"))
    ours.sample(x, context)
    assert len(seen) == 3  # two cross-attention calls and the layer left alone
    everything_dense = install(model, attention_settings(radius=64))
    assert torch.equal(everything_dense.sample(x, context), model.sample(x, context))


def test_an_override_set_later_on_the_model_is_kept_below_ours():
    model, (x, context) = _model("flux"), _inputs("flux")
    ours = install(model, attention_settings())
    alone = ours.sample(x, context)
    ours.options[SLOT] = lambda func, *args, **kwargs: func(*args, **kwargs) * 2
    assert torch.equal(ours.sample(x, context), alone)


def test_two_nodes_share_the_sampling():
    model, (x, context) = _model("flux"), _inputs("flux")
    first = install(model, attention_settings(mode="local", end_percent=0.5))
    both = install(first, attention_settings(mode="window", start_percent=0.5))
    out = both.sample(x, context, (0.9, 0.2))
    late = install(model, attention_settings(mode="window", start_percent=0.5))
    assert torch.equal(out[:1], first.sample(x, context, (0.9,)))
    assert torch.equal(out[1:], late.sample(x, context, (0.2,)))
    assert find_patch(first).features.rules == (attention_settings(mode="local", end_percent=0.5),)
    assert len(both.wrappers["apply_model"]["foveate"]) == 1


def test_two_nodes_in_the_same_steps_are_refused():
    model = install(_model("flux"), attention_settings(end_percent=0.5))
    with pytest.raises(ValueError, match="already has a Foveate Attention node .* bypass one"):
        install(model, attention_settings(start_percent=0.4))


def test_steps_begin_and_end():
    model, (x, context) = _model("flux"), _inputs("flux")
    ours = install(model, attention_settings(start_percent=0.25, end_percent=0.5))
    sigmas = (1.0, 0.76, 0.75, 0.51, 0.5, 0.1)
    same = [
        torch.equal(a, b)
        for a, b in zip(
            ours.sample(x, context, sigmas), model.sample(x, context, sigmas), strict=True
        )
    ]
    assert same == [True, True, False, False, True, True]
    assert "2/6" in _report(ours)
    assert "outside the steps (4x)" in _report(ours)


def test_layers_and_small_calls_are_left_alone():
    model, (x, context) = _model("unet"), _inputs("unet")
    ours = install(model, attention_settings(dense_layers="0", min_tokens=200))
    assert torch.equal(ours.sample(x, context), model.sample(x, context))
    rows = _report(ours).splitlines()
    assert any("input.0.0" in row and "in dense_layers" in row for row in rows)
    assert any("input.1.0" in row and "fewer than 200 tokens" in row for row in rows)


def test_a_named_layer_keeps_its_number_when_another_is_skipped():
    model, (x, context) = _model("unet"), _inputs("unet")
    ours = install(model, attention_settings(dense_layers="1"))
    both = ours.sample(x, context)
    recorder = find_patch(ours).recorder
    assert [recorder.layer(9, name).number for name in ("input.0.0", "input.1.0")] == [0, 1]
    assert both.isfinite().all()


def test_the_report_covers_the_last_sampling():
    model, (x, context) = _model("wan"), _inputs("wan")
    ours = install(model, attention_settings())
    assert "No attention call came by" in _report(ours)
    for _ in range(2):
        ours.sample(x, context, (0.9, 0.5, 0.2))
    assert _report(ours).splitlines() == [
        "local, radius 2, 0% to 100%",
        "Wan: ran in 2 of 2 layers, 3 forwards",
        "",
        "layer   block  ran  tokens  keys/query  of dense  left alone because",
        "0 to 1         3/3  585     98          16.7%",
        "",
        "6 calls of cross-attention, without operators.",
    ]


def test_reasons_are_logged_once_and_verbose_prints_the_report(caplog):
    model, (x, context) = _model("flux"), _inputs("flux")
    given = {"attention_mask": torch.ones(2, 1, 202, 202, dtype=torch.bool)}
    caplog.set_level(logging.INFO)
    install(model, attention_settings()).sample(x, context, (0.9, 0.5), **given)
    assert len(caplog.messages) == 1
    ours = install(model, attention_settings(verbose=True))
    ours.sample(x, context)
    assert caplog.messages[-1] == _report(ours)


def test_a_compiled_model_gives_the_same():
    torch._dynamo.reset()
    model, (x, context) = _model("flux"), _inputs("flux")
    ours = install(model, attention_settings())
    expected = ours.sample(x, context, (0.9, 0.5))
    model.model.diffusion_model = torch.compile(model.model.diffusion_model, backend="eager")
    torch.testing.assert_close(ours.sample(x, context, (0.9, 0.5)), expected, **FLOAT32)
    assert "Flux: ran in 2 of 2 layers, 2 forwards" in _report(ours)


def _qkv(shape, count=3):
    return [torch.randn(shape) for _ in range(count)]


@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize("skip_output_reshape", [False, True])
@pytest.mark.parametrize("skip_reshape", [False, True])
def test_calls_of_every_form_are_read(by_keyword, skip_output_reshape, skip_reshape):
    q, k, v = _qkv((2, 3, 5, 8) if skip_reshape else (2, 5, 24))
    given = {"skip_reshape": skip_reshape, "skip_output_reshape": skip_output_reshape}
    args = (q, k, v) if by_keyword else (q, k, v, 3, None, torch.float64)
    if by_keyword:
        given |= {"heads": 3, "mask": None, "attn_precision": torch.float64}
    call = read_call(*args, _inside_attn_wrapper=True, low_precision_attention=True, **given)
    assert call.unsupported is None
    wide = call.wide()
    assert {x.dtype for x in wide} == {torch.float64}
    ours = call.finish(torch.nn.functional.scaled_dot_product_attention(*wide))
    expected = stock(q, k, v, 3, None, None, skip_reshape, skip_output_reshape)
    assert ours.dtype == q.dtype
    torch.testing.assert_close(ours, expected, **FLOAT32)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"mask": torch.ones(5, 5)}, "mask"),
        ({"new_argument": 3}, "new_argument"),
        ({"new_argument": None}, None),
        ({"k": torch.randn(2, 5, 18), "v": torch.randn(2, 5, 18)}, "heads or in head size"),
        ({"v": torch.randn(2, 5, 24).double()}, "differ in type"),
    ],
)
def test_calls_that_no_operator_takes(given, reason):
    base = dict(zip("qkv", _qkv((2, 5, 24)), strict=True)) | {"heads": 3}
    unsupported = read_call(**base | given).unsupported
    assert unsupported is None if reason is None else reason in unsupported


def test_calls_that_cannot_be_read():
    assert "number of heads" in read_call(*_qkv((2, 5, 24)))
    assert "[B, H, N, D] was expected" in read_call(*_qkv((2, 5, 24)), 3, skip_reshape=True)


def test_dense_layers_are_numbers_and_runs():
    assert parse_layers("") == set()
    assert parse_layers(" 3, 0 - 1,47-49,") == {0, 1, 3, 47, 48, 49}


@pytest.mark.parametrize("text", ["a", "1-", "5-2", "-3", "1.5"])
def test_other_dense_layers_are_refused(text):
    with pytest.raises(ValueError, match="such as '0, 1, 47-49', got"):
        attention_settings(dense_layers=text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "blurry"}, "mode must be one of foveated, local"),
        ({"radius": 0}, "radius must be an integer >= 1, got 0"),
        ({"pool": 1}, "pool must be an integer >= 2, got 1"),
        ({"start_percent": 0.5, "end_percent": 0.5}, "start_percent must be less than"),
        ({"min_tokens": -1}, "min_tokens must be an integer >= 0"),
    ],
)
def test_other_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        attention_settings(**options)


@pytest.mark.parametrize("mode", MODES)
def test_modes_count_what_they_visit(mode):
    layout = TokenLayout(text=7, grid=(1, 24, 24))
    few, many = (
        MODES[mode].count_keys(layout, radius=r, pool=p, layer=0) for r, p in ((2, 4), (6, 2))
    )
    assert few.visited < many.visited <= layout.num_tokens
