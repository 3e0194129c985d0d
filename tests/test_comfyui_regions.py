"""Foveate Regions on doubles of ComfyUI's models, against a softmax with a matrix of weights."""

import pytest
import torch

from comfyui_double import (
    SD3,
    SLOT,
    Base,
    Flux,
    Patcher,
    UNet,
    Wan,
    attention_settings,
)
from foveate.comfyui.patch import find_patch, install
from foveate.comfyui.regions import KEY, RegionCond, RegionPrompts, add_region, find_prompts
from foveate.kernels import TokenLayout
from oracles import FLOAT64

FAMILIES = {"flux": Flux, "sd3": SD3, "unet": UNet, "wan": Wan}
each_family = pytest.mark.parametrize("family", FAMILIES)
HEIGHT, WIDTH = 20, 16  # of the latent
LENGTHS = (7, 5, 9)


def _masks(kind):
    """Two regions, in units of 4 x 4 pixels of the latent so that every grid has them exactly."""
    one, two = torch.zeros(5, 4), torch.zeros(5, 4)
    one[:3, :2] = 1
    two[1:5, 2:] = 1
    if kind == "soft":
        one, two = one * 0.6, two * 0.3
    if kind == "overlap":
        one[1:3, 2:] = 1
    return tuple(mask.repeat_interleave(8, 0).repeat_interleave(8, 1) for mask in (one, two))


def _weights(kind, height, width):
    """Weights of base and regions by their definition, on a grid of this size."""
    masks = torch.stack([m[:: 40 // height, :: 32 // width] for m in _masks(kind)]).double()
    total = masks.sum(0)
    weights = torch.cat([(1 - total).clamp(min=0)[None], masks / total.clamp(min=1)])
    return weights.flatten(1)


def _model(family):
    return Patcher(Base(FAMILIES[family]()))


def _latent(family):
    size = (HEIGHT, WIDTH)
    return torch.randn(2, 4, *((3,) if family == "wan" else ()), *size).double()


def _prompts(kind="hard"):
    return RegionPrompts(LENGTHS, _masks(kind))


def _bias(kind, grid, extra, text=True, radius=None):
    """[N, N] of a joint sequence, or [pixels, T] where there is no text in it: log weights."""
    frames, height, width = grid
    weights = _weights(kind, height, width).repeat(1, frames)
    pixels = weights.shape[1]
    of_token = torch.cat([torch.full((n,), i) for i, n in enumerate(LENGTHS)])
    start, total = len(of_token), len(of_token) + pixels + extra
    bias = torch.zeros(total, total).double()
    image = slice(start, start + pixels)
    bias[image, :start] = weights[of_token].T.log()
    bias[:start, image] = weights[of_token].log()
    bias[:start, :start][of_token[:, None] != of_token] = -torch.inf
    if radius is not None:
        where = torch.cartesian_prod(*(torch.arange(n).double() for n in grid)).reshape(-1, 3)
        bias[image, image][torch.cdist(where, where) >= radius - 1e-4] = -torch.inf
    return bias


def _oracle(family, kind, extra=0, radius=None):
    """An override that is regions in float64 with a full matrix, written without the package."""

    def override(func, q, k, v, heads, *args, **kwargs):
        options = kwargs["transformer_options"]
        split = (
            (q, k, v)
            if kwargs.get("skip_reshape")
            else (x.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        )
        qs, ks, vs = split
        scores = qs @ ks.mT * qs.shape[-1] ** -0.5
        total = sum(LENGTHS)
        if ks.shape[2] == total and qs.shape[2] != total:
            size = (
                (HEIGHT // 2, WIDTH // 2) if family == "wan" else options["activations_shape"][2:]
            )
            weights = _weights(kind, *size).repeat(1, 3 if family == "wan" else 1)
            parts = zip(scores.split(LENGTHS, -1), vs.split(LENGTHS, 2), weights, strict=True)
            out = sum(s.softmax(-1) @ v * w[:, None] for s, v, w in parts)
        elif qs.shape[2] == total + (HEIGHT // 2) * (WIDTH // 2) + extra:
            grid = (1, HEIGHT // 2, WIDTH // 2)
            out = (scores + _bias(kind, grid, extra, radius=radius)).softmax(-1) @ vs
        else:
            return func(q, k, v, heads, *args, **kwargs)
        return out.transpose(1, 2).flatten(2)

    return override


@each_family
@pytest.mark.parametrize("kind", ["hard", "soft", "overlap"])
def test_equals_a_matrix_of_weights(family, kind):
    model, x = _model(family), _latent(family)
    context = torch.randn(2, sum(LENGTHS), 16).double()
    ours = install(model, None).sample(x, context, **{KEY: _prompts(kind)})
    masked = Patcher(model.model, options={SLOT: _oracle(family, kind)})
    torch.testing.assert_close(ours, masked.sample(x, context), **FLOAT64)
    assert not torch.allclose(ours, model.sample(x, context))


def test_references_see_everything():
    model, x = _model("flux"), _latent("flux")
    context = torch.randn(2, sum(LENGTHS), 16).double()
    given = {"ref_latents": [torch.randn(2, 4, 6, 8).double()]}
    ours = install(model, None).sample(x, context, **given, **{KEY: _prompts()})
    override = _oracle("flux", "hard", extra=12)
    masked = Patcher(model.model, options={SLOT: override})
    torch.testing.assert_close(ours, masked.sample(x, context, **given), **FLOAT64)


@each_family
def test_one_region_everywhere_is_its_prompt_alone(family):
    model, x = _model(family), _latent(family)
    base, own = torch.randn(2, 7, 16).double(), torch.randn(2, 5, 16).double()
    prompts = RegionPrompts((7, 5), (torch.ones(3, 3),))
    ours = install(model, None).sample(x, torch.cat([base, own], 1), **{KEY: prompts})
    torch.testing.assert_close(ours, model.sample(x, own), **FLOAT64)


@pytest.mark.parametrize("family", ["unet", "wan"])
def test_the_same_prompt_everywhere_changes_nothing(family):
    model, x = _model(family), _latent(family)
    base = torch.randn(2, 7, 16).double()
    prompts = RegionPrompts((7, 7, 7), _masks("overlap"))
    ours = install(model, None).sample(x, base.repeat(1, 3, 1), **{KEY: prompts})
    torch.testing.assert_close(ours, model.sample(x, base), **FLOAT64)


def test_weights_sum_to_one_on_any_grid():
    prompts = RegionPrompts(LENGTHS, (torch.rand(13, 7), torch.rand(29, 31)))
    for grid in ((1, 5, 7), (2, 1, 11), (1, 40, 40)):
        weights = prompts.weights(TokenLayout(grid=grid))
        assert weights.shape == (3, grid[0] * grid[1] * grid[2])
        torch.testing.assert_close(weights.sum(0), torch.ones(weights.shape[1]))
        assert (weights >= 0).all()


def test_joins_with_an_operator_in_either_order():
    model, x = _model("flux"), _latent("flux")
    context = torch.randn(2, sum(LENGTHS), 16).double()
    one = install(install(model, attention_settings()), None)
    two = install(install(model, None), attention_settings())
    ours = [each.sample(x, context, **{KEY: _prompts()}) for each in (one, two)]
    masked = Patcher(model.model, options={SLOT: _oracle("flux", "hard", radius=2)})
    torch.testing.assert_close(ours[0], masked.sample(x, context), **FLOAT64)
    assert torch.equal(*ours)
    assert "ran in 2 of 2 layers" in find_patch(one).report()


def test_agents_leave_a_joint_layer_to_regions():
    model, x = _model("flux"), _latent("flux")
    context = torch.randn(2, sum(LENGTHS), 16).double()
    both = install(install(model, None), attention_settings(mode="agent"))
    alone = install(model, None).sample(x, context, **{KEY: _prompts()})
    assert torch.equal(both.sample(x, context, **{KEY: _prompts()}), alone)
    assert "agent cannot be joined with regions" in find_patch(both).report()


@each_family
def test_half_precision(family):
    model, x = _model(family), _latent(family)
    context = torch.randn(2, sum(LENGTHS), 16).double()
    expected = install(model, None).sample(x, context, **{KEY: _prompts("soft")})
    exact = model.sample(x, context)
    net = model.model.diffusion_model
    net.weight = net.weight.bfloat16()
    with torch.inference_mode():
        ours, plain = (
            each.sample(x.bfloat16(), context.bfloat16(), **given)
            for each, given in ((install(model, None), {KEY: _prompts("soft")}), (model, {}))
        )
    assert ours.dtype == torch.bfloat16
    assert (ours - expected).norm() <= 2 * (plain - exact).norm()


def test_a_prompt_without_regions_is_left_alone():
    model, x = _model("unet"), _latent("unet")
    context = torch.randn(2, 7, 16).double()
    assert torch.equal(install(model, None).sample(x, context), model.sample(x, context))


def test_other_lengths_are_left_alone_and_named():
    model, x = _model("flux"), _latent("flux")
    context = torch.randn(2, 20, 16).double()
    ours = install(model, None)
    out = ours.sample(x, context, **{KEY: _prompts()})
    assert torch.equal(out, model.sample(x, context))
    report = find_patch(ours).report()
    assert "20 tokens of text are not the 7 + 5 + 9 of the base prompt" in report


def _conditioning(length, channels=16, **extra):
    return [[torch.randn(1, length, channels), extra]]


def test_conditionings_are_joined():
    base, one, two = (_conditioning(n, pooled_output=n) for n in LENGTHS)
    masks = _masks("hard")
    given = add_region(add_region(base, one, masks[0][None]), two, masks[1])
    ((text, extra),) = given
    assert torch.equal(text, torch.cat([base[0][0], one[0][0], two[0][0]], 1))
    assert extra["pooled_output"] == 7
    prompts = find_prompts(extra)
    assert prompts.lengths == LENGTHS
    assert all(map(torch.equal, prompts.masks, masks))
    assert base[0][1] == {"pooled_output": 7}


def test_the_prompts_travel_as_a_condition():
    prompts, other = _prompts(), _prompts()
    cond = RegionCond(prompts).process_cond(batch_size=2, area=None)
    assert cond.cond is prompts
    assert cond.concat([cond]) is prompts
    assert cond.can_concat(RegionCond(prompts))
    assert not cond.can_concat(RegionCond(other))
    with pytest.raises(ValueError, match="remove Conditioning .Set Area"):
        cond.process_cond(batch_size=2, area=(4, 4, 0, 0))


def test_a_model_that_does_not_know_them_is_refused():
    with pytest.raises(ValueError, match="connect the model that Foveate Regions gives"):
        hasattr(_prompts(), "dtype")


@pytest.mark.parametrize(
    ("base", "region", "mask", "message"),
    [
        (_conditioning(7) * 2, _conditioning(5), torch.ones(4, 4), "must be one prompt, got 2"),
        (_conditioning(7), _conditioning(5, 8), torch.ones(4, 4), "come from the same CLIP"),
        (_conditioning(7, attention_mask=1), _conditioning(5), torch.ones(4, 4), "hides tokens"),
        (_conditioning(7), _conditioning(5, mask=1), torch.ones(4, 4), "give the mask to this"),
        (_conditioning(7), _conditioning(5), torch.zeros(4, 4), "mask is empty"),
        (_conditioning(7), _conditioning(5), torch.ones(2, 4, 4), r"must be one mask \[h, w\]"),
        (_conditioning(7), _conditioning(5), torch.full((4, 4), 2.0), r"values in 0\.\.1"),
        (
            _conditioning(7),
            add_region(_conditioning(5), _conditioning(5), torch.ones(2, 2)),
            torch.ones(4, 4),
            "has regions of its own",
        ),
    ],
)
def test_what_cannot_be_a_region_is_refused(base, region, mask, message):
    with pytest.raises(ValueError, match=message):
        add_region(base, region, mask)
