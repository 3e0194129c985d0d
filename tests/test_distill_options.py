"""Options of a distillation: one object, a YAML file or flags; every mistake a clear line."""

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from foveate.pipelines.distill import DistillConfig, distill, load_student, read_config
from tiny_pipelines import SIZES, Tiny

EXAMPLES = sorted(Path(__file__).resolve().parents[1].glob("examples/distill/*.yaml"))
LOCAL = {"model": "shapes-flux", "out": "run", "student": "local", "radius": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": "lineal"}, "student must be one of linear, local, .*, hybrid, got 'lineal'"),
        ({"radius": None}, "a local student needs radius"),
        ({"student": "linear"}, "radius is for local, foveated, hybrid, not for a linear one"),
        ({"student": "foveated"}, "a foveated student needs pool"),
        ({"agents": 9}, "agents is for agent, not for a local one"),
        ({"train": ("to_q", "gate")}, "train of a local student must name some of to_k, .* to_v"),
        ({"train": ()}, "got none"),
        ({"train": "to_q"}, "train must be a list of texts, got 'to_q'"),
        ({"steps": 0, "layer_steps": 0}, "nothing would be trained"),
        ({"steps": -1}, "steps must be >= 0, got -1"),
        ({"steps": 1.5}, "steps must be of type int, got 1.5"),
        ({"steps": True}, "steps must be of type int, got True"),
        ({"batch": 0}, "batch must be >= 1, got 0"),
        ({"rate": 0}, "rate must be > 0"),
        ({"rate": "fast"}, "rate must be a number, got 'fast'"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
        ({"caption_dropout": -0.1}, "caption_dropout must be in"),
        ({"schedule": "linear"}, "schedule must be one of cosine, constant"),
        ({"mixed_precision": "fp8"}, "mixed_precision must be one of no, bf16, fp16"),
        ({"student": "hybrid", "train": ["maps"], "gate": 0}, "maps get no gradient"),
        (
            {"task_weight": 0, "prediction_weight": 0, "attention_weight": 0},
            "task_weight, prediction_weight and attention_weight are all 0",
        ),
        ({"radios": 3}, "unknown option 'radios'; near: radius"),
    ],
    ids=str,
)
def test_mistakes(changes, message):
    with pytest.raises(ValueError, match=message):
        read_config(None, {**LOCAL, **changes})


def test_a_file_and_changes_over_it(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("model: shapes-sd\nstudent: linear\nrate: 1e-4\ntrain: [to_q, g]\n")
    with pytest.raises(ValueError, match="missing option: out"):
        read_config(path, {})
    config = read_config(path, {"out": "run", "steps": 7})
    want = {"model": "shapes-sd", "student": "linear", "train": ("to_q", "g"), "steps": 7}
    assert config == DistillConfig(out="run", rate=1e-4, **want)
    for text, message in (("- a\n", "must hold lines"), ("a: [", "is not YAML")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_config(path, {})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_whole(path):
    config = read_config(path, {})
    assert path.stem == config.out.rpartition("/")[2].replace("-", "_")
    assert f"--config examples/distill/{path.name}" in path.read_text()


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """Tiny Flux on disk, and the flags of a training of one step a stage."""
    root = tmp_path_factory.mktemp("distill")
    Tiny("flux").pipe.save_pretrained(root / "model")
    (root / "prompts.txt").write_text("a cat\na dog\n")
    height, width = list(SIZES["flux"])[0]
    options = {"model": root / "model", "out": root / "run", "student": "local", "radius": 2}
    options |= {"prompts": root / "prompts.txt", "height": height, "width": width}
    options |= {"text-length": 16, "pictures": 2, "picture-steps": 1, "caption-dropout": 0}
    options |= {"layer-steps": 1, "steps": 1, "batch": 1, "picture-every": 1}
    return root, [f"--{name}={value}" for name, value in options.items()]


@pytest.fixture
def call(foveate_command):
    """Runs `foveate distill`; gives (exit status, stdout, stderr)."""
    return partial(foveate_command, "distill")


def test_the_command(tiny_run, call):
    root, flags = tiny_run
    code, out, err = call(*flags)
    assert code == 0, err
    assert f'foveate.load_student("{root / "run" / "student"}")' in out
    card = json.loads((root / "run" / "student" / "student.json").read_text())
    assert card["student"] == "local"
    assert card["radius"] == 2
    assert card["text"] == 16
    assert card["base_class"] == "FluxTransformer2DModel"
    rows = [json.loads(line) for line in (root / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["layers", "whole"]
    assert all(row["seconds_per_step"] > 0 and row["peak_memory_mib"] > 0 for row in rows)
    names = ["layers-0000001.png", "whole-0000001.png"]
    assert sorted(path.name for path in (root / "run" / "pictures").iterdir()) == names
    code, _, err = call(*flags, "--steps=2")
    assert code == 2
    assert "holds a run with other options (steps was 1, is 2)" in err
    # other bases, and damaged files
    student = root / "run" / "student"
    with pytest.raises(ValueError, match="this student was made for .* got FluxTransformer2DModel"):
        load_student(student, Tiny("flux", seed=1).pipe)
    for name, damage, message in (
        ("student.safetensors", b"no tensors", "cannot be read"),
        ("student.json", b"{}", "is not the card of a student"),
    ):
        copied = shutil.copytree(student, root / f"damaged-{name}")
        (copied / name).write_bytes(damage)
        with pytest.raises(ValueError, match=message):
            load_student(copied)
    with pytest.raises(ValueError, match=r"no student\.json in it.*; embedded are: shapes-"):
        load_student(root)


def test_flags_are_the_options(call):
    code, out, _ = call("--help")
    assert code == 0
    for option in dataclasses.fields(DistillConfig):
        assert f"--{option.name.replace('_', '-')} " in out
    assert "[default: 1000]" in out


def test_half_precision_needs_mixed_precision(tmp_path):
    tiny = Tiny("sd")
    tiny.pipe.to(torch.bfloat16)
    config = DistillConfig(model="sd", out=str(tmp_path), student="linear", height=48, width=64)
    with pytest.raises(ValueError, match=r"in torch.bfloat16 .* give mixed_precision"):
        distill(tiny.pipe, config)
    assert list(tmp_path.iterdir()) == []
