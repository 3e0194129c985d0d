"""Foveated attention: oracle, partition, limits, CLEAR's pooled variant, refusals."""

import pytest
import torch

from foveate.kernels import TokenLayout, foveated_attention, foveated_keys
from foveate.kernels.field import Field
from oracles import FLOAT32, FLOAT64, dense, make_qkv

GRIDS = [(1, 13, 17), (1, 1, 37), (1, 8, 40), (3, 7, 9), (1, 34, 35)]
FIELDS = [(1, 2, 1), (2, 4, 1), (8, 4, 1), (3, 3, 2), (1, 2, 3), (1, 4, 2)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("field", FIELDS, ids=str)
def test_it_equals_the_oracle(grid, field):
    radius, pool, levels = field
    layout = TokenLayout(text=5 if radius == 1 else 0, grid=grid, text_first=levels != 2)
    q, k, v = make_qkv(layout, batch=2)
    options = {"layout": layout, "radius": radius, "pool": pool, "levels": levels}
    for one, other in zip(
        foveated_attention(q, k, v, **options, return_lse=True),
        foveated_attention(q, k, v, **options, return_lse=True, impl="reference"),
        strict=True,
    ):
        torch.testing.assert_close(one, other, **FLOAT64)


@pytest.mark.parametrize("mass", [False, True])
@pytest.mark.parametrize("partition", [False, True])
def test_options_equal_the_oracle_in_float32(mass, partition):
    layout = TokenLayout(text=7, grid=(1, 21, 30))
    q, k, v = make_qkv(layout, dim=24, dtype=torch.float32)
    options = {"layout": layout, "radius": 3, "mass": mass, "partition": partition}
    out = foveated_attention(q, k, v, **options)
    expected = foveated_attention(q, k, v, **options, impl="reference")
    torch.testing.assert_close(out, expected, **FLOAT32)


@pytest.mark.parametrize("field", FIELDS, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_key_is_counted_once(grid, field):
    radius, pool, levels = field
    layout = TokenLayout(text=2, grid=grid)
    q, k, v = make_qkv(layout)
    k = torch.zeros_like(k)
    out, lse = foveated_attention(
        q, k, v, layout=layout, radius=radius, pool=pool, levels=levels, return_lse=True
    )
    torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(out), **FLOAT64)
    torch.testing.assert_close(lse.exp(), torch.full_like(lse, layout.num_tokens), **FLOAT64)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("levels", [1, 2])
def test_a_field_over_the_grid_is_dense(impl, levels):
    layout = TokenLayout(text=3, grid=(1, 11, 14))
    q, k, v = make_qkv(layout)
    out = foveated_attention(q, k, v, layout=layout, radius=18, levels=levels, impl=impl)
    torch.testing.assert_close(out, dense(q, k, v), **FLOAT64)


def test_every_key_within_the_radius_is_exact():
    layout = TokenLayout(grid=(1, 20, 20))
    field = Field(layout.grid, radius=5, pool=4, levels=1)
    where = layout.coords()
    axes = [where[:, axis].unique() for axis in (1, 0, 2)]
    visible = field.visible(0, axes, axes)
    distance = (where[:, None] - where).square().sum(-1)
    assert visible[distance < 25].all()
    assert not visible.all()


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("shape", [(4, 4), (1, 1, 1, 4, 1, 4, 1)], ids=str)
def test_clears_pooled_variant(impl, shape):
    height, width, text, radius = 8, 12, 3, 3
    layout = TokenLayout(text=text, grid=(1, height, width))
    q, k, v = make_qkv(layout)
    weight = torch.randn(shape, dtype=torch.float64)

    def pooled(x):
        cells = x[:, :, text:].view(1, 2, height // 4, 4, width // 4, 4, 16)
        return (cells * weight.view(1, 1, 1, 4, 1, 4, 1)).sum((3, 5)).flatten(2, 3)

    y, x = (
        axis.flatten()
        for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    disc = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2 < radius**2
    visible = torch.ones(layout.num_tokens, layout.num_tokens + 6, dtype=torch.bool)
    visible[text:, text:-6] = disc
    visible[:text, -6:] = False
    keys, values = (torch.cat((x, pooled(x)), 2) for x in (k, v))
    options = {"mass": False, "partition": False, "pool_weight": weight, "impl": impl}
    out = foveated_attention(q, k, v, layout=layout, radius=radius, **options)
    torch.testing.assert_close(out, dense(q, keys, values, visible), **FLOAT64)


def test_smooth_far_fields_are_kept_where_a_disc_loses_them():
    layout = TokenLayout(grid=(1, 32, 32))
    where = layout.coords()[:, 1:].double() / 32
    wave = torch.cat((where.sin(), where.cos(), (2 * where).sin(), (2 * where).cos()), 1)
    q, k, v = (wave @ torch.randn(8, 16, dtype=torch.float64) for _ in range(3))
    q, k, v = (x[None, None] for x in (q, k, v))
    truth = dense(q, k, v)
    errors = [
        (foveated_attention(q, k, v, layout=layout, radius=4, mass=mass) - truth).norm()
        for mass in (True, False)
    ]
    assert errors[0] < 0.05 * truth.norm()
    assert errors[0] < 0.2 * errors[1]


def test_gradients_equal_the_oracles():
    layout = TokenLayout(text=3, grid=(1, 13, 17))
    qkv = make_qkv(layout, requires_grad=True)
    weight = torch.randn(1, 2, layout.num_tokens, 16, dtype=torch.float64)
    options = {"layout": layout, "radius": 1, "pool": 2, "levels": 2}
    grads = [
        torch.autograd.grad((foveated_attention(*qkv, **options, impl=i) * weight).sum(), qkv)
        for i in ("torch", "reference")
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, **FLOAT64)


def test_gradcheck_with_a_learned_pooling_weight():
    layout = TokenLayout(text=1, grid=(1, 4, 6))
    qkv = make_qkv(layout, heads=1, dim=2, requires_grad=True)
    weight = torch.rand(2, 2, dtype=torch.float64, requires_grad=True)

    def attend(q, k, v, weight):
        return foveated_attention(q, k, v, layout=layout, radius=1, pool=2, pool_weight=weight)

    assert torch.autograd.gradcheck(attend, (*qkv, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_errs_no_more_than_plain_torch(dtype):
    layout = TokenLayout(text=7, grid=(1, 24, 24))
    low = [x.to(dtype) for x in make_qkv(layout, dim=64, dtype=torch.float32)]
    wide = [x.double() for x in low]
    truth = foveated_attention(*wide, layout=layout, radius=4)
    out = foveated_attention(*low, layout=layout, radius=4)
    error = (out.double() - truth).square().mean().sqrt()
    allowed = (dense(*low).double() - dense(*wide)).square().mean().sqrt()
    scale = truth.square().mean().sqrt() / dense(*wide).square().mean().sqrt()
    assert error <= 2 * allowed * scale


def test_it_compiles_into_one_graph():
    layout = TokenLayout(text=2, grid=(1, 17, 9))
    q, k, v = make_qkv(layout, dtype=torch.float32)

    def attend(q, k, v):
        return foveated_attention(q, k, v, layout=layout, radius=2)

    compiled = torch.compile(attend, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(q, k, v), attend(q, k, v))


def test_counts_are_those_of_the_fields():
    layout = TokenLayout(text=7, grid=(1, 21, 30))
    field = Field(layout.grid, radius=3, pool=2, levels=2)
    needed = 0
    for level in range(field.used_levels + 1):
        tokens = [torch.arange(size) for size in field.sizes]
        cells = [
            torch.arange(0, size, side)
            for size, side in zip(field.sizes, field.cell(level), strict=True)
        ]
        needed += field.visible(level, tokens, cells).sum().item() / layout.num_grid
    counted = foveated_keys(layout, radius=3, pool=2, levels=2)
    assert counted.needed == pytest.approx(7 + needed)
    assert counted.visited >= counted.needed


def test_two_levels_compare_fewer_keys_on_a_large_grid():
    layout = TokenLayout(grid=(1, 256, 256))
    one, two = (foveated_keys(layout, radius=8, levels=levels).visited for levels in (1, 2))
    assert two < one / 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 0}, "radius must be"),
        ({"pool": 1}, "pool must be an integer >= 2"),
        ({"levels": 0}, "levels must be"),
        ({"levels": 2, "partition": False}, "partition=False takes levels=1"),
        ({"levels": 2, "pool_weight": torch.ones(4, 4)}, "pool_weight takes levels=1"),
        ({"pool_weight": torch.ones(3, 3)}, "for pool=4, got"),
        ({"pool_weight": torch.ones(4, 4)}, "divisible by pool=4"),
        ({"impl": "fast"}, "impl must be"),
    ],
)
def test_bad_options_are_refused(options, message):
    layout = TokenLayout(grid=(1, 8, 9))
    with pytest.raises(ValueError, match=message):
        foveated_attention(*make_qkv(layout), layout=layout, **options)
