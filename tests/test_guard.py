"""Outputs that are not finite: the layer goes dense at once, says so, and nobody else notices."""

import dataclasses
import logging

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from foveate.attn_processors import LocalAttnProcessor, apply
from foveate.attn_processors.base import AttnProcessor
from foveate.attn_processors.guard import IN_GRAPH, INPUTS, OUTPUT, Guard, is_finite
from foveate.kernels import TokenLayout, local_keys
from tiny_pipelines import Tiny

LOGGER = "foveate.attn_processors.report"
FIRST = "transformer_blocks.0.attn"
LOCAL = LocalAttnProcessor(radius=3)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class OverflowAttnProcessor(AttnProcessor):
    """Local attention with one infinite element; `in_graph` only where it is compiled."""

    value: float = torch.inf
    in_graph: bool = False
    calls: list = dataclasses.field(default_factory=list)

    def attend(self, q, k, v, *, layout, scale):
        out = LOCAL.attend(q, k, v, layout=layout, scale=scale)
        if self.in_graph and not torch.compiler.is_compiling():
            return out
        if not torch.compiler.is_compiling():
            self.calls.append(layout)
        return torch.cat((out[..., :-1], torch.full_like(out[..., -1:], self.value)), -1)

    def count_keys(self, layout):
        return local_keys(layout, 3)


@pytest.fixture
def flux():
    return Tiny("flux")


@pytest.fixture
def counter():
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


def warned(caplog):
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_broken_operator_is_dense_from_its_first_call(flux, caplog, value):
    want = flux(steps=3)
    broken = OverflowAttnProcessor(value=value)
    with caplog.at_level(logging.WARNING, LOGGER), apply(flux.pipe, broken) as handle:
        assert torch.equal(flux(steps=3), want)
        assert torch.equal(flux(flux.sizes[1], steps=3), Tiny("flux")(flux.sizes[1], steps=3))
    assert len(broken.calls) == 2  # each of two layers once, in neither size again
    rows = handle.report().layers
    assert [(r.operator, r.forwards, r.dense_forwards) for r in rows] == [("dense", 0, 3)] * 2
    assert {row.reason for row in rows} == {f"{OUTPUT} (3x)"}
    assert warned(caplog) == [f"{FIRST} runs dense: {OUTPUT} (further layers: see report())"]


def test_other_layers_keep_their_operator(flux):
    with apply(flux.pipe, LOCAL, layers="single*"):
        want = flux()
    with apply(flux.pipe, {"single*": LOCAL, "*": OverflowAttnProcessor()}) as handle:
        assert torch.equal(flux(), want)
    assert [row.operator for row in handle.report().layers] == ["dense", "local"]


def test_a_layout_that_comes_later_is_looked_at_too(flux):
    first, second = flux.sizes

    class Late(OverflowAttnProcessor):
        def attend(self, q, k, v, *, layout, scale):
            is_late = layout.grid == (1, 12, 10)
            inner = super() if is_late else LOCAL
            return inner.attend(q, k, v, layout=layout, scale=scale)

    dense = flux(second)
    with apply(flux.pipe, LOCAL):
        local = flux(first)
    with apply(flux.pipe, Late()):
        assert torch.equal(flux(first), local)
        assert torch.equal(flux(second), dense)


def test_a_broken_layer_gets_its_own_projections_back(flux):
    class Projecting(OverflowAttnProcessor):
        has_projections = True

        def project(self, attn):
            self.calls.append("project")
            return attn

    broken = Projecting()
    with apply(flux.pipe, broken):
        flux(steps=3)
    assert broken.calls.count("project") == 2  # of two layers, in the first step only


def test_strict_raises_and_leaves_nothing(flux):
    stock = dict(flux.model.attn_processors)
    with (
        pytest.raises(NotImplementedError, match=rf"{FIRST}: {OUTPUT}"),
        apply(flux.pipe, OverflowAttnProcessor(), strict=True),
    ):
        flux()
    assert all(flux.model.attn_processors[name] is one for name, one in stock.items())


def test_a_model_that_is_broken_itself_is_not_blamed_on_the_operator(flux, caplog):
    with torch.no_grad():
        flux.model.transformer_blocks[0].attn.to_q.weight[0, 0] = torch.inf
    with caplog.at_level(logging.WARNING, LOGGER), apply(flux.pipe, LOCAL) as handle:
        flux(steps=2)
    rows = handle.report().layers
    assert {(r.operator, r.forwards, r.reason) for r in rows} == {
        ("local+dense", 1, f"{INPUTS} (1x)")
    }
    assert len(warned(caplog)) == 1


def test_the_next_apply_looks_anew(flux):
    broken = OverflowAttnProcessor()
    with apply(flux.pipe, broken):
        flux()
    broken.value = 0.0
    with apply(flux.pipe, broken) as handle:
        flux()
    assert {row.operator for row in handle.report().layers} == {"overflow"}


def test_outputs_are_looked_at_once_a_layout():
    guard, layouts = Guard(), [TokenLayout(grid=(1, 2, 3)), TokenLayout(grid=(1, 3, 2))]
    good, bad = torch.randn(1, 1, 6, 4), torch.full((1, 1, 6, 4), torch.nan)
    assert guard.why_not(layouts[0], good, [good]) is None
    # never again, so that a GPU is not waited for
    assert guard.why_not(layouts[0], bad, [good]) is None
    assert guard.why_not(layouts[1], bad, [good]) == guard.broken == OUTPUT


@pytest.mark.parametrize(
    ("value", "finite"),
    [
        (torch.ones(2), True),
        ((torch.ones(2), torch.tensor([1.0, torch.nan])), False),
        ({"sample": torch.tensor([torch.inf])}, False),
        ([torch.ones(2), None], True),
        (torch.empty(2, device="meta"), True),
    ],
    ids=str,
)
def test_is_finite(value, finite):
    assert is_finite(value) is finite


# torch.compile


@pytest.mark.parametrize("how", ["model", "blocks"])
def test_a_compiled_model_finds_its_broken_layer(flux, counter, caplog, how):
    with apply(flux.pipe, LOCAL, layers="single*"):
        want = flux(steps=2)
    rules = {"single*": LOCAL, "*": OverflowAttnProcessor()}
    with caplog.at_level(logging.WARNING, LOGGER), apply(flux.pipe, rules) as handle:
        if how == "model":
            flux.model.compile(backend=counter, fullgraph=True)
        else:
            flux.model.compile_repeated_blocks(backend=counter, fullgraph=True)
        assert torch.allclose(flux(steps=2), want, atol=1e-5)
    rows = handle.report().layers
    assert [(r.operator, r.forwards) for r in rows] == [("dense", 0), ("local", 2)]
    assert rows[0].reason == f"{OUTPUT} (2x)"
    assert len(warned(caplog)) == 1


def test_numbers_that_only_a_graph_breaks(flux, counter):
    want = flux(steps=2)
    with apply(flux.pipe, LOCAL):
        first = flux(steps=1)
    with apply(flux.pipe, OverflowAttnProcessor(in_graph=True)) as handle:
        flux.model.compile(backend=counter, fullgraph=True)
        assert torch.allclose(flux(steps=1), first, atol=1e-5)  # the forward that ran again
        assert torch.allclose(flux(steps=2), want, atol=1e-5)
    assert {row.reason for row in handle.report().layers} == {f"{IN_GRAPH} (2x)"}
