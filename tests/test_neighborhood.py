"""Neighbourhood attention: oracles, limits, borders, dilation, causal axes, refusals."""

import pytest
import torch

from foveate.kernels import Segment, TokenLayout, neighborhood_attention, neighborhood_keys
from oracles import FLOAT32, FLOAT64, dense, make_qkv

CASES = [
    # grid, kernel_size, dilation, is_causal: 1-, 2- and 3-D, odd and even, gaps, looking back
    ((1, 1, 37), (1, 1, 5), (1, 1, 1), (False, False, False)),
    ((1, 37, 1), (1, 4, 1), (1, 3, 1), (False, False, False)),
    ((1, 13, 17), (1, 7, 7), (1, 1, 1), (False, False, False)),
    ((1, 17, 13), (1, 3, 6), (1, 2, 3), (False, False, False)),
    ((1, 8, 40), (1, 5, 9), (1, 4, 5), (False, False, False)),
    ((5, 7, 9), (3, 3, 5), (1, 1, 1), (True, False, False)),
    ((9, 4, 5), (4, 2, 3), (2, 1, 2), (True, False, True)),
    ((2, 3, 5), (7, 7, 7), (1, 2, 9), (False, False, False)),
]


def options_of(case):
    return dict(zip(("kernel_size", "dilation", "is_causal"), case[1:], strict=True))


def visible_keys(layout, **options):
    """Which keys have a probability: one-hot values show it."""
    total = layout.num_tokens
    zeros, values = torch.zeros(1, 1, total, total), torch.eye(total)[None, None]
    out = neighborhood_attention(zeros, zeros, values, layout=layout, impl="reference", **options)
    return out[0, 0] != 0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_equals_the_oracle(case):
    layout = TokenLayout(text=7 if case[0][0] == 1 else 0, grid=case[0], text_first=False)
    q, k, v = make_qkv(layout, batch=2)
    for one, other in zip(
        *(
            neighborhood_attention(
                q, k, v, layout=layout, impl=impl, return_lse=True, **options_of(case)
            )
            for impl in ("torch", "reference")
        ),
        strict=True,
    ):
        torch.testing.assert_close(one, other, **FLOAT64)


def test_borders_move_the_box_inward():
    """NATTEN's rule, one token at a time: the whole box stays on the grid."""
    layout = TokenLayout(grid=(1, 6, 9))
    visible = torch.zeros(54, 54, dtype=torch.bool)
    for i in range(54):
        top = min(max(i // 9 - 1, 0), 3)
        left = min(max(i % 9 - 2, 0), 5)
        for y in range(top, top + 3):
            visible[i, y * 9 + left : y * 9 + left + 4] = True
    q, k, v = make_qkv(layout)
    for impl in ("torch", "reference"):
        out = neighborhood_attention(q, k, v, layout=layout, kernel_size=(1, 3, 4), impl=impl)
        torch.testing.assert_close(out, dense(q, k, v, visible), **FLOAT64)


@pytest.mark.parametrize("kernel_size", [(1, 5, 7), (1, 4, 3), (1, 9, 23), (1, 12, 2)], ids=str)
@pytest.mark.parametrize("causal", [(False, False), (True, False), (False, True)], ids=str)
def test_it_equals_comfy_kitchen(kernel_size, causal):
    kitchen = pytest.importorskip("comfy_kitchen", reason="comfy-kitchen is not installed")
    layout = TokenLayout(grid=(1, 13, 23))
    q, k, v = make_qkv(layout, dtype=torch.float32)
    theirs = (x.transpose(1, 2).unflatten(1, (13, 23)) for x in (q, k, v))
    want = kitchen.na2d(*theirs, list(kernel_size[1:]), list(causal))
    out = neighborhood_attention(
        q, k, v, layout=layout, kernel_size=kernel_size, is_causal=(False, *causal)
    )
    torch.testing.assert_close(out, want.flatten(1, 2).transpose(1, 2), **FLOAT32)


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_a_box_over_the_grid_is_dense(impl):
    layout = TokenLayout(text=3, grid=(1, 11, 6))
    q, k, v = make_qkv(layout)
    out = neighborhood_attention(q, k, v, layout=layout, kernel_size=(1, 11, 8), impl=impl)
    torch.testing.assert_close(out, dense(q, k, v), **FLOAT64)
    less = neighborhood_attention(q, k, v, layout=layout, kernel_size=(1, 10, 8), impl=impl)
    assert not torch.allclose(less, out)


def test_a_causal_axis_sees_nothing_later():
    layout = TokenLayout(grid=(4, 3, 5))
    q, k, v = make_qkv(layout)
    options = {"layout": layout, "kernel_size": (4, 3, 3), "is_causal": (True, False, False)}
    out = neighborhood_attention(q, k, v, **options)
    v[:, :, 30:] = torch.randn(30, 16, dtype=v.dtype)
    changed = neighborhood_attention(q, k, v, **options) != out
    assert not changed[:, :, :30].any()
    assert changed[:, :, 30:].all()


@pytest.mark.parametrize("text", [0, 77])
def test_float32_with_context(text):
    layout = TokenLayout(text=text, grid=(1, 24, 20), extra=(Segment(4),))
    q, k, v = make_qkv(layout, dim=24, dtype=torch.float32)
    options = {"layout": layout, "kernel_size": (1, 5, 5), "scale": 0.2}
    out = neighborhood_attention(q, k, v, **options)
    want = neighborhood_attention(q, k, v, impl="reference", **options)
    torch.testing.assert_close(out, want, **FLOAT32)


def test_a_batch_is_its_rows_and_sizes_may_alternate():
    first, second = TokenLayout(text=2, grid=(1, 19, 21)), TokenLayout(grid=(1, 12, 30))
    q, k, v = make_qkv(first, batch=2)
    before = neighborhood_attention(q, k, v, layout=first, dilation=(1, 2, 2))
    neighborhood_attention(*make_qkv(second), layout=second, dilation=(1, 2, 2))
    again = neighborhood_attention(q, k, v, layout=first, dilation=(1, 2, 2))
    assert torch.equal(again, before)
    one = neighborhood_attention(q[1:], k[1:], v[1:], layout=first, dilation=(1, 2, 2))
    torch.testing.assert_close(before[1:], one, **FLOAT64)


def test_gradients_equal_the_oracles():
    layout = TokenLayout(text=5, grid=(1, 13, 14))
    qkv = make_qkv(layout, requires_grad=True)
    options = {"layout": layout, "kernel_size": (1, 5, 3), "dilation": (1, 1, 2)}
    weight = torch.randn(1, 2, layout.num_tokens, 16, dtype=torch.float64)
    grads = [
        torch.autograd.grad(
            (neighborhood_attention(*qkv, impl=impl, **options) * weight).sum(), qkv
        )
        for impl in ("torch", "reference")
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, **FLOAT64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_errs_no_more_than_plain_torch(dtype):
    layout = TokenLayout(text=7, grid=(1, 20, 24))
    q, k, v = make_qkv(layout, dim=64, dtype=torch.float32)
    low = [x.to(dtype) for x in (q, k, v)]
    options = {"layout": layout, "kernel_size": (1, 5, 5)}
    out = neighborhood_attention(*low, **options)
    assert out.dtype == dtype
    truth = neighborhood_attention(*(x.double() for x in low), impl="reference", **options)
    plain = dense(*low, visible_keys(**options))
    error, allowed = ((x.double() - truth).square().mean().sqrt() for x in (out, plain))
    assert error <= 2 * allowed


def test_it_compiles_into_one_graph():
    layout = TokenLayout(text=2, grid=(1, 17, 9))
    q, k, v = make_qkv(layout, dtype=torch.float32)

    def attend(q, k, v):
        return neighborhood_attention(q, k, v, layout=layout, kernel_size=(1, 3, 3))

    compiled = torch.compile(attend, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(q, k, v), attend(q, k, v))


def test_counts():
    layout = TokenLayout(text=77, grid=(1, 64, 64))
    needed, visited = neighborhood_keys(layout, (1, 7, 7))
    assert needed == 77 + 49
    assert needed <= visited < 77 + 150
    assert neighborhood_keys(layout, (1, 7, 7), (1, 3, 3)).needed == 77 + 49
    causal = neighborhood_keys(TokenLayout(grid=(4, 1, 1)), (2, 1, 1), is_causal=(True,) * 3)
    assert causal.needed == 7 / 4
    assert neighborhood_keys(layout, (1, 64, 99)) == (77 + 4096, 77 + 4096)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 7}, r"kernel_size must be \(frames, rows, columns\), got 7"),
        ({"kernel_size": (7, 7)}, r"kernel_size must be .* got \(7, 7\); on an image frames is 1"),
        ({"kernel_size": (1, 0, 7)}, "kernel_size must be an integer >= 1, got 0"),
        ({"dilation": (1, 1, 0.5)}, "dilation must be an integer >= 1, got 0.5"),
        ({"is_causal": (True, False)}, r"is_causal must be three booleans .* got \(True, False\)"),
        ({"is_causal": (0, 0, 0)}, "is_causal must be three booleans"),
        ({"impl": "cuda"}, "impl must be"),
    ],
)
def test_bad_options_are_refused(options, message):
    layout = TokenLayout(grid=(1, 4, 4))
    with pytest.raises(ValueError, match=message):
        neighborhood_attention(*make_qkv(layout), layout=layout, **options)
