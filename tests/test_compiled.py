"""torch.compile of stock pipelines under `apply`: no graph break, one graph for each shape.

One family here; tests/test_apply.py has the rest of what is quick.
"""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from foveate.attn_processors import FoveatedAttnProcessor, LocalAttnProcessor, apply
from tiny_families import TinyFamily

OTHER_SIZE = {"sd": (32, 48), "flux": (24, 20), "sd3": (24, 20), "qwen": (96, 64), "wan": (64, 96)}
OPERATORS = [LocalAttnProcessor(radius=2), FoveatedAttnProcessor(radius=1, pool=2)]


class Shapes:
    """Forward pre-hook: the shapes that a model is given, outside of any graph."""

    def __init__(self):
        self.seen = set()

    @torch.compiler.disable
    def __call__(self, model, args, kwargs):
        given = (*args, *kwargs.values())
        self.seen.add(tuple(tuple(x.shape) for x in given if isinstance(x, torch.Tensor)))


def run_sizes(tiny):
    height, width = OTHER_SIZE[tiny.name]
    pictures = [tiny(), tiny(height=height, width=width), tiny()]
    assert torch.equal(pictures[0], pictures[2])
    return pictures


@pytest.fixture
def counter():
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHER_SIZE)
def test_whole_model_is_one_graph_for_each_shape(counter, family):
    tiny, shapes = TinyFamily(family), Shapes()
    tiny.model.register_forward_pre_hook(shapes, with_kwargs=True)
    with apply(tiny.pipe, OPERATORS[0]):
        want = run_sizes(tiny)
        tiny.model.compile(backend=counter, fullgraph=True, dynamic=False)
        for one, two in zip(run_sizes(tiny), want, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-5)
    assert counter.frame_count == len(shapes.seen)


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("family", "processor"),
    [
        ("flux", OPERATORS[0]),
        slow("flux", OPERATORS[1]),
        *(slow(family, processor) for family in ("qwen", "wan") for processor in OPERATORS),
    ],
)
def test_repeated_blocks_are_one_graph_for_each_shape(counter, family, processor):
    tiny, shapes = TinyFamily(family), Shapes()
    tiny.model.register_forward_pre_hook(shapes, with_kwargs=True)
    with apply(tiny.pipe, processor):
        want = run_sizes(tiny)
        tiny.model.compile_repeated_blocks(backend=counter, fullgraph=True, dynamic=False)
        for one, two in zip(run_sizes(tiny), want, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-5)
    assert counter.frame_count <= len(shapes.seen) * len(tiny.model._repeated_blocks)
