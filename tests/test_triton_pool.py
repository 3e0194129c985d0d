"""Pooled cells in Triton against float64: means, likeness, gradients, cells cut by the border."""

import pytest
import torch
import torch.nn.functional as F

from triton_interpreter import DEVICE  # isort: skip, before triton
from foveate.kernels.triton import pool, pool_forward
from foveate.kernels.triton.pool import pool_cells, tile_statistics, why_not


def cells(x, grid, cell):
    """The tokens of each cell of x [B, H, f*h*w, D], one tensor [B, H, tokens, D] a cell."""
    x = x.unflatten(2, grid)
    starts = [range(0, size, side) for size, side in zip(grid, cell, strict=True)]
    for f in starts[0]:
        for y in starts[1]:
            for a in starts[2]:
                yield x[:, :, f : f + cell[0], y : y + cell[1], a : a + cell[2]].flatten(2, 4)


def means(x, grid, cell):
    return torch.stack([tokens.mean(2) for tokens in cells(x, grid, cell)], 2)


def likeness(x, grid, cell):
    """Mean of the gram matrix of unit tokens."""
    unit = F.normalize(x, dim=-1)
    return torch.stack([(t @ t.mT).mean((-1, -2)) for t in cells(unit, grid, cell)], 2)


def error(x, exact):
    return ((x.double() - exact).norm() / exact.norm()).item()


def tokens(grid, dim, dtype=torch.float32):
    length = grid[0] * grid[1] * grid[2]
    return torch.randn(2, length, 2, dim).to(DEVICE, dtype).transpose(1, 2)


CASES = [
    ((1, 9, 13), (1, 4, 4), 40, torch.float32),
    ((3, 5, 7), (2, 2, 3), 16, torch.float32),
    ((1, 1, 37), (1, 8, 8), 72, torch.float32),
    ((1, 8, 8), (1, 2, 2), 160, torch.bfloat16),
    ((1, 6, 10), (1, 4, 4), 64, torch.float16),
]


@pytest.mark.parametrize(("grid", "cell", "dim", "dtype"), CASES)
def test_means_and_likeness(grid, cell, dim, dtype):
    x = tokens(grid, dim, dtype)
    mean, alike = pool_forward.statistics(x, grid, cell)
    plain = error(means(x, grid, cell), means(x.double(), grid, cell))
    limit = 1e-6 if dtype == torch.float32 else 2 * plain
    assert error(mean, means(x.double(), grid, cell)) <= limit
    assert error(alike, likeness(x.double(), grid, cell)) <= 1e-6
    assert torch.equal(pool_forward.forward(x, grid, cell), mean)


@pytest.mark.parametrize(("grid", "cell", "dim", "dtype"), CASES)
def test_gradient(grid, cell, dim, dtype):
    x = tokens(grid, dim, dtype)
    exact = x.double().requires_grad_()
    out = means(exact, grid, cell)
    grad = torch.randn_like(out).to(dtype)
    (exact,) = torch.autograd.grad(out, exact, grad.double())
    found = pool_forward.backward(grad, x, grid, cell)
    assert error(found, exact) <= {torch.float32: 1e-6, torch.float16: 5e-4}.get(dtype, 4e-3)


def test_likeness_of_equal_and_of_no_tokens():
    x = torch.ones(1, 1, 16, 16, device=DEVICE)
    x[:, :, 8:] = 0.0
    _, alike = pool_forward.statistics(x, (1, 4, 4), (1, 2, 4))
    torch.testing.assert_close(alike, torch.tensor([[[1.0, 0.0]]], device=DEVICE))


def test_fused_projection():
    x = torch.randn(2, 20, 3, 2, 16, device=DEVICE)[:, :, 1].transpose(1, 2)
    found = pool_forward.forward(x, (1, 4, 5), (1, 2, 2))
    assert error(found, means(x.double(), (1, 4, 5), (1, 2, 2))) <= 1e-6


@pytest.fixture(params=["kernels", "torch"])
def path(request, monkeypatch):
    """What the operators run on the CPU: interpreted kernels, or the torch path of other users."""
    if request.param == "torch":
        monkeypatch.setattr(pool, "interprets", lambda: False)


def test_operators(path):
    grid, cell = (1, 5, 6), (1, 2, 4)
    x = tokens(grid, 16).requires_grad_()
    torch.library.opcheck(torch.ops.foveate.pool_forward.default, (x, list(grid), list(cell)))
    torch.library.opcheck(
        torch.ops.foveate.pool_statistics.default, (x.detach(), list(grid), list(cell))
    )
    mean, alike = tile_statistics(x, grid, cell)
    with torch.no_grad():
        torch.testing.assert_close((mean, alike), pool_forward.statistics(x, grid, cell))

    def loss(x):
        return pool_cells(x, grid, cell).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (exact,) = torch.autograd.grad(means(x, grid, cell).square().sum(), x)
    for run in (loss, compiled):
        torch.testing.assert_close(torch.autograd.grad(run(x), x)[0], exact)


def test_refusals():
    x = tokens((1, 4, 5), 16)
    assert why_not(x) == ""
    assert "float64" in why_not(x.double())
    assert "not contiguous" in why_not(x.mT)
    with pytest.raises(ValueError, match=r"grid must be \(f, h, w\) of 20 tokens"):
        pool_cells(x, (1, 4, 4), (1, 2, 2))
    with pytest.raises(ValueError, match="cell must be three sizes"):
        pool_cells(x, (1, 4, 5), (1, 0, 2))
