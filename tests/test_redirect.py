"""The redirect: stock processors with their softmax call sites pointed at an operator."""

import copy
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    JointAttnProcessor2_0,
    SanaLinearAttnProcessor2_0,
    SlicedAttnProcessor,
)
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxAttnProcessor,
    FluxIPAdapterAttnProcessor,
)
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from foveate.attn_processors.redirect import redirect, redirected_class
from foveate.attn_processors.special import SPLIT


def leave_dense(q, k, v, *, scale, special):
    return None


def give_zeros(q, k, v, *, scale, special):
    return torch.zeros_like(q)


class Watch:
    """Attends densely and keeps what the call site said."""

    def __init__(self):
        self.seen = []

    def __call__(self, q, k, v, *, scale, special):
        self.seen.append((tuple(q.shape), tuple(k.shape), special))
        return F.scaled_dot_product_attention(q, k, v, scale=scale)


@pytest.mark.parametrize(
    ("stock", "sites"),
    [
        (AttnProcessor2_0, 1),
        (FusedAttnProcessor2_0, 1),
        (JointAttnProcessor2_0, 1),
        (IPAdapterAttnProcessor2_0, 3),
        (FluxAttnProcessor, 1),
        (FluxIPAdapterAttnProcessor, 2),
        (WanAttnProcessor, 2),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_call_sites(stock, sites):
    made = redirected_class(stock)
    assert made.call_sites == sites
    assert issubclass(made, stock)
    assert redirected_class(stock) is made


@pytest.mark.parametrize("stock", [SanaLinearAttnProcessor2_0, SlicedAttnProcessor])
def test_no_call_site(stock):
    with pytest.raises(
        NotImplementedError, match=f"{stock.__name__} has no softmax-attention call"
    ):
        redirected_class(stock)


def test_wrapped_call_is_refused():
    class Wrapped(AttnProcessor2_0):
        def __call__(self, attn, hidden_states):
            return super().__call__(attn, hidden_states)

    with pytest.raises(NotImplementedError, match="Wrapped.__call__ is wrapped or closes over"):
        redirected_class(Wrapped)


class Margin(AttnProcessor2_0):
    def __call__(self, attn, hidden_states, **arguments):
        note = """a string
at the margin"""
        self.seen = note, sys._getframe().f_lineno
        return F.scaled_dot_product_attention(hidden_states, hidden_states, hidden_states)


def test_strings_and_lines_stay_as_they_are():
    x = torch.randn(1, 2, 5, 8)
    stock, ours = Margin(), redirect(Margin(), leave_dense)
    assert torch.equal(ours(None, x), stock(None, x))
    assert ours.seen == stock.seen


def test_globals_and_file_are_the_stock_ones():
    call, stock = redirected_class(FluxAttnProcessor).__call__, FluxAttnProcessor.__call__
    assert call.__globals__ is stock.__globals__
    assert call.__code__.co_filename == stock.__code__.co_filename
    assert call.__code__.co_firstlineno == stock.__code__.co_firstlineno
    assert call.__defaults__ == stock.__defaults__


@pytest.fixture
def plain():
    return Attention(query_dim=16, heads=2, dim_head=8), torch.randn(2, 12, 16)


@pytest.fixture
def joint():
    attention = FluxAttention(query_dim=16, heads=2, dim_head=8, added_kv_proj_dim=16, bias=True)
    return attention, torch.randn(2, 12, 16), torch.randn(2, 5, 16)


def test_plain_attention(plain):
    attention, x = plain
    want = attention(x)
    watch = Watch()
    attention.set_processor(redirect(attention.processor, watch))
    assert torch.equal(attention(x), want)
    assert watch.seen == [((2, 2, 12, 8), (2, 2, 12, 8), None)]
    attention.set_processor(redirect(AttnProcessor2_0(), leave_dense))
    assert torch.equal(attention(x), want)
    attention.set_processor(redirect(AttnProcessor2_0(), give_zeros))
    assert not torch.equal(attention(x), want)


def test_dispatch_attention(joint):
    attention, x, text = joint
    want = attention(x, text)
    watch = Watch()
    attention.set_processor(redirect(attention.processor, watch))
    for got, expected in zip(attention(x, text), want, strict=True):
        assert torch.equal(got, expected)
    # the operator sees [B, H, N, D], although this family holds [B, N, H, D]
    assert watch.seen == [((2, 2, 17, 8), (2, 2, 17, 8), None)]
    attention.set_processor(redirect(FluxAttnProcessor(), leave_dense))
    assert torch.equal(attention(x, text)[0], want[0])
    attention.set_processor(redirect(FluxAttnProcessor(), give_zeros))
    assert not torch.equal(attention(x, text)[0], want[0])


def test_mask_is_told(plain):
    attention, x = plain
    mask = torch.randn(2, 1, 12)
    watch = Watch()
    attention.set_processor(redirect(attention.processor, watch))
    attention(x, attention_mask=mask)
    assert watch.seen[0][2] == "the call carries an attention mask"


def test_masked_call_left_dense_is_stock(plain):
    attention, x = plain
    mask = torch.randn(2, 1, 12)
    want = attention(x, attention_mask=mask)
    attention.set_processor(redirect(attention.processor, leave_dense))
    assert torch.equal(attention(x, attention_mask=mask), want)


def test_context_parallel_is_told(joint):
    attention, x, text = joint
    told = []

    def attend(q, k, v, *, scale, special):
        told.append(special)
        return torch.zeros_like(q)

    attention.set_processor(redirect(attention.processor, attend))
    attention(x, text)
    attention.processor._parallel_config = object()
    attention(x, text)
    assert told == [None, SPLIT]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies(plain, duplicate):
    attention, x = plain
    stock = AttnProcessor2_0()
    stock.note = [1, 2]
    new = duplicate(redirect(stock, give_zeros))
    assert type(new) is redirected_class(AttnProcessor2_0)
    assert new.note == [1, 2]
    attention.set_processor(new)
    zeros = attention(x)
    attention.set_processor(redirect(stock, give_zeros))
    assert torch.equal(attention(x), zeros)


def test_weights_are_shared():
    stock = IPAdapterAttnProcessor2_0(hidden_size=8, cross_attention_dim=4)
    new = redirect(stock, leave_dense)
    assert isinstance(new, torch.nn.Module)
    assert all(a is b for a, b in zip(new.parameters(), stock.parameters(), strict=True))
    assert len(list(new.parameters())) == 2
