"""Linear attention in Triton against float64: outputs, gradients, feature maps, layouts."""

import pytest
import torch
import torch.nn.functional as F

from triton_interpreter import DEVICE  # isort: skip, before triton
from foveate.kernels.triton import linear, linear_backward, linear_forward
from foveate.kernels.triton.linear import linear_attention, linear_output, linear_state, why_not
from foveate.kernels.triton.linear_tiles import Tiles

SMALL = Tiles(32, 64, 4, 2)
EPS = 1e-4
MAPS = {
    "identity": lambda x: x,
    "relu": F.relu,
    "elu": lambda x: F.elu(x) + 1,
    "softmax": lambda x: x.softmax(-1),
}


def attention(q, k, v, feature_map):
    """LinFusion's formula as it is published: N^-1/2 on both sides of the state."""
    phi_q, phi_k = MAPS[feature_map](q), MAPS[feature_map](k)
    root = k.shape[2] ** -0.5
    state = (phi_k * root).mT @ (v * root)
    return phi_q @ state / (phi_q @ phi_k.mean(2, keepdim=True).mT + EPS)


def expected(q, k, v, feature_map, grad):
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = attention(*leaves, feature_map)
    return out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))


def kernels(q, k, v, feature_map, grad, tiles):
    state = linear_forward.state(k, v, feature_map, tiles=tiles)
    out = linear_forward.output(q, *state, feature_map, EPS, tiles)
    dq, *dstate = linear_backward.output_backward(grad, q, *state, feature_map, EPS, tiles, tiles)
    return out, dq, *linear_backward.state_backward(*dstate, k, v, feature_map, tiles)


def error(x, exact):
    return ((x.double() - exact).norm() / exact.norm()).item()


def check(q, k, v, feature_map="elu", tiles=SMALL):
    """Within 1e-6 of float64, and in half precisions within twice what plain torch loses."""
    if feature_map == "identity":
        q, k = q.abs(), k.abs()  # else a denominator may be 0
    grad = torch.randn(*q.shape[:3], v.shape[3], device=DEVICE).to(q.dtype)
    exact = expected(q.double(), k.double(), v.double(), feature_map, grad)
    plain = expected(q, k, v, feature_map, grad)
    found = kernels(q, k, v, feature_map, grad, tiles)
    for name, x, y, z in zip(("out", "dq", "dk", "dv"), found, exact, plain, strict=True):
        limit = 1e-6 if x.dtype == torch.float32 else 2 * error(z, y)
        assert error(x, y) <= limit, f"{name}: {error(x, y):.2e}, at most {limit:.2e}"


def contiguous(length, heads, dim, dtype=torch.float32, batch=2):
    return torch.randn(batch, heads, length, dim).to(DEVICE, dtype)


def interleaved(length, heads, dim, dtype=torch.float32, batch=2):
    return torch.randn(batch, length, heads, dim).to(DEVICE, dtype).transpose(1, 2)


@pytest.mark.parametrize("feature_map", MAPS)
def test_feature_maps(feature_map):
    # 20 and 24 columns are padded: a map must not leak into the padding
    check(*(contiguous(33, 1, dim, batch=1) for dim in (20, 20, 24)), feature_map)


@pytest.mark.parametrize(
    ("dim", "queries", "keys", "heads", "room"),
    [
        (16, 5, 33, 1, contiguous),
        (40, 33, 20, 2, interleaved),
        (64, 37, 37, 1, contiguous),
        (72, 9, 40, 1, interleaved),
        (80, 33, 9, 1, contiguous),
        (96, 17, 33, 1, contiguous),
        (128, 33, 17, 1, interleaved),
        (160, 9, 33, 1, contiguous),
    ],
)
def test_float32(dim, queries, keys, heads, room):
    q, k, v = (room(n, heads, dim) for n in (queries, keys, keys))
    check(q, k, v)


@pytest.mark.parametrize(
    ("dtype", "dim", "feature_map"),
    [
        (torch.bfloat16, 64, "elu"),
        (torch.bfloat16, 40, "softmax"),
        (torch.float16, 128, "relu"),
        (torch.float16, 72, "elu"),
    ],
)
def test_half_precisions(dtype, dim, feature_map):
    check(*(interleaved(n, 1, dim, dtype) for n in (37, 65, 65)), feature_map)


def test_more_features_than_values():
    # learned maps double the features, and come as they are
    check(*(contiguous(33, 1, dim) for dim in (128, 128, 40)), "identity")


def test_fused_projection():
    qkv = torch.randn(2, 37, 3, 2, 16, device=DEVICE)
    check(*(x.transpose(1, 2) for x in qkv.unbind(2)))


def test_view_with_gaps():
    check(*torch.randn(3, 2, 2, 80, 48, device=DEVICE)[:, :, 1:, ::2, 4:36])


def test_split_over_tokens():
    check(*(contiguous(n, 1, 16, batch=1) for n in (9, 1040, 1040)))


def test_partial_tiles_in_the_backward():
    for queries, keys in ((33, 32), (32, 33), (33, 33), (1, 33)):
        check(*(contiguous(n, 1, 16, batch=1) for n in (queries, keys, keys)))


def test_float16_does_not_overflow():
    # sums of 4096 products of 8 pass 65504; their mean does not
    k, v = torch.full((2, 1, 1, 4096, 16), 8.0, dtype=torch.float16, device=DEVICE)
    s, z = linear_forward.state(k, v, "relu", tiles=Tiles(512, 16, 4, 1))
    assert torch.equal(s, torch.full_like(s, 64.0))
    assert torch.equal(z, torch.full_like(z, 8.0))
    q = k[:, :, :5]
    out = linear_forward.output(q, s, z, "relu", EPS, SMALL)
    torch.testing.assert_close(out, torch.full_like(out, 8.0))


def test_queries_without_features():
    # relu of a negative query is 0: eps keeps the division finite, as in the formula
    q, k, v = (contiguous(33, 1, 16, torch.float16) for _ in range(3))
    q[:, :, 3] = -1.0
    grad = torch.full_like(q, 8.0)
    out, *grads = kernels(q, k, v, "relu", grad, SMALL)
    assert out[:, :, 3].abs().max() == 0
    assert all(x.isfinite().all() for x in grads)


def test_same_bits_twice():
    q, k, v = (contiguous(n, 1, 16, batch=1) for n in (9, 1040, 1040))
    first, second = (kernels(q, k, v, "elu", q, SMALL) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.fixture(params=["kernels", "torch"])
def path(request, monkeypatch):
    """What the operators run on the CPU: interpreted kernels, or the torch path of other users."""
    if request.param == "torch":
        monkeypatch.setattr(linear, "interprets", lambda: False)


def operator_inputs():
    q, k, v = (contiguous(n, 2, dim) for n, dim in ((5, 16), (9, 16), (9, 24)))
    return [x.requires_grad_() for x in (q.transpose(1, 2).contiguous().transpose(1, 2), k, v)]


def test_opcheck(path):
    q, k, v = operator_inputs()
    s, z = (x.detach().requires_grad_() for x in linear_state(k, v, "elu"))
    operators = torch.ops.foveate
    torch.library.opcheck(operators.linear_state_forward.default, (k, v, "elu"))
    torch.library.opcheck(operators.linear_output_forward.default, (q, s, z, "elu", EPS))


@pytest.mark.parametrize("feature_map", MAPS)
def test_gradients_of_the_operators(feature_map, path):
    # the gradient of a sum has no strides, so neither has what reaches the kernels
    q, k, v = operator_inputs()
    if feature_map == "identity":
        q, k = (x.detach().abs().requires_grad_() for x in (q, k))
    outs = linear_attention(q, k, v, feature_map, EPS), attention(q, k, v, feature_map)
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)
    grads = [torch.autograd.grad(out.sum(), (q, k, v)) for out in outs]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_compiles_to_one_graph(path):
    q, k, v = operator_inputs()

    def loss(q, k, v):
        return linear_output(q, *linear_state(k, v, "elu"), "elu").square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    exact = torch.autograd.grad(attention(q, k, v, "elu").square().sum(), (q, k, v))
    for run in (loss, compiled):
        for x, y in zip(torch.autograd.grad(run(q, k, v), (q, k, v)), exact, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_refusals():
    q, k, v = operator_inputs()
    assert why_not(q, k, v) == ""
    assert "float64" in why_not(q.double())
    assert "must be one type" in why_not(q, k.half())
    assert "head dim 300" in why_not(torch.randn(1, 1, 2, 300))
    assert "not contiguous" in why_not(k.mT)
    with pytest.raises(ValueError, match="feature_map must be one of"):
        linear_attention(q, k, v, "exp")
