"""Timing by turns: order, medians, ratios, growth, and the rows made of them."""

from types import SimpleNamespace

import pytest

from foveate.pipelines.bench import operators, timing
from foveate.pipelines.bench.candidate import Candidate, Prepared, exact_dense
from foveate.pipelines.bench.case import Case
from foveate.pipelines.bench.growth import exponent
from foveate.pipelines.bench.own import dense


class FakeClock:
    """Seconds by the name of the call and the round it is in; remembers the order."""

    def __init__(self, seconds):
        self.seconds, self.order = seconds, []

    def __call__(self, call):
        name = call()
        self.order.append(name)
        return self.seconds[name][self.order.count(name) - 1]


def test_candidates_take_turns():
    clock = FakeClock({name: [1.0] * 3 for name in "abc"})
    taken = timing.interleave({n: lambda n=n: n for n in "abc"}, 3, clock, show=False)
    assert clock.order == [*"abc", *"bca", *"cab"]
    assert taken == {name: [1.0] * 3 for name in "abc"}


def test_a_slow_candidate_leaves_after_the_second_round():
    clock = FakeClock({"slow": [30.0] * 5, "fast": [1.0] * 5})
    taken = timing.interleave({n: lambda n=n: n for n in ("slow", "fast")}, 5, clock, show=False)
    assert [len(taken[n]) for n in ("slow", "fast")] == [2, 5]


def test_figures_are_medians():
    assert timing.spread([5.0, 1.0, 100.0, 2.0, 4.0]) == timing.Spread(4.0, 2.0, 5.0, 5)
    assert timing.spread([3.0]) == timing.Spread(3.0, 3.0, 3.0, 1)
    # a machine that slows down tenfold from round to round changes no ratio
    assert timing.ratio([1.0, 10.0, 100.0], [4.0, 40.0, 400.0]) == 4.0
    assert timing.ratio([1.0, 1.0, 1.0], [2.0, 5.0]) == 3.5


def test_a_stopwatch_reads_its_clock_around_the_call():
    times = iter([10.0, 12.5])
    ran = []
    seconds = timing._host_stopwatch(lambda: next(times), wait=lambda: ran.append("wait"))
    assert seconds(lambda: ran.append("call")) == 2.5
    assert ran == ["wait", "call", "wait"]


def test_device_time_is_between_events(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            log.append(f"record on {stream}")

        def synchronize(self):
            log.append("synchronize")

        def elapsed_time(self, end):
            return 250.0 if end is not self else 0.0

    filler = SimpleNamespace(zero_=lambda: log.append("fill"))
    cuda = SimpleNamespace(Event=Event, current_stream=lambda device: f"stream of {device}")
    fake = SimpleNamespace(cuda=cuda, empty=lambda *size, dtype, device: filler, uint8=None)
    monkeypatch.setattr(timing, "torch", fake)
    seconds = timing.stopwatch("cuda:1", threads=1)
    assert seconds(lambda: log.append("call")) == 0.25
    record = "record on stream of cuda:1"
    assert log == ["fill", record, "call", record, "synchronize"]


@pytest.mark.parametrize("power", [1.0, 1.3, 2.0])
def test_exponent_of_a_power_law(power):
    tokens = [1024, 4096, 16384, 65536]
    assert exponent(tokens, [3e-7 * n**power for n in tokens]) == pytest.approx(power)
    noisy = [n**power * factor for n, factor in zip(tokens, (1.1, 0.9, 0.9, 1.1), strict=True)]
    assert exponent(tokens, noisy) == pytest.approx(power, abs=0.05)
    assert exponent([64], [1.0]) is None


def _stand_in(method, impl, attend):
    return Candidate(
        method=method,
        impl=impl,
        needed=1.0,
        visited=None,
        prepare=lambda q, k, v: Prepared(attend),
        exact=exact_dense,
    )


def test_rows_of_operators(monkeypatch):
    clock = FakeClock({"dense (sdpa)": [8.0, 10.0, 12.0], "twice (torch)": [4.0, 5.0, 6.0]})
    case = Case(grid=(4, 4), head_dim=16)
    twice = _stand_in("twice", "torch", exact_dense)
    broken = _stand_in("broken", "torch", lambda q, k, v: q.view(1, 2))

    def interleave(calls, *arguments):
        return timing.interleave({n: lambda n=n: n for n in calls}, 3, clock, show=False)

    monkeypatch.setattr(operators, "interleave", interleave)
    timed, refused = operators.time_operators(case, [dense(case), twice, broken], 3, show=False)
    assert [(row.seconds, row.low, row.high, row.speed) for row in timed] == [
        (10.0, 9.0, 11.0, 1.0),
        (5.0, 4.5, 5.5, 2.0),
    ]
    assert timed[0].flops_per_second == 4 * 2 * 16 * 16 * 16 / 10.0
    assert timed[0].peak_bytes is timed[0].roofline is None
    (only,) = refused
    assert only[:3] == ("broken", "torch", "4x4")
    assert "shape" in only.reason


def test_backward_takes_the_gradients_of_every_input():
    case = Case(grid=(3, 4), heads=1, head_dim=8)
    seen = []

    def attend(*qkv):
        qkv = [x.clone() for x in qkv]
        for name, x in zip("qkv", qkv, strict=True):
            x.register_hook(lambda grad, name=name: seen.append((name, grad.shape)))
        return exact_dense(*qkv)

    hooked = _stand_in("hooked", "torch", attend)
    forward_only = _stand_in("forward only", "torch", lambda q, k, v: exact_dense(q, k, v).detach())
    entries = [dense(case), hooked, forward_only]
    timed, refused = operators.time_operators(case, entries, 2, show=False, backward=True)
    assert [row.method for row in timed] == ["dense", "hooked"]
    assert timed[0].flops_per_second == 7 * 2 * 8 * 12 * 12 / timed[0].seconds
    # the first call and two rounds
    shape = case.qkv()[0].shape
    assert sorted(seen) == sorted([(name, shape) for name in "qkv"] * 3)
    (only,) = refused
    assert only.method == "forward only"
    assert "does not require grad" in only.reason
