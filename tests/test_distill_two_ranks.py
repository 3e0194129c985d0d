"""Data-parallel distillation with gloo: two processes are one with a batch twice as large."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from foveate.pipelines.distill import distill
from foveate.pipelines.distill.log import read_log
from tiny_pipelines import Tiny
from two_ranks import SHARDED, options

SCRIPT = Path(__file__).with_name("two_ranks.py")
# port 0 is any free one
LAUNCH = "-m accelerate.commands.launch --num_processes 2 --num_machines 1 --main_process_port 0"


def losses(out):
    names = ("loss", "attention", "task", "prediction", "rate")
    return [[row.get(name, 0.0) for name in names] for row in read_log(out / "log.jsonl")]


def train_by_two(out, data, *how):
    command = [sys.executable, *LAUNCH.split(), *how, str(SCRIPT), str(out), str(data)]
    # --cpu would start a single process
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=out.parent, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert sorted(path.name for path in out.glob("rank-*")) == ["rank-0", "rank-1"]


def test_two_processes_equal_one_with_a_batch_twice_as_large(tmp_path):
    two, data = tmp_path / "two", tmp_path / "data"
    train_by_two(two, data, "--multi_gpu")
    drawn = {path: path.stat().st_mtime_ns for path in data.glob("*/pictures-*")}
    assert len(drawn) == 4

    runs = {"larger": {"batch": 2}, "accumulated": {"batch": 1, "accumulate": 2}}
    for name, changes in runs.items():
        distill(Tiny("flux").pipe, options(tmp_path / name, data, **changes))
        one = tmp_path / name
        assert len(losses(one)) == 3
        torch.testing.assert_close(losses(two), losses(one), rtol=1e-5, atol=1e-7)
        for stage in ("layers", "whole"):
            ours, theirs = (load_file(out / f"{stage}.safetensors") for out in (two, one))
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn


def test_sharded_parameters_train_like_whole_ones(tmp_path):
    """FSDP: the student's parameters, gradients and optimiser are spread over two processes."""
    two, one, data = (tmp_path / name for name in ("two", "one", "data"))
    train_by_two(two, data, "--use_fsdp", "--fsdp_version", "2")
    distill(Tiny("flux").pipe, options(one, data, batch=2, **SHARDED))
    ours, theirs = load_file(two / "first.safetensors"), load_file(one / "whole.safetensors")
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    resumed = load_file(two / "resumed.safetensors")
    assert resumed.keys() == ours.keys()
    assert all(torch.equal(resumed[name], ours[name]) for name in ours)
    assert (two / "student" / "student.safetensors").exists()
