"""Triton's window attention: output, lse and gradients against the oracle in float64."""

import pytest
import torch
from torch.library import opcheck

from triton_interpreter import DEVICE  # isort: skip, before triton
from foveate.kernels import Segment, TokenLayout, window_attention
from test_triton_local import assert_close, separate, side_by_side

# a tile beyond the end of a smaller part divides by an empty sum, and is not stored
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")


def numbers(size, window, shift, wrap):
    """The window of each token of an axis, counted out."""
    if window >= size:
        return torch.zeros(size, dtype=torch.long)
    moved = torch.arange(size) - shift % window
    return (moved % size if wrap else moved) // window


def triton(q, k, v, layout, options):
    window_size, shift, wrap = options
    return window_attention(
        q, k, v, layout=layout, window_size=window_size, shift=shift, wrap=wrap,
        impl="triton", return_lse=True,
    )  # fmt: skip


def plain(q, k, v, layout, options):
    """Dense masked attention of the tensors' own dtype, as one would write it."""
    window_size, shift, wrap = options
    axes = zip(layout.grid, window_size, shift, strict=True)
    axes = torch.meshgrid([numbers(*axis, wrap) for axis in axes], indexing="ij")
    place = torch.stack([axis.flatten() for axis in axes], 1).to(q.device)
    hidden = torch.zeros(layout.num_tokens, layout.num_tokens, dtype=torch.bool, device=q.device)
    hidden[layout.grid_slice, layout.grid_slice] = (place[:, None] != place).any(-1)
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


@pytest.mark.parametrize(
    ("make", "grid", "text", "dim", "window_size", "shift", "wrap"),
    [
        (separate, (1, 1, 37), 0, 64, (1, 1, 8), (0, 0, 3), False),
        (side_by_side, (1, 13, 17), 7, 40, (1, 8, 5), (0, 4, 2), False),
        (side_by_side, (1, 13, 17), 7, 16, (1, 7, 9), (0, 3, 10), True),
        (separate, (1, 9, 7), 0, 16, (1, 99, 4), (0, 5, 0), False),
        (side_by_side, (3, 6, 7), 3, 16, (2, 4, 4), (1, 2, 0), False),
    ],
)
def test_float32_equals_the_oracle(make, grid, text, dim, window_size, shift, wrap):
    layout = TokenLayout(text=text, grid=grid, text_first=dim != 40)
    assert_close(triton, make(layout, 1, dim), layout, (window_size, shift, wrap), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_at_most_twice_plain_torch(dtype):
    layout = TokenLayout(text=7, grid=(1, 13, 17))
    qkv = [x.to(dtype) for x in side_by_side(layout, 1, 64)]
    assert_close(triton, qkv, layout, ((1, 8, 8), (0, 4, 4), False), plain)


def test_batches_and_segments_on_both_sides():
    layout = TokenLayout(text=3, grid=(1, 9, 5), extra=(Segment(4),))
    qkv = side_by_side(layout, 2, 16, batch=2)
    assert_close(triton, qkv, layout, ((1, 4, 4), (0, 2, 0), False), plain)


def test_the_operators_pass_torchs_checks(monkeypatch):
    layout = TokenLayout(text=3, grid=(1, 5, 4))
    q, k, v = (x.requires_grad_() for x in side_by_side(layout, 1, 16))
    options = (3, [1, 5, 4], [1, 3, 2], [0, 1, 0], 0.25)
    with torch.no_grad():
        out, lse = torch.ops.foveate.window_forward(q, k, v, *options)
    saved = [x.detach() for x in (out, lse, q, k, v, out, lse)]
    opcheck(torch.ops.foveate.window_forward.default, (q, k, v, *options))
    opcheck(torch.ops.foveate.window_backward.default, (*saved, *options))
    # without the interpreter CPU tensors take the torch path of the same operators
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    again = torch.ops.foveate.window_forward(q, k, v, *options)
    torch.testing.assert_close(again, (out, lse))
    grads = torch.ops.foveate.window_backward(*saved, *options)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    torch.testing.assert_close(torch.ops.foveate.window_backward(*saved, *options), grads)


def test_one_graph_with_equal_gradients():
    layout = TokenLayout(text=3, grid=(1, 5, 4))
    options = {"window_size": (1, 3, 3), "shift": (0, 1, 2), "wrap": True, "impl": "triton"}

    def attend(q, k, v):
        return window_attention(q, k, v, layout=layout, **options)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    qkv = [x.requires_grad_() for x in separate(layout, 1, 16)]
    grads = [
        torch.autograd.grad(function(*qkv).square().sum(), qkv) for function in (attend, compiled)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_a_named_kernel_runs_or_raises(monkeypatch):
    layout = TokenLayout(grid=(1, 4, 4))
    q, k, v = separate(layout, 1, 16)
    with pytest.raises(NotImplementedError, match="float64"):
        window_attention(q.double(), k.double(), v.double(), layout=layout, impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    if DEVICE == "cpu":
        with pytest.raises(NotImplementedError, match="on the CPU"):
            window_attention(q, k, v, layout=layout, impl="triton")
