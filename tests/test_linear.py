"""Linear attention: oracle, papers' formulas, shapes, gradients, precision, memory, refusals."""

import functools

import pytest
import torch
import torch.nn.functional as F

from foveate.kernels import TokenLayout, depthwise_residual, linear_attention
from foveate.kernels.feature_maps import elu_map, focused_map, hedgehog_map
from foveate.kernels.linear import linear_state
from oracles import FLOAT32, FLOAT64, LargestTensor, dense, make_qkv

FORMS = [
    {},
    {"feature_map": "relu"},
    {"feature_map": "softmax"},
    {"feature_map": "focused"},
    {"feature_map": "hedgehog"},
    {"rank_augment": True},
    {"feature_map": "identity", "affine": True},
    {"feature_map": "hedgehog", "affine": True, "rank_augment": True, "scale": 0.3},
]
GRIDS = [(1, 13, 17), (1, 1, 37), (1, 37, 1), (3, 7, 9)]


def form_id(form):
    return "-".join(str(value) for value in form.values()) or "elu"


def elu(x):
    return torch.where(x > 0, x + 1, x.exp())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=form_id)
def test_it_equals_the_oracle(grid, form):
    layout = TokenLayout(text=grid[2] % 4, grid=grid, text_first=grid[0] == 1)
    q, k, v = make_qkv(layout, batch=2)
    out = linear_attention(q, k, v, layout=layout, **form)
    expected = linear_attention(q, k, v, layout=layout, impl="reference", **form)
    torch.testing.assert_close(out, expected, **FLOAT64)


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_linfusions_formula(impl):
    layout = TokenLayout(grid=(1, 5, 4))
    q, k, v = make_qkv(layout)
    tokens = layout.num_tokens
    state = sum(elu(k[:, :, j, :, None]) * v[:, :, j, None] for j in range(tokens)) / tokens
    mean = sum(elu(k[:, :, j]) for j in range(tokens)) / tokens
    rows = []
    for i in range(tokens):
        feature = elu(q[:, :, i])
        below = (feature * mean).sum(-1, keepdim=True) + 1e-4
        rows.append((feature[..., None] * state).sum(-2) / below)
    out = linear_attention(q, k, v, layout=layout, eps=1e-4, impl=impl)
    torch.testing.assert_close(out, torch.stack(rows, 2), **FLOAT64)


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_inlines_formula(impl):
    layout = TokenLayout(grid=(1, 5, 4))
    q, k, v = make_qkv(layout)
    scale, tokens = 16**-0.5, layout.num_tokens
    out = scale / tokens * q @ (k.mT @ v)
    out = out + (1 - scale * (q * k.mean(2, keepdim=True)).sum(-1, keepdim=True)) * v.mean(
        2, keepdim=True
    )
    got = linear_attention(q, k, v, layout=layout, feature_map="identity", affine=True, impl=impl)
    torch.testing.assert_close(got, out, **FLOAT64)


def test_the_affine_form_is_softmax_to_first_order():
    layout = TokenLayout(grid=(1, 5, 4))
    q, k, v = make_qkv(layout)
    errors = []
    for size in (1e-2, 1e-3):
        got = linear_attention(q * size, k, v, layout=layout, feature_map="identity", affine=True)
        errors.append((got - dense(q * size, k, v)).abs().max())
    assert errors[1] < 1.1e-2 * errors[0]


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_ralas_formula(impl):
    layout = TokenLayout(grid=(1, 5, 4))
    q, k, v = make_qkv(layout)
    tokens = layout.num_tokens
    query, key = elu(q), elu(k)
    alpha = tokens * (16**-0.5 * key @ query.mean(2, keepdim=True).mT).softmax(2)
    key = alpha * key
    above = query @ (key.mT @ v / tokens)
    below = (query * key.mean(2, keepdim=True)).sum(-1, keepdim=True) + 1e-6
    got = linear_attention(q, k, v, layout=layout, rank_augment=True, eps=1e-6, impl=impl)
    torch.testing.assert_close(got, above / below, **FLOAT64)


def test_the_focused_map_is_flattens():
    heads, tokens, dim = 3, 7, 4
    x = torch.randn(2, tokens, heads * dim, dtype=torch.float64)
    scale = torch.randn(heads * dim, dtype=torch.float64)
    y = (x.relu() + 1e-6) / F.softplus(scale)
    want = y.norm(dim=-1, keepdim=True) * y**3 / (y**3).norm(dim=-1, keepdim=True)
    got = focused_map(x.unflatten(-1, (heads, dim)).transpose(1, 2), scale.view(heads, 1, dim))
    torch.testing.assert_close(got.transpose(1, 2).flatten(2), want, **FLOAT64)


def test_hedgehog_starts_from_split_softmax_logits():
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    weight = torch.eye(16, dtype=torch.float64).expand(3, 16, 16) / 2
    want = torch.cat(((x / 2).softmax(-1), (-x / 2).softmax(-1)), -1)
    torch.testing.assert_close(hedgehog_map(x, weight), want, **FLOAT64)
    torch.testing.assert_close(hedgehog_map(x), want, **FLOAT64)


def test_a_trained_map_for_queries_and_keys():
    layout = TokenLayout(text=2, grid=(1, 9, 7))
    q, k, v = make_qkv(layout)
    weights = torch.randn(2, 2, 16, 24, dtype=torch.float64)
    maps = tuple(functools.partial(hedgehog_map, weight=w) for w in weights)
    out = linear_attention(q, k, v, layout=layout, feature_map=maps)
    expected = linear_attention(q, k, v, layout=layout, feature_map=maps, impl="reference")
    torch.testing.assert_close(out, expected, **FLOAT64)
    one = linear_attention(q, k, v, layout=layout, feature_map=maps[0])
    assert not torch.allclose(one, out)


@pytest.mark.parametrize("text", [0, 7, 77, 512])
def test_text_queries_are_dense_and_text_keys_are_in_the_state(text):
    layout = TokenLayout(text=text, grid=(1, 12, 10))
    q, k, v = make_qkv(layout, dim=24, dtype=torch.float32)
    out = linear_attention(q, k, v, layout=layout, scale=0.2)
    expected = linear_attention(q, k, v, layout=layout, scale=0.2, impl="reference")
    torch.testing.assert_close(out, expected, **FLOAT32)
    rows = dense(q, k, v, scale=0.2)[:, :, :text]
    torch.testing.assert_close(out[:, :, :text], rows, **FLOAT32)
    weights = elu(q[:, :, text:]) @ elu(k).mT / layout.num_tokens
    grid = weights @ v / (weights.sum(-1, keepdim=True) + 1e-4)
    torch.testing.assert_close(out[:, :, text:], grid, **FLOAT32)


@pytest.mark.parametrize("form", FORMS, ids=form_id)
def test_float32(form):
    layout = TokenLayout(text=77, grid=(1, 24, 20))
    q, k, v = make_qkv(layout, dim=24, dtype=torch.float32)
    out = linear_attention(q, k, v, layout=layout, **form)
    expected = linear_attention(q, k, v, layout=layout, impl="reference", **form)
    torch.testing.assert_close(out, expected, **FLOAT32)


def test_keys_have_no_order():
    layout = TokenLayout(text=3, grid=(1, 9, 7))
    q, k, v = make_qkv(layout)
    order = torch.randperm(layout.num_tokens)
    out = linear_attention(q, k[:, :, order], v[:, :, order], layout=layout)
    torch.testing.assert_close(out, linear_attention(q, k, v, layout=layout), **FLOAT64)


def test_states_of_shards_add_up():
    k, v = torch.randn(2, 1, 3, 50, 8, dtype=torch.float64)
    parts = [
        linear_state(elu_map, k[:, :, rows], v[:, :, rows]) for rows in (slice(20), slice(20, 50))
    ]
    for whole, one, other in zip(linear_state(elu_map, k, v), *parts, strict=True):
        torch.testing.assert_close(0.4 * one + 0.6 * other, whole, **FLOAT64)


@pytest.mark.parametrize("form", FORMS, ids=form_id)
def test_pieces_make_no_difference(form):
    layout = TokenLayout(text=5, grid=(1, 29, 30))
    q, k, v = make_qkv(layout, heads=8, dim=64)
    out = linear_attention(q, k, v, layout=layout, **form)
    with torch.no_grad(), LargestTensor() as log:
        in_pieces = linear_attention(q, k, v, layout=layout, **form)
    assert log.elements < 3 * q.numel()
    torch.testing.assert_close(in_pieces, out, **FLOAT64)


def test_a_batch_is_its_rows_and_sizes_may_alternate():
    first, second = TokenLayout(text=2, grid=(1, 19, 21)), TokenLayout(grid=(1, 12, 30))
    q, k, v = make_qkv(first, batch=2)
    before = linear_attention(q, k, v, layout=first)
    linear_attention(*make_qkv(second), layout=second)
    assert torch.equal(linear_attention(q, k, v, layout=first), before)
    one = linear_attention(q[1:], k[1:], v[1:], layout=first)
    torch.testing.assert_close(before[1:], one, **FLOAT64)


def test_strided_input_gives_the_same():
    layout = TokenLayout(text=2, grid=(1, 19, 21))
    q, k, v = make_qkv(layout, batch=2)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    out = linear_attention(*strided, layout=layout)
    torch.testing.assert_close(out, linear_attention(q, k, v, layout=layout), **FLOAT64)


@pytest.mark.parametrize("form", FORMS, ids=form_id)
def test_gradients_equal_the_oracles(form):
    layout = TokenLayout(text=5, grid=(1, 7, 10))
    qkv = make_qkv(layout, requires_grad=True)
    weight = torch.randn(1, 2, layout.num_tokens, 16, dtype=torch.float64)
    grads = [
        torch.autograd.grad(
            (linear_attention(*qkv, layout=layout, impl=impl, **form) * weight).sum(), qkv
        )
        for impl in ("torch", "reference")
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, **FLOAT64)


def test_gradcheck():
    layout = TokenLayout(text=1, grid=(1, 3, 3))
    qkv = make_qkv(layout, heads=1, dim=2, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: linear_attention(*x, layout=layout), qkv)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS, ids=form_id)
def test_low_precision_errs_no_more_than_plain_torch(dtype, form):
    layout = TokenLayout(grid=(1, 20, 24))
    low = make_qkv(layout, dim=64, dtype=dtype)
    truth = linear_attention(*(x.double() for x in low), layout=layout, impl="reference", **form)
    out = linear_attention(*low, layout=layout, **form)
    assert out.dtype == dtype
    error = (out.double() - truth).square().mean().sqrt()
    allowed = (truth.to(dtype).double() - truth).square().mean().sqrt()
    assert error <= 2 * allowed


def test_half_precision_does_not_overflow_over_many_keys():
    layout = TokenLayout(grid=(1, 128, 128))
    q, k, v = make_qkv(layout, heads=1, dim=8, dtype=torch.float16)
    out = linear_attention(q, 30 * k, 100 * v + 500, layout=layout)
    assert out.isfinite().all()
    assert (out.float() - 500).abs().max() < 20


def test_memory_is_linear():
    def largest(side):
        layout = TokenLayout(text=7, grid=(1, side, side))
        qkv = make_qkv(layout, heads=1, dtype=torch.float32, requires_grad=True)
        with LargestTensor() as log:
            linear_attention(*qkv, layout=layout).sum().backward()
        return log.elements

    assert largest(64) <= 4.4 * largest(32)


def test_it_compiles_into_one_graph():
    layout = TokenLayout(text=2, grid=(1, 17, 9))
    q, k, v = make_qkv(layout, dtype=torch.float32)

    def attend(q, k, v):
        return linear_attention(q, k, v, layout=layout, rank_augment=True)

    compiled = torch.compile(attend, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(q, k, v), attend(q, k, v))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_map": "gelu"}, "feature_map must be one of 'elu', 'relu'"),
        ({"feature_map": (elu_map,)}, "feature_map must be one of"),
        ({"feature_map": "identity"}, "needs affine=True"),
        ({"eps": -1.0}, "eps must be a number >= 0, got -1.0"),
        ({"impl": "cuda"}, "impl must be"),
    ],
)
def test_bad_options(options, message):
    layout = TokenLayout(grid=(1, 4, 4))
    with pytest.raises(ValueError, match=message):
        linear_attention(*make_qkv(layout), layout=layout, **options)


def test_a_named_impl_runs_or_raises():
    layout = TokenLayout(text=2, grid=(1, 4, 4))
    qkv = make_qkv(layout, dtype=torch.float32)
    forms = [
        ({"affine": True}, "affine and"),
        ({"feature_map": elu_map}, "feature maps are identity, relu"),
    ]
    for options, message in forms:
        with pytest.raises(NotImplementedError, match=f"impl='triton': .*{message}"):
            linear_attention(*qkv, layout=layout, impl="triton", **options)
    out = linear_attention(*qkv, layout=layout, impl="triton")
    torch.testing.assert_close(out, linear_attention(*qkv, layout=layout), **FLOAT32)


# the residual


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)], ids=str)
def test_the_residual_is_a_convolution_of_each_frame(shape):
    layout = TokenLayout(text=4, grid=(2, 5, 7))
    _, _, v = make_qkv(layout, heads=3, dim=6, batch=2)
    weight = torch.randn(*shape, 3, 3, dtype=torch.float64)
    kernels = weight.expand(2, 3, 6, 3, 3)
    got = depthwise_residual(v, layout=layout, weight=weight)
    picture = F.pad(layout.grid_of(v).unflatten(2, layout.grid), (0, 0, 1, 1, 1, 1))
    want = sum(
        picture[:, :, :, y : y + 5, x : x + 7] * kernels[:, :, None, None, None, :, y, x]
        for y in range(3)
        for x in range(3)
    )
    torch.testing.assert_close(got, want.flatten(2, 4), **FLOAT64)


@pytest.mark.parametrize("shape", [(6, 2, 2), (6, 3, 5), (1, 1, 1, 6, 3, 3)], ids=str)
def test_bad_residual_kernels(shape):
    layout = TokenLayout(grid=(1, 5, 7))
    with pytest.raises(ValueError, match="with s odd"):
        depthwise_residual(make_qkv(layout, dim=6)[2], layout=layout, weight=torch.ones(shape))
