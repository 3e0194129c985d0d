"""Regions on any grid: exact area, tiny objects, masks of every kind."""

import numpy as np
import pytest
import torch
from PIL import Image

import foveate
from foveate.attn_processors.modulation.regions import partition, read_region, threshold
from foveate.kernels.coverage import coverage


@pytest.mark.parametrize("grid", [(5, 7), (16, 16), (3, 31)])
def test_box_covers_its_area(grid):
    box = (0.13, 0.2, 0.71, 0.9)
    share = coverage(box, *grid)
    assert share.shape == grid
    torch.testing.assert_close(share.mean().item(), 0.58 * 0.7, rtol=1e-5, atol=1e-6)
    # against counting points
    y, x = (torch.arange(n * 50).add(0.5) / (n * 50) for n in grid)
    inside = ((y > 0.2) & (y < 0.9))[:, None] & ((x > 0.13) & (x < 0.71))
    counted = inside.double().view(grid[0], 50, grid[1], 50).mean((1, 3))
    assert (share - counted).abs().max() < 0.05


@pytest.mark.parametrize(
    ("size", "grid"), [((8, 8), (3, 5)), ((5, 9), (16, 16)), ((64, 64), (8, 8))]
)
def test_mask_keeps_its_area(size, grid):
    mask = torch.rand(size)
    torch.testing.assert_close(coverage(mask, *grid).mean(), mask.mean())
    if size[0] % grid[0] == size[1] % grid[1] == 0:
        want = torch.nn.functional.avg_pool2d(mask[None], size[0] // grid[0])[0]
        torch.testing.assert_close(coverage(mask, *grid), want)


def test_a_tiny_object_keeps_the_cell_it_covers_most():
    share = coverage((0.41, 0.61, 0.43, 0.63), 8, 8)
    inside = threshold(share)
    assert inside.sum() == 1
    assert inside[4, 3]


def test_regions_that_share_a_cell_are_taken_apart():
    tiny, tinier = (0.6, 0.4, 0.62, 0.45), (0.62, 0.4, 0.625, 0.41)
    boxes = [(0, 0, 0.6, 1), tiny, tinier, (0.65, 0, 1, 1)]
    cover = torch.stack([coverage(box, 8, 8).flatten() for box in boxes])
    inside = partition(cover)
    assert inside.sum(0).max() == 1
    # the smallest has the cell that all want, which is all it has; who has more takes the rest
    assert inside.sum(1).tolist() == [39, 0, 1, 24]
    assert inside[2].view(8, 8)[3, 4]
    alone = torch.stack([threshold(one) for one in cover])
    assert torch.equal(partition(cover[[0, 3]]), alone[[0, 3]])


def test_every_kind_of_mask():
    mask = torch.zeros(6, 8)
    mask[2:4, 1:5] = 1
    picture = Image.fromarray((mask.numpy() * 255).astype(np.uint8))
    for one in (mask, mask.bool(), mask.numpy(), mask.numpy() > 0, picture, picture.convert("RGB")):
        torch.testing.assert_close(read_region("a", one), mask)
    boxed = foveate.Scene("a [cat]{a}", regions={"a": (1 / 8, 2 / 6, 5 / 8, 4 / 6)})
    torch.testing.assert_close(coverage(boxed.regions["a"], 6, 8), mask)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ((0.5, 0, 0.5, 1), "box of 'a'"),
        ((0, 0, 64, 64), "in fractions"),
        ((0, 0, 1), "box of 'a'"),
        (torch.zeros(4, 4), "is empty"),
        (torch.full((4, 4), 2.0), r"lie in 0\.\.1"),
        (torch.rand(3, 4, 4), r"must be \[h, w\]"),
        ("left", "box .* or a mask"),
    ],
)
def test_what_is_no_region(region, message):
    with pytest.raises(ValueError, match=message):
        foveate.Scene("a [cat]{a}", regions={"a": region})


def test_regions_are_phrases_too():
    scene = foveate.Scene("a red cat", regions={"red cat": (0, 0, 0.5, 1)})
    assert scene.text("red cat") == "red cat"
