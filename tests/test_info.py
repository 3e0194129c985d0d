"""`foveate info`: every implementation is tried, what is wrong is found, the rest says why not."""

import importlib
import json

import pytest
import torch
import triton

from foveate import kernels
from foveate.kernels import local_attention
from foveate.kernels.triton import tuned
from foveate.kernels.triton.device import target
from foveate.pipelines.bench import probe as probe_module
from foveate.pipelines.bench.probe import CANNOT, IMPLS, OK, WRONG, Probe, probe

WITHOUT_KERNEL = {"hybrid_attention", "agent_attention"}


@pytest.fixture(scope="module")
def probes():
    """Of this machine, with Triton interpreted."""
    torch.manual_seed(0)
    return probe("cpu")


@pytest.fixture
def run(foveate_command, monkeypatch):
    """Runs `foveate info` where the probes are these; gives (exit status, stdout)."""

    def call(found, *arguments):
        monkeypatch.setattr(probe_module, "probe", lambda device: found)
        code, out, _ = foveate_command("info", *arguments)
        return code, out

    return call


def only(monkeypatch, operator, options=None):
    """The probes of one operator that stands for all."""
    monkeypatch.setattr(probe_module, "_OPERATORS", ((operator, options or {}, None),))
    monkeypatch.setattr(probe_module, "find_spec", lambda name: None)
    return {one.impl: one for one in probe("cpu")}


def test_every_implementation_of_every_operator_is_tried(probes):
    operators = {name for name in kernels.__all__ if name.endswith("_attention")}
    tried = {(one.operator, one.impl) for one in probes}
    assert tried >= {(operator, impl) for operator in operators for impl in IMPLS}


def test_all_is_right_here(probes):
    states = {(one.operator, one.impl): one.state for one in probes}
    missing = {(operator, "triton") for operator in WITHOUT_KERNEL}
    assert {key for key, state in states.items() if state != OK} == missing
    assert all(one.error < 1e-6 for one in probes if one.state == OK)
    assert {one.reason for one in probes if one.state == CANNOT} == {
        "this operator has no Triton kernel yet"
    }


def test_reason_without_a_gpu(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    found = only(monkeypatch, local_attention, {"radius": 3})
    assert (found["triton"].state, found["triton"].error) == (CANNOT, None)
    assert found["triton"].reason == "the tensors are on the CPU"
    assert found["torch"].state == OK


@pytest.mark.parametrize("factor", [1.001, torch.nan])
def test_wrong_numbers_are_found(monkeypatch, factor):
    def scaled(q, k, v, *, layout, impl):
        out = local_attention(q, k, v, layout=layout, impl="reference")
        return out * factor if impl == "torch" else out

    found = only(monkeypatch, scaled)
    assert (found["torch"].state, found["triton"].state) == (WRONG, OK)
    assert found["torch"].reason.startswith("relative error ")


def test_failures_are_found(monkeypatch):
    def failing(q, k, v, *, layout, impl):
        if impl == "torch":
            raise RuntimeError("no kernel image is available")
        return local_attention(q, k, v, layout=layout, impl="reference")

    found = only(monkeypatch, failing)
    assert found["torch"].state == WRONG
    assert found["torch"].reason == "RuntimeError: no kernel image is available"


def test_tables(run, probes):
    code, out = run(probes)
    assert code == 0
    for word in ("torch", "diffusers", "LocalAttnProcessor", "shapes-flux", "64 px", "cpu"):
        assert word in out
    assert "triton: cannot run: this operator has no Triton kernel yet (hybrid, agent)" in out
    assert "everything that should run here does" in out


def test_which_tiles_launches_take(run, probes, monkeypatch, tmp_path):
    device = torch.device(probes[0].device)
    where = f"for {target(device)} under Triton {triton.__version__}"
    path = tmp_path / "tiles.json"
    monkeypatch.setenv("FOVEATE_TUNE_CACHE", str(path))
    _, out = run(probes)
    assert f"tiles of the Triton kernels: as shipped; none is tuned {where} in {path}\n" in out
    tuned.save(path, f"{target(device)}/a kernel", {}, {})
    _, out = run(probes, "--json")
    assert json.loads(out)["tiles"] == f"1 tuned {where}, from {path}"


def test_no_tiles_where_no_kernel_runs(run, probes, monkeypatch):
    monkeypatch.setattr("foveate.kernels.triton.device.why_not_device", lambda device: "no GPU")
    _, out = run(probes)
    assert "tiles of the Triton kernels: none are used: no GPU\n" in out


def test_json(run, probes):
    code, out = run(probes, "--json")
    about = json.loads(out)
    assert (code, about["faults"]) == (0, [])
    assert about["versions"]["torch"] == torch.__version__
    assert about["devices"]["cpu"]["threads"] == torch.get_num_threads()
    assert [Probe(**one) for one in about["probes"]] == probes
    assert "BIND 1" in about["models"]["shapes-sd"]


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_fault_is_the_exit_status(run, arguments):
    wrong = Probe(
        operator="local_attention",
        impl="triton",
        device="cpu",
        state=WRONG,
        error=0.3,
        reason="relative error 3.0e-01, at most 4.8e-07",
    )
    code, out = run([wrong], *arguments)
    assert code == 1
    assert "local_attention (triton) on cpu" in out
    assert wrong.reason in out


def test_missing_weights_are_a_fault(run, probes, monkeypatch, tmp_path):
    load = importlib.import_module("foveate.pipelines.shapes.load")
    monkeypatch.setattr(load, "weights_folder", lambda name: tmp_path)
    code, out = run(probes)
    assert code == 1
    missing = (f"shapes-{name}: weights missing" for name in ("sd", "sd-bow", "flux"))
    assert f"wrong: {'; '.join(missing)}" in out
