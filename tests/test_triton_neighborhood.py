"""Triton's neighbourhood attention: output, lse and gradients against the oracle in float64."""

import pytest
import torch
from torch.library import opcheck

from triton_interpreter import DEVICE  # isort: skip, before triton
from foveate.kernels import Segment, TokenLayout, neighborhood_attention
from foveate.kernels.triton import local_launch
from foveate.kernels.triton.local_tiles import LocalTiles
from test_triton_local import assert_close, separate, side_by_side

# a tile beyond the end of a smaller part divides by an empty sum, and is not stored
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")

NO = (False, False, False)


def line(i, size, kernel, dilation, causal):
    """Which tokens of an axis token i sees, counted out."""
    near = range(i % dilation, size, dilation)
    at = i // dilation
    first = max(at - kernel + 1, 0) if causal else at - kernel // 2
    if not causal:
        first = max(min(first, len(near) - kernel), 0)
    stop = at + 1 if causal else first + kernel
    return [j in near[first:stop] for j in range(size)]


def seen_by(layout, options):
    """Which tokens see which, [N, N]."""
    axes = [
        torch.tensor([line(i, size, *axis) for i in range(size)], device=DEVICE)
        for size, *axis in zip(layout.grid, *options, strict=True)
    ]
    seen = torch.ones(layout.num_tokens, layout.num_tokens, dtype=torch.bool, device=DEVICE)
    inside = axes[0]
    for axis in axes[1:]:
        inside = torch.kron(inside.int(), axis.int()).bool()
    seen[layout.grid_slice, layout.grid_slice] = inside
    return seen


def triton(q, k, v, layout, options):
    kernel_size, dilation, is_causal = options
    return neighborhood_attention(
        q, k, v, layout=layout, kernel_size=kernel_size, dilation=dilation,
        is_causal=is_causal, impl="triton", return_lse=True,
    )  # fmt: skip


def plain(q, k, v, layout, options):
    """Dense masked attention of the tensors' own dtype, as one would write it."""
    hidden = ~seen_by(layout, options)
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def check(qkv, layout, *options):
    assert_close(triton, qkv, layout, options, plain)


@pytest.mark.parametrize(
    ("make", "grid", "text", "dim", "kernel_size", "dilation", "is_causal"),
    [
        (separate, (1, 1, 37), 0, 64, (1, 1, 5), (1, 1, 1), NO),
        (side_by_side, (1, 37, 1), 0, 16, (1, 4, 1), (1, 3, 1), (False, True, False)),
        (side_by_side, (1, 13, 17), 7, 40, (1, 7, 4), (1, 1, 1), NO),
        (separate, (1, 13, 17), 0, 16, (1, 3, 6), (1, 2, 3), (False, False, True)),
        (side_by_side, (1, 19, 23), 7, 16, (1, 8, 5), (1, 1, 1), (False, True, False)),
        (separate, (1, 9, 13), 0, 16, (1, 99, 2), (1, 2, 99), NO),
        (side_by_side, (5, 7, 6), 3, 16, (3, 3, 5), (1, 1, 1), (True, False, False)),
        (separate, (5, 6, 7), 0, 16, (2, 3, 3), (2, 1, 2), NO),
    ],
)
def test_float32_equals_the_oracle(make, grid, text, dim, kernel_size, dilation, is_causal):
    layout = TokenLayout(text=text, grid=grid, text_first=dim != 40)
    check(make(layout, 1, dim), layout, kernel_size, dilation, is_causal)


@pytest.mark.parametrize(
    ("dtype", "grid", "text", "dim", "kernel_size", "dilation"),
    [
        (torch.bfloat16, (1, 13, 17), 7, 64, (1, 7, 7), (1, 1, 1)),
        (torch.float16, (1, 19, 23), 0, 40, (1, 5, 3), (1, 2, 1)),
    ],
    ids=str,
)
def test_half_precision_errs_at_most_twice_plain_torch(
    dtype, grid, text, dim, kernel_size, dilation
):
    layout = TokenLayout(text=text, grid=grid)
    qkv = [x.to(dtype) for x in side_by_side(layout, 1, dim)]
    check(qkv, layout, kernel_size, dilation, NO)


def test_batches_and_segments_on_both_sides():
    layout = TokenLayout(text=3, grid=(1, 9, 5), extra=(Segment(4),))
    check(side_by_side(layout, 2, 16, batch=2), layout, (1, 3, 3), (1, 1, 1), NO)


def test_partial_tiles_in_the_backward():
    layout = TokenLayout(text=1, grid=(1, 9, 9))
    check(separate(layout, 1, 16), layout, (1, 3, 5), (1, 1, 1), NO)


def test_parts_of_which_some_have_fewer_tiles():
    # rows 0, 2, .. fill two tiles of 4, rows 1, 3, .. fill one
    layout = TokenLayout(grid=(1, 9, 9))
    check(separate(layout, 1, 16), layout, (1, 3, 3), (1, 2, 1), NO)


@pytest.mark.parametrize("grid", [(1, 18, 20), (2, 9, 10)], ids=str)
def test_descriptors_read_what_pointers_read(grid, monkeypatch):
    layout = TokenLayout(text=70, grid=grid)
    q, k, v = (x.bfloat16() for x in side_by_side(layout, 1, 64))
    options = (2, 7, 4), (1, 1, 1), NO
    found = []
    for tma in (False, True):
        monkeypatch.setattr(
            local_launch, "tiles_for", lambda *_, tma=tma: LocalTiles(8, 16, 8, 8, tma=tma)
        )
        found.append(triton(q, k, v, layout, options))
    assert all(torch.equal(*both) for both in zip(*found, strict=True))
    out, _ = plain(q.double(), k.double(), v.double(), layout, options)
    assert (found[0][0] - out).norm() < 3e-3 * out.norm()


def test_a_dilated_call_leaves_descriptors_alone(monkeypatch):
    monkeypatch.setattr(local_launch, "tiles_for", lambda *_: LocalTiles(4, 8, 4, 8, tma=True))
    layout = TokenLayout(grid=(1, 9, 10))
    check(separate(layout, 1, 16), layout, (1, 3, 3), (1, 2, 2), NO)


def test_the_same_numbers_in_every_run():
    layout = TokenLayout(text=2, grid=(1, 9, 6))
    q, k, v = (x.requires_grad_() for x in separate(layout, 1, 16))
    options = (1, 3, 3), (1, 1, 2), NO
    one, other = (
        torch.autograd.grad(triton(q, k, v, layout, options)[0].square().sum(), (q, k, v))
        for _ in range(2)
    )
    assert all(torch.equal(*both) for both in zip(one, other, strict=True))


def test_the_operators_pass_torchs_checks(monkeypatch):
    layout = TokenLayout(text=3, grid=(1, 5, 4))
    q, k, v = (x.requires_grad_() for x in side_by_side(layout, 1, 16))
    options = (3, [1, 5, 4], [1, 3, 2], [1, 1, 1], [False, True, False], 0.25)
    with torch.no_grad():
        out, lse = torch.ops.foveate.neighborhood_forward(q, k, v, *options)
    saved = [x.detach() for x in (out, lse, q, k, v, out, lse)]
    opcheck(torch.ops.foveate.neighborhood_forward.default, (q, k, v, *options))
    opcheck(torch.ops.foveate.neighborhood_backward.default, (*saved, *options))
    # without the interpreter CPU tensors take the torch path of the same operators
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    opcheck(torch.ops.foveate.neighborhood_forward.default, (q, k, v, *options))
    opcheck(torch.ops.foveate.neighborhood_backward.default, (*saved, *options))
    again = torch.ops.foveate.neighborhood_forward(q, k, v, *options)
    torch.testing.assert_close(again, (out, lse))


def test_one_graph_with_equal_gradients():
    counts = torch._dynamo.utils.counters
    counts.clear()
    layouts = [TokenLayout(text=text, grid=(1, 5, 4)) for text in (3, 2)]

    def attend(q, k, v, layout):
        return neighborhood_attention(q, k, v, layout=layout, kernel_size=(1, 3, 3), impl="triton")

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for layout in layouts:
        qkv = [x.requires_grad_() for x in separate(layout, 1, 16)]
        grads = [
            torch.autograd.grad(function(*qkv, layout).square().sum(), qkv)
            for function in (attend, compiled)
        ]
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other)
    assert counts["stats"]["unique_graphs"] == len(layouts)


def test_a_named_kernel_runs_or_raises(monkeypatch):
    layout = TokenLayout(grid=(1, 4, 4))
    q, k, v = separate(layout, 1, 16)
    with pytest.raises(NotImplementedError, match="float64"):
        neighborhood_attention(q.double(), k.double(), v.double(), layout=layout, impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    if DEVICE == "cpu":
        with pytest.raises(NotImplementedError, match="on the CPU"):
            neighborhood_attention(q, k, v, layout=layout, impl="triton")
