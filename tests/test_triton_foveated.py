"""Triton's foveated attention: output, lse and gradients against the oracle in float64."""

import pytest
import torch
from torch.library import opcheck

from triton_interpreter import DEVICE  # isort: skip, before triton
from foveate.kernels import Segment, TokenLayout, foveated_attention


def make(layout, dim=16, batch=1, heads=1, dtype=torch.float32):
    """q, k, v as views of one projection [B, N, 3 H D]."""
    qkv = torch.randn(batch, layout.num_tokens, 3, heads, dim, device=DEVICE)
    return list(qkv.to(dtype).transpose(1, 3).unbind(2))


def answers(qkv, impl, grads, **options):
    """out, lse and the gradients of q, k, v, as float64."""
    leaves = [x.detach().requires_grad_() for x in qkv]
    out, lse = foveated_attention(*leaves, impl=impl, return_lse=True, **options)
    grads = [grad.to(x.dtype) for grad, x in zip(grads, (out, lse), strict=True)]
    found = (out, lse, *torch.autograd.grad((out, lse), leaves, grads))
    return [x.detach().double() for x in found]


def errors(qkv, impl, grads, **options):
    """Relative errors of out, lse, dq, dk, dv."""
    truth = answers([x.double() for x in qkv], "reference", grads, **options)
    found = answers(qkv, impl, grads, **options)
    return [(x - y).norm() / y.norm() for x, y in zip(found, truth, strict=True)]


def incoming(qkv):
    return torch.randn_like(qkv[0]), torch.randn(qkv[0].shape[:3], device=DEVICE)


@pytest.mark.parametrize(
    ("grid", "text", "radius", "pool", "levels", "mass", "partition"),
    [
        ((1, 13, 17), 7, 3, 4, 1, True, True),
        ((1, 13, 10), 0, 3, 4, 1, False, False),
        ((1, 8, 8), 0, 2, 2, 1, True, False),
        ((1, 9, 17), 0, 1, 2, 2, True, True),
        ((1, 13, 14), 1, 2, 3, 2, True, True),
        ((3, 4, 5), 2, 2, 2, 1, True, True),
        ((1, 1, 37), 0, 2, 4, 2, True, True),
        ((1, 37, 1), 0, 2, 4, 1, False, True),
        ((1, 5, 5), 0, 9, 4, 2, True, True),
    ],
)
def test_float32_equals_the_oracle(grid, text, radius, pool, levels, mass, partition):
    layout = TokenLayout(text=text, grid=grid)
    qkv = make(layout)
    options = {"radius": radius, "pool": pool, "levels": levels}
    options |= {"mass": mass, "partition": partition}
    for error in errors(qkv, "triton", incoming(qkv), layout=layout, **options):
        assert error <= 1e-6


@pytest.mark.parametrize(("dtype", "dim"), [(torch.bfloat16, 80), (torch.float16, 64)])
def test_half_precision_errs_at_most_twice_the_torch_path(dtype, dim):
    layout = TokenLayout(text=3, grid=(1, 12, 14))
    qkv = make(layout, dim, dtype=dtype)
    grads = incoming(qkv)
    options = {"layout": layout, "radius": 2, "pool": 4}
    both = [errors(qkv, impl, grads, **options) for impl in ("triton", "torch")]
    for ours, torchs in zip(*both, strict=True):
        assert ours <= max(2 * torchs, 1e-6)


def test_batches_heads_and_segments_on_both_sides():
    layout = TokenLayout(text=2, grid=(1, 5, 7), extra=(Segment(3),))
    qkv = make(layout, batch=2, heads=2)
    options = {"layout": layout, "radius": 1, "pool": 2}
    assert max(errors(qkv, "triton", incoming(qkv), **options)) <= 1e-6


def test_every_key_is_counted_once():
    layout = TokenLayout(text=2, grid=(1, 11, 10))
    q, k, v = make(layout)
    k = torch.zeros_like(k)
    out, lse = foveated_attention(
        q, k, v, layout=layout, radius=1, pool=2, levels=2, impl="triton", return_lse=True
    )
    torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(out), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse.exp(), torch.full_like(lse, layout.num_tokens))


def test_the_operators_pass_torchs_checks(monkeypatch):
    layout = TokenLayout(text=2, grid=(1, 4, 5))
    q, k, v = (x.requires_grad_() for x in make(layout))
    options = (2, [1, 4, 5], 1, 2, 1, True, True, 0.25)
    with torch.no_grad():
        foveated_attention(q, k, v, layout=layout, impl="triton")  # registers the operators
        out, lse = torch.ops.foveate.foveated_forward(q, k, v, *options)
    saved = [x.detach() for x in (out, lse, q, k, v, out, lse)]
    opcheck(torch.ops.foveate.foveated_forward.default, (q, k, v, *options))
    opcheck(torch.ops.foveate.foveated_backward.default, (*saved, *options))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    opcheck(torch.ops.foveate.foveated_forward.default, (q, k, v, *options))
    opcheck(torch.ops.foveate.foveated_backward.default, (*saved, *options))
    torch.testing.assert_close(torch.ops.foveate.foveated_forward(q, k, v, *options), (out, lse))


def test_one_graph_with_equal_gradients():
    layout = TokenLayout(text=2, grid=(1, 4, 5))
    qkv = [x.requires_grad_() for x in make(layout)]

    def attend(q, k, v):
        return foveated_attention(q, k, v, layout=layout, radius=1, pool=2, impl="triton")

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(f(*qkv).square().sum(), qkv) for f in (attend, compiled)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_a_named_kernel_runs_or_raises():
    layout = TokenLayout(grid=(1, 4, 4))
    options = {"layout": layout, "impl": "triton", "radius": 1, "pool": 2}
    with pytest.raises(NotImplementedError, match="levels=3"):
        foveated_attention(*make(layout), levels=3, **options)
    with pytest.raises(NotImplementedError, match="pool_weight"):
        foveated_attention(*make(layout), pool_weight=torch.ones(2, 2), **options)
