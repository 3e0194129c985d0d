"""Triton's local attention: output, lse and gradients against the oracle in float64; dispatch."""

import pytest
import torch
from torch.library import opcheck

from triton_interpreter import DEVICE  # isort: skip, before triton
from foveate.kernels import Segment, TokenLayout, local_attention
from foveate.kernels.triton import local_launch
from foveate.kernels.triton.local_tiles import LocalTiles
from oracles import ellipsoid_mask


def separate(layout, heads, dim, batch=1):
    """q, k, v that lie as [B, H, N, D]."""
    return [torch.randn(batch, heads, layout.num_tokens, dim, device=DEVICE) for _ in range(3)]


def side_by_side(layout, heads, dim, batch=1):
    """q, k, v as views of one projection [B, N, 3 H D]."""
    qkv = torch.randn(batch, layout.num_tokens, 3, heads, dim, device=DEVICE)
    return list(qkv.transpose(1, 3).unbind(2))


def masked(q, k, v, seen):
    """Dense attention of the tensors' own dtype, as one would write it."""
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def plain(q, k, v, layout, radius):
    """Over discs and balls."""
    where = layout.coords(q.device)
    seen = torch.ones(layout.num_tokens, layout.num_tokens, dtype=torch.bool, device=q.device)
    distance = (where[:, None] - where).square().sum(-1)
    reach = torch.tensor(radius, device=q.device).square().view(-1, 1, 1)  # of one head or each
    seen = seen.repeat(len(reach), 1, 1)
    seen[:, layout.grid_slice, layout.grid_slice] = distance < reach
    return masked(q, k, v, seen)


def triton(q, k, v, layout, radius):
    return local_attention(q, k, v, layout=layout, radius=radius, impl="triton", return_lse=True)


def answers(attend, qkv, layout, radius, grads):
    """out, lse and the gradients of q, k, v, as float64."""
    leaves = [x.detach().requires_grad_() for x in qkv]
    out, lse = attend(*leaves, layout, radius)
    grads = [grad.to(x.dtype) for grad, x in zip(grads, (out, lse), strict=True)]
    found = (out, lse, *torch.autograd.grad((out, lse), leaves, grads))
    return [x.detach().double() for x in found]


def errors(attend, qkv, layout, radius, plain):
    """Relative errors of out, lse, dq, dk, dv, and those of `plain` in the same dtype."""
    grads = torch.randn_like(qkv[0]), torch.randn(qkv[0].shape[:3], device=DEVICE)
    truth = answers(plain, [x.double() for x in qkv], layout, radius, grads)
    return [
        [(x - y).norm() / y.norm() for x, y in zip(found, truth, strict=True)]
        for found in (
            answers(attend, qkv, layout, radius, grads),
            answers(plain, qkv, layout, radius, grads),
        )
    ]


def assert_close(attend, qkv, layout, radius, plain=plain):
    """float32 within 1e-6 of the truth, half precision within twice the error of plain torch."""
    ours, plains = errors(attend, qkv, layout, radius, plain)
    single = qkv[0].dtype == torch.float32
    limits = [1e-6] * 5 if single else [max(2 * error, 1e-6) for error in plains]
    names = ("out", "lse", "dq", "dk", "dv")
    for name, error, limit in zip(names, ours, limits, strict=True):
        assert error <= limit, f"{name}: {error:.2e} > {limit:.2e}"


@pytest.mark.parametrize(
    ("make", "grid", "text", "dim", "radius"),
    [
        (separate, (1, 1, 37), 0, 64, 5),
        (side_by_side, (1, 13, 17), 7, 40, 4),
        (side_by_side, (1, 19, 23), 77, 72, 3),
        (separate, (1, 33, 17), 0, 80, 2),
        (separate, (1, 40, 40), 7, 16, 2),
        (side_by_side, (3, 9, 7), 3, 16, 3),
    ],
)
def test_float32_equals_the_oracle(make, grid, text, dim, radius):
    layout = TokenLayout(text=text, grid=grid, text_first=dim != 72)
    assert_close(triton, make(layout, 1, dim), layout, radius)


@pytest.mark.parametrize(
    ("dtype", "grid", "text", "dim", "radius"),
    [
        (torch.bfloat16, (1, 13, 17), 7, 128, 4),
        (torch.float16, (1, 19, 23), 0, 96, 5),
        (torch.bfloat16, (1, 17, 9), 77, 80, 9),
        (torch.float16, (1, 1, 37), 7, 160, 3),
    ],
)
def test_half_precision_errs_at_most_twice_plain_torch(dtype, grid, text, dim, radius):
    layout = TokenLayout(text=text, grid=grid)
    qkv = [x.to(dtype) for x in side_by_side(layout, 1, dim)]
    assert_close(triton, qkv, layout, radius)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_large_activations_keep_the_gradients(size):
    layout = TokenLayout(text=5, grid=(1, 8, 9))
    qkv = [(size * x).bfloat16() for x in separate(layout, 1, 64)]
    assert_close(triton, qkv, layout, 4)


@pytest.mark.parametrize("grid", [(1, 18, 20), (2, 9, 10)], ids=str)
def test_descriptors_read_what_pointers_read(grid, monkeypatch):
    layout = TokenLayout(text=70, grid=grid)
    q, k, v = (x.bfloat16() for x in side_by_side(layout, 2, 64))
    found = []
    for tma in (False, True):
        monkeypatch.setattr(
            local_launch, "tiles_for", lambda *_, tma=tma: LocalTiles(8, 16, 8, 8, tma=tma)
        )
        found.append(triton(q, k, v, layout, 4))
    assert all(torch.equal(*both) for both in zip(*found, strict=True))
    out, _ = plain(q.double(), k.double(), v.double(), layout, 4)
    assert (found[0][0] - out).norm() < 3e-3 * out.norm()


def test_batches_and_segments_on_both_sides():
    layout = TokenLayout(text=3, grid=(1, 9, 5), extra=(Segment(4),))
    assert_close(triton, side_by_side(layout, 2, 16, batch=2), layout, 3)


@pytest.mark.parametrize(("make", "grid"), [(separate, (1, 9, 13)), (side_by_side, (3, 5, 4))])
def test_a_radius_for_each_head(make, grid):
    layout = TokenLayout(text=3, grid=grid)
    assert_close(triton, make(layout, 3, 16, batch=2), layout, (2, 5, 2))


@pytest.mark.parametrize(
    ("make", "grid", "dim", "radius", "frames_radius"),
    [
        (side_by_side, (3, 5, 9), 16, (3,), 5),
        (separate, (5, 1, 12), 40, (10,), 5),  # 3 frames and 8 tokens away is on the border
        (separate, (3, 5, 1), 16, (4,), 2),
        (side_by_side, (2, 5, 4), 16, (2, 5), 2),
        (separate, (2, 9, 3), 16, (3,), 1),
    ],
)
def test_an_ellipsoid(make, grid, dim, radius, frames_radius):
    layout = TokenLayout(text=3, grid=grid)

    def attend(q, k, v, layout, radius):
        return local_attention(
            q, k, v, layout=layout, radius=radius, frames_radius=frames_radius, impl="triton",
            return_lse=True,
        )  # fmt: skip

    def fractions(q, k, v, layout, radius):
        seen = torch.stack([ellipsoid_mask(layout, one, frames_radius) for one in radius])
        return masked(q, k, v, seen.to(DEVICE))

    assert_close(attend, make(layout, len(radius), dim), layout, radius, fractions)


def test_half_precision_of_an_ellipsoid(monkeypatch):
    # keys by descriptors, whose boxes run over the end of a frame
    monkeypatch.setattr(local_launch, "tiles_for", lambda *_: LocalTiles(8, 8, 8, 8, tma=True))
    layout = TokenLayout(grid=(3, 9, 5))
    q, k, v = (x.bfloat16() for x in separate(layout, 1, 16))
    options = {"layout": layout, "radius": 4, "frames_radius": 2}
    out = local_attention(q, k, v, **options, impl="triton")
    want, _ = masked(*(x.double() for x in (q, k, v)), ellipsoid_mask(layout, 4, 2).to(DEVICE))
    assert (out - want).norm() < 3e-3 * want.norm()


def test_partial_tiles_in_the_backward():
    layout = TokenLayout(text=1, grid=(1, 9, 9))
    assert_close(triton, separate(layout, 1, 16), layout, 2)


@pytest.mark.parametrize("dim", [64, 72, 80])
def test_a_first_tile_without_visible_keys(dim, monkeypatch):
    # rows 8 to 15 of a query tile see nothing of the first key tile, rows 1 to 4
    monkeypatch.setattr(local_launch, "tiles_for", lambda *_: LocalTiles(8, 8, 4, 8))
    layout = TokenLayout(grid=(1, 16, 4))
    assert_close(triton, separate(layout, 1, dim), layout, 8)


def test_offsets_beyond_int32(monkeypatch):
    monkeypatch.setattr(local_launch, "_passes_int32", lambda *_: True)
    layout = TokenLayout(text=2, grid=(1, 9, 5))
    assert_close(triton, side_by_side(layout, 1, 16), layout, 3)


def test_the_same_numbers_in_every_run():
    layout = TokenLayout(text=7, grid=(1, 9, 10))
    qkv = separate(layout, 1, 16)
    grads = torch.randn_like(qkv[0]), torch.randn(qkv[0].shape[:3], device=DEVICE)
    one, other = (answers(triton, qkv, layout, 3, grads) for _ in range(2))
    assert all(torch.equal(*both) for both in zip(one, other, strict=True))


def test_the_operators_pass_torchs_checks(monkeypatch):
    layout = TokenLayout(text=3, grid=(2, 3, 4))
    q, k, v = (x.requires_grad_() for x in side_by_side(layout, 1, 16))
    options = (3, [2, 3, 4], [3], 2, 0.25)
    with torch.no_grad():
        out, lse = torch.ops.foveate.local_forward(q, k, v, *options)
    saved = [x.detach() for x in (out, lse, q, k, v, out, lse)]
    opcheck(torch.ops.foveate.local_forward.default, (q, k, v, *options))
    opcheck(torch.ops.foveate.local_backward.default, (*saved, *options))
    # without the interpreter CPU tensors take the torch path of the same operators
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    opcheck(torch.ops.foveate.local_forward.default, (q, k, v, *options))
    opcheck(torch.ops.foveate.local_backward.default, (*saved, *options))
    torch.testing.assert_close(torch.ops.foveate.local_forward(q, k, v, *options), (out, lse))


def test_one_graph_with_equal_gradients():
    counts = torch._dynamo.utils.counters
    counts.clear()
    layouts = [TokenLayout(text=text, grid=(1, 5, 4)) for text in (3, 2)]

    def attend(q, k, v, layout):
        return local_attention(q, k, v, layout=layout, radius=2, impl="triton")

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

    def attend(q, k, v, **options):
        return local_attention(q, k, v, layout=layout, impl="triton", **options)

    with pytest.raises(NotImplementedError, match="float64"):
        attend(q.double(), k.double(), v.double())
    with pytest.raises(NotImplementedError, match="head dim 192"):
        attend(*separate(layout, 1, 192))
    with pytest.raises(NotImplementedError, match="not contiguous"):
        attend(q, k, v.transpose(2, 3).contiguous().transpose(2, 3))
    with pytest.raises(NotImplementedError, match=r"scale -1"):
        attend(q, k, v, scale=-1.0)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    if DEVICE == "cpu":
        with pytest.raises(NotImplementedError, match="on the CPU"):
            attend(q, k, v)
