"""`foveate bench`: whole runs, the files and tables they write, and one line for every mistake."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
from PIL import Image

from foveate.kernels import TokenLayout, local_keys
from foveate.pipelines.bench import models, tables
from foveate.pipelines.bench.candidate import Refused
from foveate.pipelines.bench.numerics import Deviation


@pytest.fixture
def run(foveate_command):
    """Runs `foveate bench`; gives (exit status, stdout, stderr)."""
    return partial(foveate_command, "bench")


def test_tables_leave_out_what_is_empty():
    rows = [
        Deviation(
            grid="8x8", tokens=64, method=m, impl="torch", scale=s, relative_rms=s / 100, worst=1.0
        )
        for m in ("dense", "local")
        for s in (1.0, 4.0)
    ]
    assert tables.numerics_table(rows).splitlines() == [
        "| grid | method | by    | scale 1 | scale 4 |",
        "| ---- | ------ | ----- | ------- | ------- |",
        "| 8x8  | dense  | torch | 1.0e-02 | 4.0e-02 |",
        "| 8x8  | local  | torch | 1.0e-02 | 4.0e-02 |",
    ]
    refused = [Refused("a", "x", "8x8", "no"), Refused("a", "x", "9x9", "no")]
    assert tables.refused_list(refused) == "- x (a; 8x8, 9x9): no"


def test_bench_end_to_end(run, tmp_path):
    page = tmp_path / "page.md"
    begin, end = (f"<!-- operators-float32-cpu-1-thread: {edge} -->" for edge in ("begin", "end"))
    page.write_text(f"top\n{begin}\nold\n{end}\nend\n")
    shape = ["--grid", "8,12x16", "--radius", "2", "--heads", 1, "--head-dim", 16, "--no-flex"]
    out = tmp_path / "figures"
    code, printed, _ = run(
        *shape, "--rounds", 2, "--threads", 1, "--device", "cpu", "--out", out, "--page", page
    )
    assert code == 0
    figures = json.loads((out / "operators-float32-cpu-1-thread.json").read_text())
    assert figures["about"]["threads"] == 1
    assert figures["about"]["dtype"] == "float32"
    assert figures["about"]["measured"] is True
    own = [row for row in figures["rows"] if row["impl"] in ("sdpa", "torch")]
    assert [row["grid"] for row in own] == ["8x8"] * 8 + ["12x16"] * 8
    methods = ["dense", "local, radius 2", "foveated, radius 2, 1 level"]
    assert [row["method"] for row in own[:3]] == methods
    layout = TokenLayout(grid=(1, 8, 8))
    assert (own[1]["needed"], own[1]["visited"]) == local_keys(layout, 2)
    for row in own:
        assert 0 < row["low"] <= row["seconds"] <= row["high"]
        assert row["rounds"] == 2
    grown = [row["method"] for row in figures["growth"] if row["impl"] in ("sdpa", "torch")]
    assert sorted(grown) == sorted(row["method"] for row in own[:8])
    assert figures["growth"][0]["from_tokens"] == 64
    with Image.open(out / "operators-float32-cpu-1-thread.png") as plot:
        assert plot.width > 400
    text = page.read_text()
    assert text.startswith("top\n<!--")
    assert text.endswith("-->\nend\n")
    assert "old" not in text
    assert "| 12x16 | local, radius 2 " in text
    assert "![time and speed over tokens](figures/operators-float32-cpu-1-thread.png)" in text
    assert "| 12x16 | local, radius 2 " in printed


def test_backward_from_the_command_line(run, tmp_path):
    shape = ["--grid", "8", "--radius", "2", "--heads", 1, "--head-dim", 16, "--no-flex"]
    clock = ["--rounds", 2, "--threads", 1, "--device", "cpu"]
    code, printed, _ = run("--backward", *shape, *clock, "--out", tmp_path)
    assert code == 0
    assert "0 text tokens; forward and backward." in printed
    figures = json.loads((tmp_path / "backward-float32-cpu-1-thread.json").read_text())
    assert figures["about"]["backward"] is True
    methods = [row["method"] for row in figures["rows"] if row["impl"] in ("sdpa", "torch")]
    assert methods[0] == "dense"
    assert {"local, radius 2", "foveated, radius 2, 1 level", "linear, elu"} <= {*methods}


@pytest.mark.gpu
def test_bench_on_a_gpu(run, tmp_path):
    shape = ["--grid", "16", "--radius", "4", "--heads", 2, "--head-dim", 64, "--rounds", 2]
    code, printed, _ = run(*shape, "--no-flex", "--device", "cuda", "--out", tmp_path)
    assert code == 0
    assert "within twice the error" in printed
    (path,) = tmp_path.glob("operators-*.json")
    rows = json.loads(path.read_text())["rows"]
    assert {"sdpa", "torch", "triton"} <= {row["impl"] for row in rows}
    assert all(row["peak_bytes"] >= 2 * 256 * 64 * 2 for row in rows)


def test_numerics_from_the_command_line(run, tmp_path):
    shape = ["--grid", "8", "--radius", "2", "--heads", 1, "--head-dim", 16, "--no-flex"]
    code, printed, _ = run("--numerics", *shape, "--device", "cpu", "--out", tmp_path)
    assert code == 0
    assert "within twice the error" in printed
    (path,) = tmp_path.glob("numerics-float32-cpu-*.json")
    figures = json.loads(path.read_text())
    assert figures["failures"] == []
    assert {row["scale"] for row in figures["rows"]} == {1.0, 4.0, 16.0}


def test_wrong_numbers_are_exit_status_1(run, monkeypatch):
    monkeypatch.setattr(
        "foveate.pipelines.bench.parts.failures", lambda rows, refused: ["local is off"]
    )
    shape = ["--grid", "8", "--radius", "2", "--head-dim", 16, "--no-flex", "--device", "cpu"]
    code, printed, _ = run("--numerics", *shape)
    assert code == 1
    assert "- WRONG: local is off" in printed


def test_plan_from_the_command_line(run, tmp_path):
    code, printed, _ = run("--plan", "h100", "--grid", 64, "--radius", 8, "--out", tmp_path)
    assert code == 0
    assert "A model of the H100, not a measurement" in printed
    figures = json.loads((tmp_path / "plan-h100.json").read_text())
    assert figures["about"]["measured"] is False
    assert (figures["about"]["heads"], figures["about"]["text"]) == (24, 512)
    local = figures["rows"][1]
    assert round(local["visited"]) - 512 == 484  # 8 x 8 queries by 8 x 8 keys
    assert not list(tmp_path.glob("*.png"))


def test_steps_of_models(run, monkeypatch):
    def step_costs(pipe, methods, prompt, *, height, width, call, repeats, title):
        costs = {"tokens": 16, "keys": 4.0, "largest_tensor": 10}
        return [
            SimpleNamespace(method=method, seconds=8.0 / (1 + i), **costs)
            for i, method in enumerate(methods)
        ]

    monkeypatch.setattr(models, "step_costs", step_costs)
    monkeypatch.setattr(models, "load_shapes", lambda name: SimpleNamespace(to=lambda device: name))
    code, printed, _ = run("--pipelines", "sd:64,flux:128", "--radius", 4, "--device", "cpu")
    assert code == 0
    rows = [line.split() for line in printed.splitlines() if line.startswith("| shapes-")]
    assert [row[1] for row in rows] == ["shapes-sd"] * 4 + ["shapes-flux"] * 4
    assert [row[-8] for row in rows[:2]] == ["8.00", "4.00"]
    assert "2.0x" in rows[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "big"], "--grid must be sides in tokens such as 32,64,128x96; got 'big'"),
        (["--grid", "0"], "--grid must be"),
        (["--grid", "8,8x8"], "--grid names one twice"),
        (["--radius", "8,-1"], "--radius must be such as 8,16; got '8,-1'"),
        (["--heads", "0"], "heads must be >= 1, got 0"),
        (["--head-dim", "-3"], "head-dim must be >= 1, got -3"),
        (["--batch", "0"], "batch must be >= 1"),
        (["--rounds", "0"], "rounds must be >= 1"),
        (["--threads", "0"], "threads must be >= 1"),
        (["--text", "-1"], "text must be >= 0"),
        (["--dtype", "int8"], "--dtype must be float32, bfloat16, float16, got 'int8'"),
        (["--device", "abacus"], "--device must be"),
        (["--plan", "Voodoo2"], "--plan must be A100, H100, H200, B200, 4090, 5090, MI300X"),
        (["--pipelines", "sd"], "--pipelines must be such as sd:512,flux:1024; got 'sd'"),
        (["--backward", "--numerics"], "--backward times operators, it does not go with --numeri"),
        (["--page", "page.md"], "--page needs --out"),
        (["--page", "page.md", "--out", "x"], "--page names a file that does not exist"),
        (["--page", "empty.md", "--out", "x"], "lacks the markers <!-- operators-float32-cpu-"),
        (["--out", "empty.md"], "--out must be a folder, got the file empty.md"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.md").write_text("")
    device = [] if "--device" in arguments else ["--device", "cpu"]
    code, out, err = run(*device, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("foveate: ")
    assert err.count("\n") == 1
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["empty.md"]
