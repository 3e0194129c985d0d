"""The window with a linear far field: oracle, limits, the zero gate, gradients, refusals."""

import pytest
import torch

from foveate.kernels import Segment, TokenLayout, hybrid_attention, local_attention
from foveate.kernels.feature_maps import hedgehog_map
from oracles import FLOAT32, FLOAT64, LargestTensor, dense, make_qkv

GRIDS = [(1, 13, 17), (1, 1, 37), (1, 37, 1), (1, 8, 40), (3, 7, 9)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(
    ("radius", "feature_map", "gate"),
    [(1, "elu", 0.02), (2, "hedgehog", 0.5), (5, "focused", [0.0, 3.0])],
)
def test_it_equals_the_oracle(grid, radius, feature_map, gate):
    layout = TokenLayout(text=7 if radius == 2 else 0, grid=grid, text_first=radius != 5)
    q, k, v = make_qkv(layout, batch=2)
    options = {"layout": layout, "radius": radius, "feature_map": feature_map}
    options["gate"] = torch.tensor(gate, dtype=torch.float64)
    out = hybrid_attention(q, k, v, **options)
    torch.testing.assert_close(
        out, hybrid_attention(q, k, v, impl="reference", **options), **FLOAT64
    )


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_the_formula_pair_by_pair(impl):
    layout = TokenLayout(text=2, grid=(1, 4, 5))
    q, k, v = make_qkv(layout, heads=1)
    out = hybrid_attention(
        q, k, v, layout=layout, radius=2, gate=0.3, feature_map="elu", scale=0.2, impl=impl
    )
    elu = [torch.where(x > 0, x + 1, x.exp()) for x in (q, k)]
    for i in range(2, 22):
        above = below = 0.0
        for j in range(22):
            (yi, xi), (yj, xj) = divmod(i - 2, 5), divmod(j - 2, 5)
            if j < 2 or (yi - yj) ** 2 + (xi - xj) ** 2 < 4:
                weight = (0.2 * q[0, 0, i] @ k[0, 0, j]).exp()
            else:
                weight = 0.3 * elu[0][0, 0, i] @ elu[1][0, 0, j]
            above, below = above + weight * v[0, 0, j], below + weight
        torch.testing.assert_close(out[0, 0, i], above / below, **FLOAT64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gate", [0.0, torch.zeros(2), torch.tensor([-1.0, 0.0])], ids=str)
def test_a_zero_gate_is_the_window_bit_for_bit(dtype, gate):
    layout = TokenLayout(text=7, grid=(1, 17, 20), extra=(Segment(3),))
    q, k, v = (3 * x for x in make_qkv(layout, dtype=dtype))
    out = hybrid_attention(q, k, v, layout=layout, radius=4, gate=gate)
    assert torch.equal(out, local_attention(q, k, v, layout=layout, radius=4))
    other = hybrid_attention(q, k, v, layout=layout, radius=4, gate=1.0)
    assert not torch.equal(out, other)


def test_a_zero_gate_has_a_gradient():
    layout = TokenLayout(text=2, grid=(1, 9, 11))
    q, k, v = make_qkv(layout)
    gate = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    for impl in ("torch", "reference"):
        out = hybrid_attention(q, k, v, layout=layout, radius=3, gate=gate, impl=impl)
        (grad,) = torch.autograd.grad(out.square().sum(), gate)
        assert (grad != 0).all()
        if impl == "torch":
            want = grad
    torch.testing.assert_close(grad, want, **FLOAT64)


def test_a_map_that_gives_the_exponential_makes_it_dense():
    layout = TokenLayout(text=3, grid=(1, 11, 9))
    q, k, v = make_qkv(layout)
    q, k = (x[:, :, :1].expand_as(x) for x in (q, k))
    weight = (q[:, :, :1] * k[:, :, :1]).sum(-1, keepdim=True) / 4

    def half(x):
        return (weight / 2).exp().expand(*x.shape[:3], 1)

    out = hybrid_attention(q, k, v, layout=layout, radius=3, gate=1.0, feature_map=half)
    torch.testing.assert_close(out, dense(q, k, v), **FLOAT64)


def test_a_window_over_the_grid_is_dense():
    layout = TokenLayout(text=3, grid=(1, 11, 6))
    q, k, v = make_qkv(layout)
    out = hybrid_attention(q, k, v, layout=layout, radius=16, gate=2.0)
    torch.testing.assert_close(out, dense(q, k, v), **FLOAT64)


@pytest.mark.parametrize("size", [1e-2, 30.0])
def test_large_and_small_logits(size):
    layout = TokenLayout(grid=(1, 12, 11))
    q, k, v = make_qkv(layout, dtype=torch.float32)
    q = q * size
    options = {"layout": layout, "radius": 3, "gate": 1e-3, "feature_map": "elu"}
    out = hybrid_attention(q, k, v, **options)
    expected = hybrid_attention(*(x.double() for x in (q, k, v)), impl="reference", **options)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


def test_float32():
    layout = TokenLayout(text=77, grid=(1, 24, 20))
    q, k, v = make_qkv(layout, dim=24, dtype=torch.float32)
    options = {"layout": layout, "radius": 4, "gate": 0.5, "scale": 0.2}
    out = hybrid_attention(q, k, v, **options)
    torch.testing.assert_close(
        out, hybrid_attention(q, k, v, impl="reference", **options), **FLOAT32
    )


def test_gradients_equal_the_oracles():
    layout = TokenLayout(text=5, grid=(1, 17, 20))
    qkv = make_qkv(layout, requires_grad=True)
    gate = torch.tensor([0.2, 1.5], dtype=torch.float64, requires_grad=True)
    weight = torch.randn(1, 2, layout.num_tokens, 16, dtype=torch.float64)
    grads = []
    for impl in ("torch", "reference"):
        out = hybrid_attention(*qkv, layout=layout, radius=3, gate=gate, impl=impl)
        grads.append(torch.autograd.grad((out * weight).sum(), (*qkv, gate)))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, **FLOAT64)


def test_gradcheck():
    layout = TokenLayout(text=1, grid=(1, 6, 3))
    qkv = make_qkv(layout, heads=1, dim=2, requires_grad=True)

    def attend(q, k, v):
        return hybrid_attention(q, k, v, layout=layout, radius=2, feature_map="softmax")

    assert torch.autograd.gradcheck(attend, qkv)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_errs_no_more_than_plain_torch(dtype):
    layout = TokenLayout(text=7, grid=(1, 20, 24))
    low = make_qkv(layout, dim=64, dtype=dtype)
    where = layout.coords()
    far = torch.zeros(layout.num_tokens, layout.num_tokens, dtype=torch.bool)
    far[7:, 7:] = (where[:, None] - where).square().sum(-1) >= 25

    def plain(q, k, v):
        linear = 0.5 * hedgehog_map(q) @ hedgehog_map(k).mT
        weights = torch.where(far, linear, (q @ k.mT / 8).exp())
        return weights / weights.sum(-1, keepdim=True) @ v

    truth = plain(*(x.double() for x in low))
    out = hybrid_attention(*low, layout=layout, radius=5, gate=0.5)
    assert out.dtype == dtype
    error, allowed = ((x.double() - truth).square().mean().sqrt() for x in (out, plain(*low)))
    assert error <= 2 * allowed


@pytest.mark.parametrize("requires_grad", [False, True])
def test_memory_is_linear(requires_grad):
    def largest(side):
        layout = TokenLayout(text=7, grid=(1, side, side))
        qkv = make_qkv(layout, heads=1, dtype=torch.float32, requires_grad=requires_grad)
        with LargestTensor() as log:
            out = hybrid_attention(*qkv, layout=layout, radius=3)
            if requires_grad:
                out.sum().backward()
        return log.elements

    assert largest(96) <= 10 * largest(32)


def test_it_compiles_into_one_graph():
    layout = TokenLayout(text=2, grid=(1, 9, 5))
    q, k, v = make_qkv(layout, dtype=torch.float32)

    def attend(q, k, v):
        return hybrid_attention(q, k, v, layout=layout, radius=2)

    compiled = torch.compile(attend, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(q, k, v), attend(q, k, v))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 0}, "radius must be an integer >= 1"),
        ({"gate": torch.ones(3)}, r"gate must be a number or one per head \[2\], got \(3,\)"),
        ({"feature_map": "identity"}, "needs affine=True"),
        ({"impl": "cuda"}, "impl must be"),
    ],
    ids=str,
)
def test_bad_options(options, message):
    layout = TokenLayout(grid=(1, 4, 4))
    with pytest.raises(ValueError, match=message):
        hybrid_attention(*make_qkv(layout), layout=layout, **options)
