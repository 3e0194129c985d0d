"""Local attention: oracle, limits, shapes, gradients, precision, refusals."""

import time

import pytest
import torch

from foveate.kernels import Segment, TokenLayout, local_attention, local_keys, proportional_scale
from oracles import FLOAT32, FLOAT64, dense, ellipsoid_mask, make_qkv

GRIDS = [(1, 13, 17), (1, 1, 37), (1, 37, 1), (1, 8, 40), (1, 40, 8), (3, 7, 9), (9, 4, 4)]


def clear_mask(layout, radius):
    """Visibility by CLEAR's formulas, one pair at a time."""
    _, height, width = layout.grid
    total = layout.num_tokens
    visible = torch.zeros(total, total, dtype=torch.bool)
    for i in range(total):
        for j in range(total):
            if i < layout.text or j < layout.text:
                visible[i, j] = True
                continue
            (yi, xi), (yj, xj) = (divmod(t - layout.text, width) for t in (i, j))
            visible[i, j] = (yi - yj) ** 2 + (xi - xj) ** 2 < radius**2
    return visible


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("radius", [1, 2, 5, 8])
def test_it_equals_the_oracle(grid, radius):
    layout = TokenLayout(text=7 if radius == 2 else 0, grid=grid, text_first=radius != 5)
    q, k, v = make_qkv(layout, batch=2)
    for one, other in zip(
        local_attention(q, k, v, layout=layout, radius=radius, return_lse=True),
        local_attention(q, k, v, layout=layout, radius=radius, impl="reference", return_lse=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other, **FLOAT64)


@pytest.mark.parametrize("text", [0, 7, 77, 512])
def test_float32_with_any_text_length(text):
    layout = TokenLayout(text=text, grid=(1, 24, 20))
    q, k, v = make_qkv(layout, dim=24, dtype=torch.float32)
    out = local_attention(q, k, v, layout=layout, radius=4, scale=0.2)
    expected = local_attention(q, k, v, layout=layout, radius=4, scale=0.2, impl="reference")
    torch.testing.assert_close(out, expected, **FLOAT32)


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_the_disc_is_clears(impl):
    layout = TokenLayout(text=3, grid=(1, 9, 7))
    q, k, v = make_qkv(layout)
    out = local_attention(q, k, v, layout=layout, radius=3, impl=impl)
    torch.testing.assert_close(out, dense(q, k, v, clear_mask(layout, 3)), **FLOAT64)


def test_discs_hold_clears_number_of_tokens():
    offsets = [(y, x) for y in range(-32, 33) for x in range(-32, 33)]
    for radius, tokens in ((8, 193), (16, 793), (32, 3205)):
        assert sum(y * y + x * x < radius**2 for y, x in offsets) == tokens
    layout = TokenLayout(grid=(1, 64, 64))
    assert [round(local_keys(layout, r).needed) for r in (8, 16, 32)] == [173, 634, 1974]


def test_counts_include_the_context_and_bound_the_work():
    layout = TokenLayout(text=77, grid=(1, 64, 64))
    needed, visited = local_keys(layout, 8)
    assert needed == 77 + local_keys(TokenLayout(grid=(1, 64, 64)), 8).needed
    assert needed <= visited < 77 + 400


def test_extra_segments_are_global():
    layout = TokenLayout(text=2, grid=(1, 9, 11), extra=(Segment(4),))
    q, k, v = make_qkv(layout)
    out = local_attention(q, k, v, layout=layout, radius=3)
    expected = local_attention(q, k, v, layout=layout, radius=3, impl="reference")
    torch.testing.assert_close(out, expected, **FLOAT64)
    rows = layout.context_of(dense(q, k, v))
    torch.testing.assert_close(layout.context_of(out), rows, **FLOAT64)


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_a_window_over_the_grid_is_dense(impl):
    layout = TokenLayout(text=3, grid=(1, 11, 6))
    q, k, v = make_qkv(layout)
    out = local_attention(q, k, v, layout=layout, radius=16, impl=impl)
    torch.testing.assert_close(out, dense(q, k, v), **FLOAT64)
    almost = local_attention(q, k, v, layout=layout, radius=11, impl=impl)
    assert not torch.allclose(almost, out)


def test_a_batch_is_its_rows_and_sizes_may_alternate():
    first, second = TokenLayout(text=2, grid=(1, 19, 21)), TokenLayout(grid=(1, 12, 30))
    q, k, v = make_qkv(first, batch=2)
    before = local_attention(q, k, v, layout=first, radius=4)
    local_attention(*make_qkv(second), layout=second, radius=4)
    assert torch.equal(local_attention(q, k, v, layout=first, radius=4), before)
    one = local_attention(q[1:], k[1:], v[1:], layout=first, radius=4)
    torch.testing.assert_close(before[1:], one, **FLOAT64)


def test_strided_input_gives_the_same():
    layout = TokenLayout(text=2, grid=(1, 19, 21))
    q, k, v = make_qkv(layout, batch=2)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    out = local_attention(*strided, layout=layout, radius=4)
    torch.testing.assert_close(out, local_attention(q, k, v, layout=layout, radius=4), **FLOAT64)


def test_gradients_equal_the_oracles():
    layout = TokenLayout(text=5, grid=(1, 17, 20))
    qkv = make_qkv(layout, requires_grad=True)
    weight = torch.randn(1, 2, layout.num_tokens, 16, dtype=torch.float64)
    grads = [
        torch.autograd.grad(
            (local_attention(*qkv, layout=layout, radius=3, impl=impl) * weight).sum(), qkv
        )
        for impl in ("torch", "reference")
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, **FLOAT64)


def test_gradcheck_through_out_and_lse():
    layout = TokenLayout(text=1, grid=(1, 9, 3))
    qkv = make_qkv(layout, heads=1, dim=2, requires_grad=True)

    def attend(q, k, v):
        return local_attention(q, k, v, layout=layout, radius=2, return_lse=True)

    assert torch.autograd.gradcheck(attend, qkv)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_errs_no_more_than_plain_torch(dtype):
    layout = TokenLayout(text=7, grid=(1, 20, 24))
    q, k, v = make_qkv(layout, dim=64, dtype=torch.float32)
    low = [x.to(dtype) for x in (q, k, v)]
    truth = dense(*(x.double() for x in low), clear_mask(layout, 5))
    out = local_attention(*low, layout=layout, radius=5)
    assert out.dtype == dtype
    plain = dense(*low, clear_mask(layout, 5))
    error, allowed = ((x.double() - truth).square().mean().sqrt() for x in (out, plain))
    assert error <= 2 * allowed


def test_it_compiles_into_one_graph():
    layout = TokenLayout(text=2, grid=(1, 17, 9))
    q, k, v = make_qkv(layout, dtype=torch.float32)

    def attend(q, k, v):
        return local_attention(q, k, v, layout=layout, radius=2)

    compiled = torch.compile(attend, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(q, k, v), attend(q, k, v))


def test_clears_scale_counts_ten_times_the_tokens_when_pooled():
    factors = [proportional_scale(128, n * n // 256 + 512) * 128**0.5 for n in (1024, 2048, 4096)]
    assert [round(f, 3) for f in factors] == [1.0, 1.074, 1.147]
    pooled = proportional_scale(128, 4608, pooled=True) * 128**0.5
    assert round(pooled, 3) == 1.128


@pytest.mark.parametrize("grid", [(1, 13, 17), (1, 1, 37), (3, 7, 9)], ids=str)
def test_each_head_may_have_its_radius(grid):
    """Multi-scale windows: every head is local attention of its own radius."""
    layout = TokenLayout(text=7, grid=grid)
    q, k, v = make_qkv(layout, heads=5, batch=2)
    radii = (4, 1, 64, 4, 2)
    out = local_attention(q, k, v, layout=layout, radius=radii)
    for h, radius in enumerate(radii):
        head = (x[:, h : h + 1] for x in (q, k, v))
        want = local_attention(*head, layout=layout, radius=radius, impl="reference")
        torch.testing.assert_close(out[:, h : h + 1], want, **FLOAT64)
    whole = local_attention(q, k, v, layout=layout, radius=radii, impl="reference")
    torch.testing.assert_close(out, whole, **FLOAT64)
    each = [local_keys(layout, radius).needed for radius in radii]
    assert local_keys(layout, radii).needed == pytest.approx(sum(each) / 5)


def test_a_radius_for_other_heads_is_refused():
    layout = TokenLayout(grid=(1, 4, 4))
    with pytest.raises(ValueError, match="one for each of 2 heads, got .4, 2, 1."):
        local_attention(*make_qkv(layout), layout=layout, radius=(4, 2, 1))
    with pytest.raises(ValueError, match="radius must be an integer >= 1, got 0"):
        local_attention(*make_qkv(layout), layout=layout, radius=[4, 0])


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize(
    ("grid", "radius", "frames_radius"),
    [
        ((3, 7, 9), 4, 3),
        ((9, 4, 4), 2, 7),  # frames are the longest axis
        ((5, 1, 12), 10, 5),  # 3 frames and 8 tokens away is on the border: outside
        ((4, 6, 1), 3, 2),
        ((6, 1, 1), 1, 4),
    ],
    ids=str,
)
def test_an_ellipsoid_equals_exact_fractions(impl, grid, radius, frames_radius):
    layout = TokenLayout(text=3, grid=grid)
    qkv = make_qkv(layout, requires_grad=True)
    mask = ellipsoid_mask(layout, radius, frames_radius)
    out = local_attention(
        *qkv, layout=layout, radius=radius, frames_radius=frames_radius, impl=impl
    )
    want = dense(*qkv, mask)
    torch.testing.assert_close(out, want, **FLOAT64)
    weight = torch.randn_like(out)
    grads = [torch.autograd.grad((x * weight).sum(), qkv) for x in (out, want)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, **FLOAT64)
    keys = local_keys(layout, radius, frames_radius)
    needed = mask[layout.grid_slice].sum() / layout.num_grid
    assert keys.needed == pytest.approx(needed.item())
    assert keys.needed <= keys.visited <= layout.num_tokens


def test_an_ellipsoid_between_its_limits():
    layout = TokenLayout(text=2, grid=(4, 6, 5))
    q, k, v = make_qkv(layout)

    def attend(radius, frames_radius):
        return local_attention(q, k, v, layout=layout, radius=radius, frames_radius=frames_radius)

    assert torch.equal(attend(3, 3), attend(3, None))
    torch.testing.assert_close(attend(9, 50), dense(q, k, v), **FLOAT64)
    # one frame: its own disc
    of_one_frame = TokenLayout(text=2, grid=(1, 6, 5))
    own = [torch.cat((x[:, :, :2], x[:, :, 32:62]), 2) for x in (q, k, v)]
    disc = local_attention(*own, layout=of_one_frame, radius=3)
    torch.testing.assert_close(attend(3, 1)[:, :, 32:62], disc[:, :, 2:], **FLOAT64)
    with_frames = local_attention(*own, layout=of_one_frame, radius=3, frames_radius=7)
    torch.testing.assert_close(with_frames, disc, **FLOAT64)


def test_each_head_may_have_its_ellipsoid():
    layout = TokenLayout(text=3, grid=(4, 5, 6))
    q, k, v = make_qkv(layout, heads=3)
    radii = (4, 2, 4)
    mask = torch.stack([ellipsoid_mask(layout, radius, 2) for radius in radii])
    for impl in ("torch", "reference"):
        out = local_attention(q, k, v, layout=layout, radius=radii, frames_radius=2, impl=impl)
        torch.testing.assert_close(out, dense(q, k, v, mask), **FLOAT64)
    each = [local_keys(layout, radius, 2).needed for radius in radii]
    assert local_keys(layout, radii, 2).needed == pytest.approx(sum(each) / 3)


@pytest.mark.parametrize("frames_radius", [0, -1, 1.5, True])
def test_a_bad_frames_radius_is_refused(frames_radius):
    layout = TokenLayout(grid=(2, 3, 3))
    with pytest.raises(ValueError, match="frames_radius must be an integer >= 1"):
        local_attention(*make_qkv(layout), layout=layout, frames_radius=frames_radius)
    with pytest.raises(ValueError, match="frames_radius must be an integer >= 1"):
        local_keys(layout, 2, frames_radius)


def test_radii_whose_product_passes_int32_are_refused():
    layout = TokenLayout(grid=(2, 3, 3))
    qkv = make_qkv(layout)
    options = {"layout": layout, "radius": (5, 7)}
    with pytest.raises(ValueError, match=r"at most 46340, got 46347"):
        local_attention(*qkv, **options, frames_radius=6621)
    out = local_attention(*qkv, **options, frames_radius=6620)
    torch.testing.assert_close(out, dense(*qkv), **FLOAT64)


@pytest.mark.parametrize("radius", [0, -1, 2.5, True])
def test_a_bad_radius_is_refused(radius):
    layout = TokenLayout(grid=(1, 4, 4))
    with pytest.raises(ValueError, match="radius must be an integer >= 1"):
        local_attention(*make_qkv(layout), layout=layout, radius=radius)


def test_a_layout_of_another_size_is_refused():
    qkv = make_qkv(TokenLayout(grid=(1, 4, 4)))
    with pytest.raises(ValueError, match="16 tokens, but .* holds 20"):
        local_attention(*qkv, layout=TokenLayout(grid=(1, 4, 5)), radius=2)


def test_a_named_impl_runs_or_raises():
    layout = TokenLayout(grid=(1, 4, 4))
    with pytest.raises(NotImplementedError, match="impl='triton': torch.float64"):
        local_attention(*make_qkv(layout), layout=layout, impl="triton")
    with pytest.raises(ValueError, match="impl must be"):
        local_attention(*make_qkv(layout), layout=layout, impl="cuda")


def test_counts_for_every_layer_of_a_video_take_no_time():
    layout, radii = TokenLayout(text=300, grid=(21, 45, 80)), tuple(range(4, 28))
    start = time.perf_counter()
    for _ in range(40):
        local_keys(layout, radii)
    assert time.perf_counter() - start < 10  # a minute, when each was counted by itself
