"""The fast path makes no tensor of N x N elements (the largest grows as N does) and no float64."""

import pytest
import torch

from foveate.kernels import (
    TokenLayout,
    agent_attention,
    foveated_attention,
    hybrid_attention,
    linear_attention,
    local_attention,
    neighborhood_attention,
    window_attention,
)
from oracles import LargestTensor, NoFloat64, make_qkv


def largest(operator, side, requires_grad=False, **options):
    """Elements of the largest storage while `operator` runs on a side x side grid."""
    layout = TokenLayout(text=7, grid=(1, side, side))
    qkv = make_qkv(layout, heads=1, dtype=torch.float32, requires_grad=requires_grad)
    with LargestTensor() as log:
        out = operator(*qkv, layout=layout, **options)
        if requires_grad:
            out.sum().backward()
    return log.elements


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        (local_attention, {"radius": 3}),
        (foveated_attention, {"radius": 3, "levels": 1}),
        (foveated_attention, {"radius": 3, "pool": 2, "levels": 2}),
        (foveated_attention, {"radius": 3, "mass": False, "partition": False}),
        (local_attention, {"radius": [3]}),
        (neighborhood_attention, {"kernel_size": (1, 5, 5), "dilation": (1, 2, 1)}),
        (window_attention, {"window_size": (1, 8, 8), "shift": (0, 4, 4)}),
        (agent_attention, {"agents": 64}),
    ],
)
def test_the_largest_tensor_is_linear_in_tokens(operator, options):
    small, large = (largest(operator, side, **options) for side in (64, 128))
    assert large <= 4.4 * small
    assert large < 128**4 / 50


def test_gradients_stay_far_below_n_by_n():
    assert largest(local_attention, 64, requires_grad=True, radius=3) < 64**4 / 20


def test_the_log_sees_a_dense_score_matrix():
    layout = TokenLayout(grid=(1, 32, 32))
    with LargestTensor() as log:
        local_attention(*make_qkv(layout, heads=1), layout=layout, radius=3, impl="reference")
    assert log.elements >= 32**4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "operator",
    [
        agent_attention,
        foveated_attention,
        hybrid_attention,
        linear_attention,
        local_attention,
        neighborhood_attention,
        window_attention,
    ],
)
def test_float64_is_not_needed(operator, dtype):
    layout = TokenLayout(text=3, grid=(1, 37, 31))  # that no cell or window divides
    qkv = make_qkv(layout, dtype=dtype)
    with NoFloat64():
        assert operator(*qkv, layout=layout).dtype == dtype
