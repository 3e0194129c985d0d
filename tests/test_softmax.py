"""Dense attention and the log-space merge."""

import pytest
import torch
import torch.nn.functional as F

from foveate.kernels import TokenLayout, merge, softmax_attention
from foveate.kernels.partial import partial_attention
from oracles import FLOAT64, dense, make_qkv

LAYOUT = TokenLayout(text=5, grid=(1, 6, 7))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_sdpa_bit_for_bit(masked, dtype):
    q, k, v = make_qkv(LAYOUT, dtype=dtype)
    mask = torch.rand(q.shape[2], q.shape[2]) > 0.2 if masked else None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)
    out = softmax_attention(q, k, v, layout=LAYOUT, attn_mask=mask, scale=0.3)
    assert torch.equal(out, expected)


def test_any_strides_with_lse():
    q, k, v = (x.mT.contiguous().mT for x in make_qkv(LAYOUT))
    assert q.stride(-1) != 1
    out, _ = softmax_attention(q, k, v, return_lse=True)
    torch.testing.assert_close(out, dense(q, k, v), **FLOAT64)


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_lse_is_the_log_of_the_normaliser(impl):
    q, k, v = make_qkv(LAYOUT)
    out, lse = softmax_attention(q, k, v, impl=impl, return_lse=True)
    torch.testing.assert_close(out, dense(q, k, v), **FLOAT64)
    torch.testing.assert_close(lse, (q @ k.mT / 4).logsumexp(-1), **FLOAT64)


def test_named_triton_runs_or_raises():
    pytest.importorskip("triton")
    from foveate.kernels.triton.device import interprets

    q, k, v = make_qkv(LAYOUT, dtype=torch.float32)
    with pytest.raises(NotImplementedError, match="attn_mask|CPU"):
        softmax_attention(q, k, v, attn_mask=torch.ones(47, 47).bool(), impl="triton")
    if interprets():
        out = softmax_attention(q, k, v, impl="triton")
        torch.testing.assert_close(out, dense(q, k, v), rtol=1e-5, atol=1e-6)


def test_merged_branches_equal_the_union():
    q, k, v = make_qkv(LAYOUT)
    parts = [
        softmax_attention(q, k[:, :, a:b], v[:, :, a:b], return_lse=True)
        for a, b in ((0, 5), (5, 6), (6, LAYOUT.num_tokens))
    ]
    out, lse = merge(*zip(*parts, strict=True))
    expected, expected_lse = softmax_attention(q, k, v, return_lse=True)
    torch.testing.assert_close(out, expected, **FLOAT64)
    torch.testing.assert_close(lse, expected_lse, **FLOAT64)


def test_merge_ignores_a_branch_without_keys():
    q, k, v = make_qkv(LAYOUT)
    out, lse = softmax_attention(q, k, v, return_lse=True)
    empty = torch.full_like(lse, -torch.inf)
    merged, merged_lse = merge([torch.randn_like(out), out], [empty, lse])
    torch.testing.assert_close(merged, out, **FLOAT64)
    torch.testing.assert_close(merged_lse, lse, **FLOAT64)
    nothing, nothing_lse = merge([out, out], [empty, empty])
    assert (nothing == 0).all()
    assert (nothing_lse == -torch.inf).all()


def test_merge_needs_one_lse_per_out():
    with pytest.raises(ValueError, match="one lse per out"):
        merge([torch.randn(1, 1, 2, 2)], [])


@pytest.mark.parametrize("empty", ["q", "k"])
def test_no_queries_or_no_keys(empty):
    q, k = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 3, 8)
    q, k = (q[:, :, :0], k) if empty == "q" else (q, k[:, :, :0])
    out, lse = partial_attention(q, k, k)
    assert out.shape == q.shape
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


def test_a_row_whose_bias_hides_every_key():
    q, k, v = (torch.randn(2, 3, 4, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = torch.zeros(4, 4, dtype=torch.float64)
    bias[1] = -torch.inf
    out, lse = partial_attention(q, k, v, bias, empty_rows=True)
    assert (out[:, :, 1] == 0).all()
    assert (lse[:, :, 1] == -torch.inf).all()
    grads = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert all(grad.isfinite().all() for grad in grads)


def test_a_device_without_fused_kernels_gives_the_same(monkeypatch):
    from foveate.kernels import partial

    monkeypatch.setattr(partial, "_MAX_SCORES", 50)
    q, k, v = (torch.randn(3, 2, 9, 8, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(9, 9, dtype=torch.float64)
    expected = partial_attention(q, k, v, bias, 0.3)
    for one, other in zip(partial._plain(q, k, v, bias, 0.3), expected, strict=True):
        torch.testing.assert_close(one, other, **FLOAT64)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4)), "q must be"),
        (((1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 6, 4)), "k and v"),
        (((1, 2, 3, 4), (1, 1, 3, 4), (1, 1, 3, 4)), "agree in B, H and D"),
        (((1, 2, 3, 4), (1, 2, 3, 8), (1, 2, 3, 8)), "agree in B, H and D"),
    ],
)
def test_mismatched_tensors_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        softmax_attention(*(torch.randn(shape) for shape in shapes))


def test_mixed_types_are_refused():
    q, k, v = make_qkv(LAYOUT)
    with pytest.raises(ValueError, match="like q"):
        softmax_attention(q, k.float(), v)
    with pytest.raises(ValueError, match="floating point"):
        softmax_attention(q.long(), k.long(), v.long())
