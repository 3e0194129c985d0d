"""Token layouts: order, counts, hashing, refusals."""

import pytest
import torch

from foveate.kernels import Segment, TokenLayout


def test_text_comes_first_then_grid_then_extra():
    layout = TokenLayout(text=3, grid=(1, 2, 4), extra=(Segment(2), Segment(6, grid=(1, 2, 3))))
    assert (layout.num_grid, layout.num_context, layout.num_tokens) == (8, 11, 19)
    assert layout.grid_slice == slice(3, 11)


def test_text_may_follow_the_grid():
    layout = TokenLayout(text=3, grid=(1, 2, 4), text_first=False, extra=(Segment(2),))
    x = torch.arange(layout.num_tokens).view(1, 1, -1, 1)
    assert layout.grid_of(x).flatten().tolist() == list(range(8))
    assert layout.context_of(x).flatten().tolist() == [8, 9, 10, 11, 12]


@pytest.mark.parametrize("text_first", [True, False])
def test_join_undoes_the_split(text_first):
    layout = TokenLayout(text=3, grid=(2, 2, 3), text_first=text_first, extra=(Segment(4),))
    x = torch.randn(2, 3, layout.num_tokens, 5)
    assert torch.equal(layout.join(layout.grid_of(x), layout.context_of(x)), x)


def test_coords_are_in_raster_order():
    coords = TokenLayout(grid=(2, 3, 4)).coords()
    assert coords[0].tolist() == [0, 0, 0]
    assert coords[1 * 12 + 2 * 4 + 3].tolist() == [1, 2, 3]


def test_equal_layouts_share_a_hash():
    one, two = TokenLayout(text=1, grid=[1, 2, 3]), TokenLayout(text=1, grid=(1, 2, 3))
    assert one == two
    assert len({one, two, TokenLayout(text=1, grid=(1, 3, 2))}) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": -1}, "TokenLayout.text"),
        ({"text": 1.5}, "TokenLayout.text"),
        ({"grid": (4, 4)}, r"\(1, rows, columns\)"),
        ({"grid": (1, 0, 4)}, "TokenLayout.grid"),
        ({"extra": (5,)}, "Segment"),
    ],
)
def test_a_bad_layout_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TokenLayout(**options)


def test_a_bad_segment_is_refused():
    with pytest.raises(ValueError, match="Segment.length"):
        Segment(0)
    with pytest.raises(ValueError, match="must hold length=5"):
        Segment(5, grid=(1, 2, 2))
