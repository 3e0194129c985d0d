"""Split-KV flash attention in Triton against float64: outputs, log-sum-exp, gradients, layouts."""

import numpy as np
import pytest
import torch

from triton_interpreter import DEVICE  # isort: skip, before triton
from foveate.kernels.merge import merge
from foveate.kernels.triton import flash, flash_backward, flash_forward
from foveate.kernels.triton.flash import flash_attention, why_not
from foveate.kernels.triton.flash_tiles import Tiles
from foveate.kernels.triton.launch import in_units, split

SMALL = Tiles(32, 32, 4, 2)


def attention(q, k, v, bias, scale):
    """out and lse in plain formulas, in the type of q."""
    scores = (q @ k.mT * scale).to(torch.promote_types(q.dtype, torch.float32))
    if bias is not None:
        scores = scores + bias
    return scores.softmax(-1).to(v.dtype) @ v, scores.logsumexp(-1)


def expected(q, k, v, bias, scale, grads):
    """out, lse, dq, dk, dv by autograd of the plain formulas."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out, lse = attention(*leaves, bias, scale)
    grads = [grad.to(x.dtype) for grad, x in zip(grads, (out, lse), strict=True)]
    return out.detach(), lse.detach(), *torch.autograd.grad((out, lse), leaves, grads)


def kernels(q, k, v, bias, scale, grads, tiles=SMALL):
    """The same from the kernels."""
    out, lse = flash_forward.forward(q, k, v, bias, scale, tiles)
    return out, lse, *flash_backward.backward(*grads, q, k, v, bias, out, lse, scale, tiles, tiles)


def error(x, exact):
    return ((x.double() - exact).norm() / exact.norm()).item()


def check(q, k, v, bias=None, scale=None, tiles=SMALL):
    """Within 1e-6 of float64, and in half precisions within twice what plain torch loses."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    grads = (torch.randn_like(q), torch.randn(q.shape[:3], device=q.device))
    bias64 = None if bias is None else bias.double()
    exact = expected(q.double(), k.double(), v.double(), bias64, scale, grads)
    plain = expected(q, k, v, bias, scale, grads)
    found = kernels(q, k, v, bias, scale, grads, tiles)
    for name, x, y, z in zip(("out", "lse", "dq", "dk", "dv"), found, exact, plain, strict=True):
        limit = 1e-6 if x.dtype == torch.float32 else 2 * error(z, y)
        assert error(x, y) <= limit, f"{name}: {error(x, y):.2e}, at most {limit:.2e}"


def contiguous(length, heads, dim, dtype=torch.float32, batch=2):
    return torch.randn(batch, heads, length, dim).to(DEVICE, dtype)


def interleaved(length, heads, dim, dtype=torch.float32, batch=2):
    return torch.randn(batch, length, heads, dim).to(DEVICE, dtype).transpose(1, 2)


def fused(length, heads, dim, dtype=torch.float32):
    """q, k, v as views of one projection."""
    qkv = torch.randn(2, length, 3, heads, dim).to(DEVICE, dtype)
    return [x.transpose(1, 2) for x in qkv.unbind(2)]


@pytest.mark.parametrize(
    ("dim", "queries", "keys", "heads", "room"),
    [
        (16, 33, 70, 1, contiguous),
        (20, 5, 33, 1, interleaved),
        (40, 20, 64, 2, interleaved),
        (72, 40, 9, 1, contiguous),
        (96, 17, 40, 1, contiguous),
        (128, 9, 37, 1, interleaved),
        (160, 17, 33, 1, contiguous),
    ],
)
def test_float32(dim, queries, keys, heads, room):
    check(room(queries, heads, dim), room(keys, heads, dim), room(keys, heads, dim))


@pytest.mark.parametrize(
    ("dtype", "dim", "queries", "keys", "room"),
    [
        (torch.bfloat16, 64, 33, 40, contiguous),
        (torch.bfloat16, 80, 9, 65, interleaved),
        (torch.float16, 40, 20, 33, interleaved),
        (torch.float16, 128, 33, 17, contiguous),
    ],
)
def test_half_precisions(dtype, dim, queries, keys, room):
    check(room(queries, 1, dim, dtype), *(room(keys, 1, dim, dtype) for _ in range(2)))


@pytest.mark.parametrize("size", [4, 16])
def test_large_activations(size):
    # gradients suffer first if the backward's logits are not the forward's
    q, k, v = (contiguous(33, 1, 64, torch.bfloat16, batch=1) for _ in range(3))
    check(q * size, k, v)


def test_fused_projection():
    check(*fused(37, 2, 64))


def test_view_with_gaps():
    q, k, v = (torch.randn(2, 2, 2 * 40, 48, device=DEVICE)[:, 1:, ::2, 4:36] for _ in range(3))
    assert in_units(q, k, v)[0] == 8
    check(q, k, v)


def test_key_bias():
    bias = torch.randn(70, device=DEVICE) * 3
    bias[:33] = -torch.inf  # the first tile of keys is hidden from every query
    for dim in (64, 80):
        check(*(contiguous(n, 1, dim, batch=1) for n in (20, 70, 70)), bias)


def test_all_keys_hidden():
    q, k, v = (contiguous(n, 1, 16) for n in (5, 33, 33))
    bias = torch.full((33,), -torch.inf, device=DEVICE)
    grads = (torch.randn_like(q), torch.randn(q.shape[:3], device=DEVICE))
    out, lse, *found = kernels(q, k, v, bias, 0.25, grads)
    assert out.abs().max() == 0
    assert (lse == -torch.inf).all()
    assert all(grad.abs().max() == 0 for grad in found)


def test_split_over_keys():
    # context queries: few, over chunks of keys
    assert split(1, 520, 32)[0] == 2
    check(*(contiguous(n, 1, 16, batch=1) for n in (9, 520, 520)))


def test_split_over_queries():
    # agents: many queries over few keys
    check(*(interleaved(n, 1, 16, batch=1) for n in (520, 9, 9)))


def test_split_hides_a_chunk():
    bias = torch.randn(520, device=DEVICE)
    bias[:300] = -torch.inf
    check(*(contiguous(n, 1, 16, batch=1) for n in (9, 520, 520)), bias)


def test_partial_tiles_in_the_backward():
    # one row beyond a tile of queries, of keys, of both
    for queries, keys in ((33, 32), (32, 33), (33, 33), (1, 33)):
        check(*(contiguous(n, 1, 16, batch=1) for n in (queries, keys, keys)))


def test_same_bits_twice():
    q, k, v = (contiguous(n, 1, 16, batch=1) for n in (9, 520, 520))
    grads = (torch.randn_like(q), torch.randn(q.shape[:3], device=DEVICE))
    first, second = (kernels(q, k, v, None, 0.25, grads) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.skipif(DEVICE != "cpu", reason="needs memory that is never touched")
def test_offsets_beyond_int32():
    # np.empty maps pages on first touch, so 4.4 GB of addresses cost 66 pages
    row = 1 << 25
    memory = torch.from_numpy(np.empty(66 * row, np.float16))
    far = memory.as_strided((1, 1, 66, 16), (0, 0, row, 1))
    far.copy_(torch.randn(far.shape))
    near = contiguous(9, 1, 16, torch.float16, batch=1)
    check(near, far, far)
    check(far, near, near)


@pytest.fixture(params=["kernels", "torch"])
def path(request, monkeypatch):
    """What the operators run on the CPU: interpreted kernels, or the torch path of other users."""
    if request.param == "torch":
        monkeypatch.setattr(flash, "interprets", lambda: False)


def operator_inputs():
    q, k, v = (contiguous(n, 2, 16).requires_grad_() for n in (5, 9, 9))
    return q, k, v, torch.randn(9, device=DEVICE)


@pytest.mark.parametrize("with_bias", [True, False])
def test_opcheck(with_bias, path):
    q, k, v, bias = operator_inputs()
    arguments = (q, k, v, bias if with_bias else None, 0.25)
    torch.library.opcheck(torch.ops.foveate.flash_forward.default, arguments)


def test_gradients_of_the_operator(path):
    # the gradient of a sum has no strides, so neither has what reaches the kernels
    q, k, v, bias = operator_inputs()
    found, exact = flash_attention(q, k, v, bias), attention(q, k, v, bias, 0.25)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)
    grads = [torch.autograd.grad(out.sum() + lse.sum(), (q, k, v)) for out, lse in (found, exact)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)


def test_compiles_to_one_graph(path):
    q, k, v, bias = operator_inputs()

    def halves(q, k, v):
        parts = [flash_attention(q, k[:, :, x], v[:, :, x], bias[x]) for x in (first, rest)]
        out, lse = merge(*zip(*parts, strict=True))
        return out.square().sum() + lse.sum()

    first, rest = slice(0, 4), slice(4, None)
    whole, lse = attention(q, k, v, bias, 0.25)
    exact = torch.autograd.grad(whole.square().sum() + lse.sum(), (q, k, v))
    compiled = torch.compile(halves, fullgraph=True, backend="aot_eager")
    for run in (halves, compiled):
        for x, y in zip(torch.autograd.grad(run(q, k, v), (q, k, v)), exact, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_refusals():
    q, k, v, bias = operator_inputs()
    wide = torch.randn(1, 1, 4, 200)
    assert why_not(q, k, v, bias) == ""
    assert "head dim 200" in why_not(wide, wide, wide)
    assert "not contiguous" in why_not(q, k.mT.contiguous().mT, v)
    assert "scale -1.0" in why_not(q, k, v, scale=-1.0)
    assert "one number per key" in why_not(q, k, v, bias[:3])
    assert "needs a gradient" in why_not(q, k, v, bias.requires_grad_())
