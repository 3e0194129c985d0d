"""The laws every processor keeps on every family's stock pipeline, and what a run of them found.

A check raises AssertionError where a law is broken; what it returns is a cell of the table.
"""

import dataclasses
import functools
import logging

import diffusers
import torch

import foveate
from foveate.attn_processors import (
    AgentAttnProcessor,
    BroadcastAttnProcessor,
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
from tiny_families import FAMILIES

# runs with fewer evaluations are not broadcast
BROADCAST_STEPS = 8
# most tiny pipelines are given embeddings
NO_TOKENIZER = "the tiny pipeline has no tokenizer, in which phrases are found; see modulation.md"
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
    """What one column did on one family.

    ran, total: layers in which the operator ran, of the layers it is meant for.
    reasons: why the others of those ran dense, without counts.
    """

    ran: int
    total: int
    reasons: tuple[str, ...]


def snapshot(model):
    processors = {name: module.processor for name, module in attention_layers(model).items()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return processors, weights, dict(model._forward_pre_hooks), dict(model._forward_hooks)


def assert_restored(before, model):
    processors, weights, *hooks = before
    now, now_weights, *now_hooks = snapshot(model)
    assert all(now[name] is processor for name, processor in processors.items()), "processors"
    assert weights.keys() == now_weights.keys(), "names of weights"
    # offloaded weights are meta between calls
    kept = {name: value for name, value in weights.items() if not value.is_meta}
    assert all(torch.equal(now_weights[name], value) for name, value in kept.items()), "weights"
    assert hooks == now_hooks, "hooks"


def is_close(got, want):
    return bool((got - want).abs().max() <= CLOSE * max(1.0, float(want.abs().max())))


def check(tiny, options):
    """The laws of an operator."""
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


def check_broadcast(tiny):
    """`every=1` is bit for bit what lies underneath, `every=2` is not, around two operators."""
    before, stock = snapshot(tiny.model), tiny(steps=BROADCAST_STEPS)
    with apply(tiny.pipe, BroadcastAttnProcessor(SoftmaxAttnProcessor(), every=1)):
        assert torch.equal(tiny(steps=BROADCAST_STEPS), stock), "computing always is stock"
    # sums in another order, over as many steps, in the stock pipeline itself
    drift = float((tiny(batch=2, steps=BROADCAST_STEPS)[:1] - stock).abs().max())
    report = _check_forecast(tiny, SoftmaxAttnProcessor(), stock, drift)
    operator = _operator_of_turn(tiny)
    with apply(tiny.pipe, operator):
        want = tiny(steps=BROADCAST_STEPS)
    with apply(tiny.pipe, BroadcastAttnProcessor(operator, every=1)):
        assert torch.equal(tiny(steps=BROADCAST_STEPS), want), "computing always is the operator"
    _check_forecast(tiny, operator, want, drift)
    assert_restored(before, tiny.model)
    assert torch.equal(tiny(steps=BROADCAST_STEPS), stock), "the picture after remove"
    rows = [row for row in report.companions[0].layers if row.reason != "not selected"]
    reasons = dict.fromkeys(row.reason for row in rows if row.reason)
    return Cell(sum(row.forecast + row.reused > 0 for row in rows), len(rows), tuple(reasons))


def _operator_of_turn(tiny):
    """An operator that is not dense; families take turns."""
    small = [options.small for options in PROCESSORS.values() if options.small is not None]
    return small[list(FAMILIES).index(tiny.name) % len(small)]


def _check_forecast(tiny, operator, always, drift):
    """`always` is the picture where every step computes."""
    with apply(tiny.pipe, BroadcastAttnProcessor(operator, every=2)) as handle:
        got = tiny(steps=BROADCAST_STEPS)
        report = handle.report()
        assert got.isfinite().all(), "finite"
        assert not is_close(got, always), "forecasts differ from what they stand for"
        one = tiny(batch=2, steps=BROADCAST_STEPS)[:1]
        assert is_close(one, got) or (one - got).abs().max() <= 2 * drift, "batch of one equals two"
    skipped = {row.layer: row.forecast + row.reused for row in report.companions[0].layers}
    for row in report.layers:
        calls = row.seen + skipped[row.layer]
        assert row.kind in LEFT_ALONE or row.reason or calls == report.forwards, "every call told"
    return report


def check_modulate(tiny):
    """Factors of 1 change nothing, bit for bit; others change every layer that they act in."""
    before, stock = snapshot(tiny.model), tiny()
    kinds = tiny.expected.kinds
    total = sum(kinds.get(kind, 0) for kind in ("self", "cross", "joint"))
    try:
        with foveate.modulate(tiny.pipe, _modulations(1.0)):
            assert torch.equal(tiny(), stock), "factors of 1, bit for bit"
    except NotImplementedError as error:
        assert_restored(before, tiny.model)
        name = type(tiny.model).__name__
        return Cell(0, total, (str(error).partition(". ")[0].replace(name, "this model"),))
    except ValueError:
        if tiny.pipe.tokenizer is not None:
            raise
        return Cell(0, total, (NO_TOKENIZER,))
    with foveate.modulate(tiny.pipe, _modulations(8.0)) as run:
        got = tiny()
        rows = run.explain().layers
        assert is_close(tiny(batch=2)[:1], got), "batch of one equals batch of two"
    assert got.isfinite().all(), "finite"
    assert not is_close(got, stock), "a modulation changes the picture"
    assert_restored(before, tiny.model)
    assert torch.equal(tiny(), stock), "the picture after remove"
    return Cell(sum(bool(row.did) for row in rows), total, ())


def _modulations(factor):
    scene = foveate.Scene("a cat", phrases=("cat",))
    return [foveate.Emphasize(scene, {"cat": factor}), foveate.SelfTemperature(factor)]


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


def quiet():
    """No warnings: what runs dense is in the table, and diffusers' are about tiny models."""
    diffusers.utils.logging.set_verbosity_error()
    logging.getLogger("foveate").setLevel(logging.ERROR)


COLUMNS = {
    **{name: functools.partial(check, options=options) for name, options in PROCESSORS.items()},
    "broadcast": check_broadcast,
    "modulate": check_modulate,
}
