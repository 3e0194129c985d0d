"""Window attention: oracle, Swin's mask, HiDiffusion's partition, limits, the shift of a step."""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from foveate.attn_processors import WindowAttnProcessor, apply
from foveate.kernels import Segment, TokenLayout, window_attention, window_keys
from oracles import FLOAT32, FLOAT64, dense, make_qkv
from tiny_pipelines import Tiny

CASES = [
    # grid, window_size, shift
    ((1, 1, 37), (1, 1, 8), (0, 0, 3)),
    ((1, 37, 1), (1, 9, 4), (0, 4, 2)),
    ((1, 16, 24), (1, 8, 8), (0, 0, 0)),
    ((1, 13, 17), (1, 5, 4), (0, 2, 9)),
    ((1, 8, 12), (1, 8, 5), (0, 4, 4)),
    ((5, 7, 9), (2, 4, 3), (1, 3, 0)),
]


@pytest.mark.parametrize("wrap", [False, True], ids=["cut", "wrapped"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_equals_the_oracle(case, wrap):
    grid, window_size, shift = case
    layout = TokenLayout(text=7 if grid[0] == 1 else 0, grid=grid, text_first=wrap)
    q, k, v = make_qkv(layout, batch=2)
    options = {"layout": layout, "window_size": window_size, "shift": shift, "wrap": wrap}
    for one, other in zip(
        window_attention(q, k, v, return_lse=True, **options),
        window_attention(q, k, v, impl="reference", return_lse=True, **options),
        strict=True,
    ):
        torch.testing.assert_close(one, other, **FLOAT64)


def swin_mask(height, width, side, shift):
    """Region numbers and partition of Swin's own code: [windows, tokens] of the rolled grid."""
    regions = torch.zeros(1, height, width)
    slices = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((r, c) for r in slices for c in slices):
        regions[:, rows, columns] = number
    return partition(regions[..., None], side, side)[..., 0]


def partition(x, rows, columns):
    """x [B, H, W, D] as windows [B * windows, tokens, D]."""
    batch, height, width, dim = x.shape
    x = x.view(batch, height // rows, rows, width // columns, columns, dim)
    return x.transpose(2, 3).reshape(-1, rows * columns, dim)


def unpartition(x, height, width, rows, columns):
    x = x.view(-1, height // rows, width // columns, rows, columns, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, x.shape[-1])


def rolled_windows(q, k, v, size, side, shift, mask=None):
    """Window attention by cyclic shift, as published: q, k, v [1, 1, N, D]."""
    rolled = (x[0].view(1, *size, -1).roll((-shift[0], -shift[1]), (1, 2)) for x in (q, k, v))
    windows = (partition(x, *side).unsqueeze(1) for x in rolled)
    visible = None if mask is None else (mask[:, :, None] == mask[:, None])[:, None]
    out = unpartition(dense(*windows, visible), *size, *side)
    return out.roll(shift, (1, 2)).view(1, 1, -1, q.shape[-1])


def test_cut_windows_are_swins_masked_shift():
    layout = TokenLayout(grid=(1, 12, 16))
    q, k, v = make_qkv(layout, heads=1)
    want = rolled_windows(q, k, v, (12, 16), (4, 4), (2, 2), swin_mask(12, 16, 4, 2))
    out = window_attention(q, k, v, layout=layout, window_size=(1, 4, 4), shift=(0, 2, 2))
    torch.testing.assert_close(out, want, **FLOAT64)


@pytest.mark.parametrize("quarter", range(4))
def test_wrapped_halves_are_hidiffusions(quarter):
    layout = TokenLayout(grid=(1, 16, 24))
    q, k, v = make_qkv(layout, heads=1)
    side = (math.ceil(16 / 2), math.ceil(24 / 2))
    shift = tuple(n // 4 * quarter for n in side)
    want = rolled_windows(q, k, v, (16, 24), side, shift)
    processor = WindowAttnProcessor(shift=quarter / 4, wrap=True)
    out = processor.attend(q, k, v, layout=layout, scale=None)
    torch.testing.assert_close(out, want, **FLOAT64)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("wrap", [False, True], ids=["cut", "wrapped"])
def test_a_window_over_the_grid_is_dense(impl, wrap):
    layout = TokenLayout(text=3, grid=(1, 11, 6))
    q, k, v = make_qkv(layout)
    options = {"layout": layout, "shift": (0, 3, 2), "wrap": wrap, "impl": impl}
    out = window_attention(q, k, v, window_size=(1, 11, 8), **options)
    torch.testing.assert_close(out, dense(q, k, v), **FLOAT64)
    less = window_attention(q, k, v, window_size=(1, 10, 8), **options)
    assert not torch.allclose(less, out)


@pytest.mark.parametrize("text", [0, 77])
def test_float32_with_context(text):
    layout = TokenLayout(text=text, grid=(1, 23, 20), extra=(Segment(4),))
    q, k, v = make_qkv(layout, dim=24, dtype=torch.float32)
    options = {"layout": layout, "shift": (0, 3, 1), "scale": 0.2}
    out = window_attention(q, k, v, **options)
    want = window_attention(q, k, v, impl="reference", **options)
    torch.testing.assert_close(out, want, **FLOAT32)


def test_a_batch_is_its_rows_and_sizes_may_alternate():
    first, second = TokenLayout(text=2, grid=(1, 19, 21)), TokenLayout(grid=(1, 12, 30))
    q, k, v = make_qkv(first, batch=2)
    before = window_attention(q, k, v, layout=first)
    window_attention(*make_qkv(second), layout=second)
    assert torch.equal(window_attention(q, k, v, layout=first), before)
    one = window_attention(q[1:], k[1:], v[1:], layout=first)
    torch.testing.assert_close(before[1:], one, **FLOAT64)


@pytest.mark.parametrize("wrap", [False, True], ids=["cut", "wrapped"])
def test_gradients_equal_the_oracles(wrap):
    layout = TokenLayout(text=5, grid=(1, 13, 14))
    qkv = make_qkv(layout, requires_grad=True)
    options = {"layout": layout, "window_size": (1, 5, 4), "shift": (0, 2, 3), "wrap": wrap}
    weight = torch.randn(1, 2, layout.num_tokens, 16, dtype=torch.float64)
    grads = [
        torch.autograd.grad((window_attention(*qkv, impl=impl, **options) * weight).sum(), qkv)
        for impl in ("torch", "reference")
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, **FLOAT64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_errs_no_more_than_plain_torch(dtype):
    layout = TokenLayout(grid=(1, 16, 24))
    low = make_qkv(layout, heads=1, dim=64, dtype=dtype)
    truth = rolled_windows(*(x.double() for x in low), (16, 24), (8, 8), (0, 0))
    out = window_attention(*low, layout=layout)
    assert out.dtype == dtype
    plain = rolled_windows(*low, (16, 24), (8, 8), (0, 0))
    error, allowed = ((x.double() - truth).square().mean().sqrt() for x in (out, plain))
    assert error <= 2 * allowed


def test_counts():
    layout = TokenLayout(text=77, grid=(1, 64, 64))
    assert window_keys(layout, (1, 8, 8)) == (77 + 64, 77 + 64)
    # 16 windows of 4 + 8 + ... + 8 + 4 tokens an axis
    assert window_keys(layout, (1, 8, 8), (0, 4, 0)).needed == 77 + 8 * (7 * 64 + 2 * 16) / 64
    assert window_keys(layout, (1, 8, 8), (0, 4, 4), wrap=True).needed == 77 + 64
    assert WindowAttnProcessor().count_keys(layout).needed == 77 + 1024
    assert WindowAttnProcessor(window_size=(1, 99, 64)).count_keys(layout).needed == 77 + 4096


# the shift of a step


def test_a_step_draws_one_shift():
    processor = WindowAttnProcessor(seed=3)
    shifts = [processor.at(i / 50).present_shift for i in range(50)]
    assert set(shifts) == {0, 0.25, 0.5, 0.75}
    assert shifts == [WindowAttnProcessor(seed=3).at(i / 50).present_shift for i in range(50)]
    assert shifts != [WindowAttnProcessor(seed=4).at(i / 50).present_shift for i in range(50)]


@pytest.fixture(scope="module")
def sd():
    return Tiny("sd")


def seen_shifts(tiny, processor, monkeypatch, **call):
    """The shift of every call of the operator."""
    shifts, attend = [], WindowAttnProcessor.attend

    def spy(self, *args, **options):
        shifts.append(self.present_shift)
        return attend(self, *args, **options)

    with monkeypatch.context() as patch, apply(tiny.pipe, processor):
        patch.setattr(WindowAttnProcessor, "attend", spy)
        tiny(**call)
    return shifts


def test_the_shift_follows_the_timestep(sd, monkeypatch):
    processor = WindowAttnProcessor(seed=1)
    shifts = seen_shifts(sd, processor, monkeypatch, steps=6)
    want = [processor.at(i / 6).present_shift for i in range(6)]
    assert len(set(want)) > 1
    # seven self-attentions a step, all with the shift of the step
    assert shifts == [shift for shift in want for _ in range(7)]
    again = seen_shifts(sd, processor, monkeypatch, steps=6)
    assert again == shifts


def test_a_forward_repeated_or_cut_short_does_not_move_the_shift(sd, monkeypatch):
    sample, context = torch.randn(1, 4, 12, 16), torch.randn(1, 7, 8)
    shifts, attend = [], WindowAttnProcessor.attend

    def spy(self, *args, **options):
        shifts.append(self.present_shift)
        if len(shifts) == 3:
            raise RuntimeError("cut short")
        return attend(self, *args, **options)

    processor = WindowAttnProcessor(seed=1)
    with monkeypatch.context() as patch, apply(sd.model, processor), torch.no_grad():
        patch.setattr(WindowAttnProcessor, "attend", spy)
        with pytest.raises(RuntimeError, match="cut short"):
            sd.model(sample, 600, context)
        sd.model(sample, 600, context)
        sd.model(sample, 300, context)
    assert shifts == [processor.at(0.4).present_shift] * 10 + [processor.at(0.7).present_shift] * 7


def test_the_stock_way_knows_no_step(sd):
    before = dict(sd.model.attn_processors)
    sd.model.set_attn_processor(WindowAttnProcessor(seed=1, grid=sd.grid()))
    with pytest.raises(NotImplementedError, match="does not tell the step; use foveate.apply"):
        sd()
    sd.model.set_attn_processor(before)


def test_each_shift_is_one_graph():
    layout, counter = TokenLayout(grid=(1, 8, 12)), CompileCounter()
    q, k, v = make_qkv(layout, dtype=torch.float32)
    steps = [WindowAttnProcessor(seed=1).at(i / 6) for i in range(6)]

    def attend(processor):
        return processor.attend(q, k, v, layout=layout, scale=None)

    compiled = torch.compile(attend, fullgraph=True, backend=counter)
    for processor in steps:
        torch.testing.assert_close(compiled(processor), attend(processor))
    assert counter.frame_count == len({processor.present_shift for processor in steps}) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WindowAttnProcessor(window_size=(8, 8)), "window_size must be .frames, rows, col"),
        (lambda: WindowAttnProcessor(window_size=(1, 0, 8)), "window_size must be an integer >= 1"),
        (lambda: WindowAttnProcessor(shift=1), "shift must be a share of the window"),
        (lambda: WindowAttnProcessor(shift=0.5, seed=1), "seed draws the shift"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_bad_shift_in_tokens_is_refused():
    layout = TokenLayout(grid=(1, 4, 4))
    with pytest.raises(ValueError, match="shift must be an integer >= 0, got -1"):
        window_attention(*make_qkv(layout), layout=layout, shift=(0, -1, 0))
