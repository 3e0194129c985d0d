"""The laws every processor keeps on every family's stock pipeline, and what a run of them found.

`check` raises AssertionError where a law is broken; what it returns is a cell of the table.
"""

import collections
import dataclasses
import logging

import torch

from foveate.attn_processors import (
    AgentAttnProcessor,
    FoveatedAttnProcessor,
    LinearAttnProcessor,
    LocalAttnProcessor,
    NeighborhoodAttnProcessor,
    SoftmaxAttnProcessor,
    WindowAttnProcessor,
    apply,
)
from foveate.attn_processors.layouts import LEFT_ALONE, attention_layers
from probes import ZeroAttnProcessor

# of a stock picture: what a changed order of sums may do to it
CLOSE = 2e-5


@dataclasses.dataclass(frozen=True)
class Options:
    """One operator: small options, which change the picture, and options that cover the grid.

    wide is None where an operator has no dense limit; small is None where it is dense itself.
    """

    small: object
    wide: object


PROCESSORS = {
    "softmax": Options(None, SoftmaxAttnProcessor()),
    "local": Options(LocalAttnProcessor(radius=2), LocalAttnProcessor(radius=64)),
    "foveated": Options(FoveatedAttnProcessor(radius=1, pool=2), FoveatedAttnProcessor(radius=64)),
    "linear": Options(LinearAttnProcessor(), None),
    "agent": Options(AgentAttnProcessor(agents=4), AgentAttnProcessor(agents=4096)),
    "neighborhood": Options(
        NeighborhoodAttnProcessor(kernel_size=(1, 3, 3)),
        NeighborhoodAttnProcessor(kernel_size=(64, 64, 64)),
    ),
    "window": Options(
        WindowAttnProcessor(window_size=(1, 2, 3)), WindowAttnProcessor(window_size=(64, 64, 64))
    ),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """What one processor did on one family.

    ran, total: layers in which the operator ran, of the layers it is meant for.
    reasons: why the others of those ran dense, without counts.
    """

    ran: int
    total: int
    reasons: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class LeftAlone:
    """Layers of one kind that no operator runs in."""

    kind: str
    layers: int


def snapshot(model):
    processors = {name: module.processor for name, module in attention_layers(model).items()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return processors, weights, dict(model._forward_pre_hooks), dict(model._forward_hooks)


def assert_restored(before, model):
    processors, weights, *hooks = before
    now, now_weights, *now_hooks = snapshot(model)
    assert all(now[name] is processor for name, processor in processors.items()), "processors"
    assert weights.keys() == now_weights.keys(), "names of weights"
    assert all(torch.equal(now_weights[name], value) for name, value in weights.items()), "weights"
    assert hooks == now_hooks, "hooks"


def is_close(got, want):
    return bool((got - want).abs().max() <= CLOSE * max(1.0, float(want.abs().max())))


def check(tiny, options):
    """Runs the laws for one operator; returns its cell."""
    before, stock = snapshot(tiny.model), tiny()
    report = _check_small(tiny, stock, options.small) if options.small is not None else None
    if options.wide is not None:
        wide = _check_wide(tiny, stock, options.wide)
        report = wide if report is None else report
    assert_restored(before, tiny.model)
    assert torch.equal(tiny(), stock), "the picture after remove"
    return _cell(tiny, report)


def _check_small(tiny, stock, processor):
    with apply(tiny.pipe, processor) as handle:
        got = tiny()
        report = handle.report()
        _check_report(tiny, report)
        assert got.isfinite().all(), "finite"
        if any(row.forwards for row in report.layers):
            assert not is_close(got, stock), "a small window differs from dense"
        both = tiny(batch=2)
        assert is_close(both[:1], got), "batch of one equals batch of two"
        assert not torch.equal(both[0], both[1]), "two seeds give two pictures"
    return report


def _check_wide(tiny, stock, processor):
    with apply(tiny.pipe, processor) as handle:
        got = tiny()
    report = handle.report()
    _check_report(tiny, report)
    if isinstance(processor, SoftmaxAttnProcessor):
        assert torch.equal(got, stock), "identity, bit for bit"
    assert is_close(got, stock), "options that cover the grid equal dense"
    return report


def check_zero(tiny):
    """An operator of zeros changes the picture wherever it runs, so that identity is not empty."""
    stock = tiny()
    with apply(tiny.pipe, ZeroAttnProcessor()) as handle:
        got = tiny()
    if any(row.forwards for row in handle.report().layers):
        assert not is_close(got, stock), "an operator of zeros changes the picture"


def _check_report(tiny, report):
    assert [row.layer for row in report.layers] == list(attention_layers(tiny.model)), "layers"
    for row in report.layers:
        assert row.operator != "-", f"{row.layer} was seen"
        assert row.reason or (row.forwards == report.forwards), f"{row.layer} has its reason"
        if row.kind in LEFT_ALONE:
            assert (row.operator, row.reason) == ("dense", LEFT_ALONE[row.kind])


def _cell(tiny, report):
    rows = [row for row in report.layers if row.kind not in LEFT_ALONE]
    reasons = {row.reason.partition(" (")[0]: None for row in rows if row.reason}
    return Cell(sum(row.forwards > 0 for row in rows), len(rows), tuple(reasons))


def left_alone(tiny):
    counts = collections.Counter(tiny.expected.kinds)
    return [LeftAlone(kind, counts[kind]) for kind in LEFT_ALONE if counts[kind]]


def quiet():
    """Warnings of layers that run dense are in the table."""
    logging.getLogger("foveate").setLevel(logging.ERROR)
