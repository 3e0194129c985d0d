"""What else people do to a pipeline: one family each here, all in `make conformance`."""

import importlib.util

import pytest
import torch

from foveate.attn_processors import LocalAttnProcessor, SoftmaxAttnProcessor, apply, status
from neighbours import NEIGHBOURS, WORKS, check_after, check_before, put, slice_attention
from neighbours import picture as picture_after
from tiny_families import TinyFamily

LOST = {"`fuse_qkv_projections`", "attention slicing", "`set_attn_processor`", "IP-Adapter"}
SLOW = ("compiled blocks",)


def cases(is_slow):
    for name, neighbour in NEIGHBOURS.items():
        if name == "LoRA":
            mark = pytest.mark.skipif(
                importlib.util.find_spec("peft") is None, reason="peft is not installed"
            )
        else:
            mark = ()
        for index, family in enumerate(neighbour.families):
            if (name in SLOW or index > 0) == is_slow:
                yield pytest.param(name, family, marks=mark, id=f"{name.strip('`')}-{family}")


def check(name, family):
    before = check_before(family, NEIGHBOURS[name])
    after = check_after(family, NEIGHBOURS[name])
    if family == "sd" and name in LOST:
        assert after.startswith("lost")
    elif family == "sd" and name != "save and load":
        assert (before, after) == (WORKS, WORKS)


@pytest.mark.parametrize(("name", "family"), cases(is_slow=False))
def test_neighbour(name, family):
    check(name, family)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family"), cases(is_slow=True))
def test_further_family(name, family):
    check(name, family)


# status


def test_status_of_a_pipeline_as_it_is():
    tiny = TinyFamily("flux")
    assert str(status(tiny.pipe)) == "no foveate operator on this model: call foveate.apply"
    with apply(tiny.pipe, LocalAttnProcessor(radius=2), layers="transformer_blocks.*"):
        state = status(tiny.model)
        assert [row.layer for row in state.layers] == ["transformer_blocks.0.attn"]
        assert not state.lost
        assert str(state) == "LocalAttnProcessor(radius=2): in place in 1 of 1 layers"
    assert status(tiny.pipe).layers == ()


def test_status_of_the_stock_way():
    tiny = TinyFamily("flux")
    tiny.model.set_attn_processor(LocalAttnProcessor(radius=2))
    assert [row.replaced_by for row in status(tiny.pipe).layers] == [None, None]


def test_status_names_what_took_the_place():
    *_, state, _ = picture_after("sd", put(SoftmaxAttnProcessor()), slice_attention)
    assert {row.replaced_by for row in state.lost} == {"SlicedAttnProcessor"}
    assert len(state.lost) == 7
    said = str(state)
    assert "in place in 0 of 7 layers" in said
    assert "attn1 and 6 more hold SlicedAttnProcessor: " in said
    assert "has no softmax-attention call" in said


def test_status_needs_a_pipeline():
    with pytest.raises(ValueError, match="status needs a diffusers pipeline or its denoiser"):
        status("a pipeline")


def test_processor_that_diffusers_made_of_our_class():
    """Loading an adapter calls `processor.__class__()`: that is the stock processor, for us too."""
    tiny = TinyFamily("flux")
    dense = tiny()
    with apply(tiny.pipe, LocalAttnProcessor(radius=2)):
        want = tiny()
        remade = {name: type(p)() for name, p in tiny.model.attn_processors.items()}
        tiny.model.set_attn_processor(remade)
        assert torch.equal(tiny(), dense)
        assert len(status(tiny.pipe).lost) == 2
    with apply(tiny.pipe, LocalAttnProcessor(radius=2)):
        assert torch.equal(tiny(), want)
    assert torch.equal(tiny(), dense)
