"""What else people do to a pipeline: one family each here, all in `make conformance`."""

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from foveate.attn_processors import LocalAttnProcessor, apply, status
from neighbour_steps import (
    adapt_image_prompt,
    forget_image_prompt,
    fuse,
    fuse_lora,
    load_lora,
    slice_attention,
    unfuse,
    unfuse_lora,
    unload_lora,
)
from neighbours import LOCAL, NEIGHBOURS, NOT_UNDONE, ORDERS, WORKS, check, put, put_softmax
from neighbours import picture as picture_after
from tiny_families import TinyFamily

# {neighbour: orders that take the operator off a UNet}; status says so, and all others work
LOST = {
    "`fuse_qkv_projections`": {"after", "before, then undone"},
    "attention slicing": set(ORDERS) - {"before"},
    "`set_attn_processor`": {"after"},
    "IP-Adapter": {"after", "before, then undone", "after, then undone"},
    "save and load": {"after"},
}
DENSE = {"attention slicing": {"before"}}
UNDONE_QUICKLY = ("`fuse_qkv_projections`", "LoRA file", "LoRA file, fused")


def cases(is_slow):
    """(name, family, order), for each name the cheapest family and the order of calls first."""
    found = []
    for name, neighbour in NEIGHBOURS.items():
        quick = "flux" if "flux" in neighbour.families and name not in LOST else None
        quick = quick or neighbour.families[0]
        for family in neighbour.families:
            for order in ORDERS if neighbour.undo is not None else ORDERS[:2]:
                is_quick = family == quick and not name.startswith("compiled")
                is_quick = is_quick and (order in ORDERS[:2] or name in UNDONE_QUICKLY)
                if is_slow is not is_quick:
                    ident = f"{name.strip('`')}-{family}-{order}"
                    found.append(pytest.param(name, family, order, id=ident))
    return found


def run(name, family, order):
    end = check(family, NEIGHBOURS[name], order)
    assert end != NOT_UNDONE
    if family == "sd" and order in LOST.get(name, ()):
        assert end.startswith("lost")
    elif family == "sd" and order in DENSE.get(name, ()):
        assert end.startswith("dense")
    elif family == "sd":
        assert end == WORKS


@pytest.mark.parametrize(("name", "family", "order"), cases(is_slow=False))
def test_neighbour(name, family, order):
    run(name, family, order)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family", "order"), cases(is_slow=True))
def test_further(name, family, order):
    run(name, family, order)


def test_lora_fused_and_unloaded_under_the_operator():
    """load, apply, fuse, unload: the operator's picture with the adapter, then without it."""
    want = picture_after("flux", load_lora, put)[0]
    tiny = TinyFamily("flux")
    load_lora(tiny)
    with apply(tiny.pipe, LOCAL):
        for do in (lambda: None, tiny.pipe.fuse_lora, tiny.pipe.unfuse_lora):
            do()
            torch.testing.assert_close(tiny(), want, rtol=1e-4, atol=2e-5)
        unload_lora(tiny)
        assert not status(tiny.pipe).lost
        torch.testing.assert_close(tiny(), picture_after("flux", put)[0], rtol=1e-4, atol=2e-5)
    # fusing and unfusing rounds the weights
    assert torch.equal(tiny(), picture_after("flux", fuse_lora, unfuse_lora)[0])


@pytest.mark.parametrize("order", [("do", "remove", "undo"), ("do", "undo", "remove")])
@pytest.mark.parametrize(
    ("do", "undo"), [(fuse, unfuse), (adapt_image_prompt, forget_image_prompt)]
)
def test_nothing_of_ours_stays_where_diffusers_changes_processors(do, undo, order):
    tiny = TinyFamily("sd")
    dense = tiny()
    handle = apply(tiny.pipe, LOCAL)
    steps = {"do": lambda: do(tiny), "undo": lambda: undo(tiny), "remove": handle.remove}
    for step in order:
        steps[step]()
    assert {type(p) for p in tiny.model.attn_processors.values()} == {AttnProcessor2_0}
    torch.testing.assert_close(tiny(), dense, rtol=1e-5, atol=1e-5)
    tiny.model.set_default_attn_processor()


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
    *_, state, _ = picture_after("sd", put_softmax, slice_attention)
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
