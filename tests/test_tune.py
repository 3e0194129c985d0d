"""`foveate tune`: what is picked, what is skipped, and the command from candidates to launches."""

import importlib
import json
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import triton
from triton.runtime.errors import OutOfResources

from triton_interpreter import DEVICE  # isort: skip, before triton
from foveate.kernels.triton import tuned
from foveate.kernels.triton.flash_tiles import Tiles
from foveate.kernels.triton.slots import Slot, spread
from foveate.pipelines.tune.case import Case, Shape
from foveate.pipelines.tune.cases import OPERATORS, cases_of
from foveate.pipelines.tune.tuner import keep, tune

tune_command = importlib.import_module("foveate.cli.tune")
timing = importlib.import_module("foveate.pipelines.bench.timing")

SHIPPED, FAST, SLOW = Tiles(64, 64, 4, 2), Tiles(128, 64, 4, 2), Tiles(32, 64, 4, 2)
SLOT = Slot("flash_forward", "sm_90", 64, "half", "plain", SHIPPED)
SECONDS = {SHIPPED: 2.0, FAST: 1.5, SLOW: 3.0}


class Bench:
    """A case whose calls take the seconds that they are said to, and its stopwatch."""

    def __init__(self, seconds=SECONDS, results=None):
        self.seconds, self.results, self.clock, self.calls = seconds, results or {}, 0.0, 0

    def run(self, tiles):
        self.calls += 1
        self.clock += self.seconds[tiles]
        result = self.results.get(tiles, 1.0)
        if isinstance(result, Exception):
            raise result
        return (torch.full((3,), result),)

    def stopwatch(self, call):
        before = self.clock
        call()
        return self.clock - before

    def tune(self, rounds=3):
        case = Case(slot=SLOT, candidates=[*self.seconds], prepare=lambda: self.run)
        return tune(case, self.stopwatch, rounds)


@pytest.fixture
def run(foveate_command):
    """Runs `foveate tune`; gives (exit status, stdout, stderr)."""
    return partial(foveate_command, "tune")


def test_the_fastest_is_picked():
    found = Bench().tune()
    assert (found.fastest, found.skipped) == (FAST, {})
    assert found.seconds == SECONDS
    assert found.gain == pytest.approx(2 / 1.5)


def test_the_median_counts():
    bench = Bench()
    hiccups = iter([0, 0, 0] + [9, 0, 0] + [0] * 99)

    def stopwatch(call):
        return bench.stopwatch(call) + next(hiccups)

    case = Case(slot=SLOT, candidates=[*SECONDS], prepare=lambda: bench.run)
    assert tune(case, stopwatch, 5).fastest == FAST


def test_all_take_turns():
    bench = Bench()
    bench.tune(rounds=5)
    assert bench.calls == 3 + 5 * 3


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (OutOfResources(300000, 232448, "shared memory"), "OutOfResources: out of resource"),
        (RuntimeError("PassManager::run\nfailed"), "RuntimeError: PassManager::run failed"),
        (1.1, "differs from the shipped tiles by 1.0e-01"),
        (float("nan"), "differs from the shipped tiles by inf"),
    ],
)
def test_what_fails_or_is_wrong_is_skipped(result, reason):
    found = Bench(results={FAST: result}).tune()
    assert found.fastest == SHIPPED
    assert [*found.skipped] == [FAST]
    assert found.skipped[FAST].startswith(reason)
    assert {*found.seconds} == {SHIPPED, SLOW}


def test_shipped_tiles_that_fail_end_it():
    with pytest.raises(RuntimeError, match="illegal address"):
        Bench(results={SHIPPED: RuntimeError("illegal address")}).tune()


def test_other_errors_are_not_hidden():
    with pytest.raises(TypeError):
        Bench(results={FAST: TypeError("a mistake of ours")}).tune()


def test_the_fastest_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "tiles.json"
    monkeypatch.setenv("FOVEATE_TUNE_CACHE", str(path))
    keep(path, SLOT, Bench().tune(), "a GPU")
    assert SLOT.tiles == FAST
    entry = json.loads(path.read_text())[triton.__version__]["sm_90/flash_forward/64/half/plain"]
    assert (entry["milliseconds"], entry["shipped_milliseconds"]) == (1500, 2000)
    assert (entry["torch"], entry["device"]) == (torch.__version__, "a GPU")


def test_candidates_around_the_shipped_tiles():
    found = spread(SHIPPED, [FAST, SHIPPED, FAST])
    other = [Tiles(64, 64, 4, 1), Tiles(64, 64, 4, 3), Tiles(64, 64, 8, 2)]
    assert found == [SHIPPED, FAST, *other]
    assert Tiles(64, 64, 4, 0) not in spread(Tiles(64, 64, 4, 1), [])


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_case_of_an_operator_runs(operator):
    shape = Shape(device=DEVICE, heads=1, grid=(2, 3), text=3)
    cases = [*cases_of(operator, "sm_90", torch.float32, 16, shape)]
    keys = [case.slot.key for case in cases]
    assert len({*keys}) == len(keys) >= 3
    for case in cases:
        assert len(case.candidates) > 2
        results = case.prepare()(case.slot.shipped)
        assert all(x.isfinite().all() and x.abs().max() > 0 for x in results)


def test_cases_of_other_lengths_have_the_same_slots():
    shapes = [
        Shape(device="cpu", grid=grid, text=text) for grid, text in (((8, 8), 0), ((64, 9), 5))
    ]
    for operator in OPERATORS:
        one, other = (cases_of(operator, "sm_90", torch.half, 64, shape) for shape in shapes)
        assert [case.slot for case in one] == [case.slot for case in other]


def test_the_command_on_stand_ins(run, tmp_path, monkeypatch):
    """From candidates to what later launches take, on the interpreter and a clock of its own."""
    if DEVICE != "cpu":
        pytest.skip("tunes the interpreter")
    path = tmp_path / "tiles.json"
    monkeypatch.setenv("FOVEATE_TUNE_CACHE", str(path))
    monkeypatch.setattr(tune_command, "_architecture", lambda *_: "interpreter")
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "stand-in")
    # the second call timed is the fastest
    seconds = iter([3.0, 1.0] + [5.0] * 10_000)
    monkeypatch.setattr(timing, "stopwatch", lambda *_: lambda call: next(seconds))
    monkeypatch.setattr(tune_command, "_ROUNDS", 1)
    options = ["--head-dims", 16, "--dtypes", "float32", "--grid", "2x3", "--heads", 1]
    code, out, _ = run("--kernels", "linear", *options)
    assert code == 0
    assert (
        "[1/5] interpreter/linear_state/16/float32/plain: 1000 ms, shipped 3000 ms (3.00x)" in out
    )
    assert "(1.00x): the shipped tiles" in out
    assert f"5 tuned for interpreter under Triton {triton.__version__}, from {path}" in out
    cases = [*cases_of("linear", "interpreter", torch.float32, 16, Shape(device="cpu"))]
    assert cases[0].slot.tiles == cases[0].candidates[1]
    assert all(case.slot.tiles == case.slot.shipped for case in cases[1:])
    assert tuned.summary("interpreter").startswith("5 tuned")


def test_dry_run(run):
    code, out, _ = run("--dry-run", "--architecture", "sm_90", "--kernels", "flash,local")
    assert code == 0
    assert "sm_90/local_forward/128/half/disc-far" in out
    assert "sm_90/flash_keys/64/half/plain" in out
    assert "linear" not in out
    assert out.count("(shipped)") == 2 * (6 + 3)
    assert f"18 kernels, {out.count('num_warps=')} candidates" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--device", "cpu"],
            "times kernels on a GPU (CUDA or ROCm), got device 'cpu'; foveate tune",
        ),
        (["--device", "cpu", "--dry-run"], "--architecture must say for which, sm_80, sm_86"),
        (["--architecture", "sm_90"], "--architecture goes with --dry-run"),
        (["--dry-run", "--architecture", "sm_70"], "--architecture must be sm_80, sm_86"),
        (["--kernels", "locl"], "--kernels must be of local, foveated"),
        (["--head-dims", "many"], "--head-dims must be sizes such as 64,128; got 'many'"),
        (["--head-dims", "64,192"], "--head-dims must be at most 160"),
        (["--dtypes", "float64"], "--dtypes must be of float32, bfloat16, float16; got 'float64'"),
        (["--dtypes", "float16,bfloat16"], "--dtypes must name one of bfloat16 and float16"),
        (["--grid", "64,32"], "--grid must be one"),
        (["--grid", "1", "--dry-run", "--architecture", "sm_90"], "both sides of the grid >= 2"),
    ],
)
def test_mistakes_are_one_line(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("foveate: ")
    assert err.count("\n") == 1
    assert message in err
