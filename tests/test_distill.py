"""Distillation on tiny pipelines: losses, untouched teachers, exact resume, saved students."""

import dataclasses
import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from foveate.attn_processors import apply
from foveate.attn_processors.layouts import attention_layers
from foveate.pipelines.distill import DistillConfig, distill, load_student, stage
from foveate.pipelines.distill.data import Pictures, data_folder, draw_pictures
from foveate.pipelines.distill.distiller import Distiller
from foveate.pipelines.distill.log import read_log
from foveate.pipelines.distill.noising import Noising
from foveate.pipelines.distill.student import fresh_weights, student_processor
from foveate.pipelines.shapes import load as shapes_load
from foveate.pipelines.shapes.load import MODELS, load_shapes
from tiny_pipelines import SIZES, Tiny

KINDS = {"sd": ("linear", None), "flux": ("local", 2)}


def options(tmp_path, name="sd", **changes):
    """A few steps on a few small pictures, all drawn at once."""
    student, radius = KINDS[name]
    height, width = list(SIZES[name])[0]
    few = {"pictures": 3, "picture_steps": 1, "layer_steps": 2, "steps": 2, "batch": 2}
    paths = {"out": str(tmp_path / "run"), "data": str(tmp_path / "data")}
    chosen = {"model": name, "student": student, "radius": radius, "caption_dropout": 0.0}
    size = {"height": height, "width": width}
    return DistillConfig(**{**chosen, **few, **size, **paths, "warmup": 0, **changes})


def call_of(tiny):
    return {key: value for key, value in tiny.arguments.items() if key != "prompt"}


def run(config):
    tiny = Tiny(config.model)
    return tiny, distill(tiny.pipe, config, call=call_of(tiny))


def assert_equal(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_the_teacher_is_left_as_it_was(tmp_path, name):
    fresh = Tiny(name)
    before = {n: m.processor for n, m in attention_layers(fresh.model).items()}
    config = options(tmp_path, name, ema=0.0)
    tiny, folder = run(config)
    assert_equal(tiny.model.state_dict(), fresh.model.state_dict())
    assert torch.equal(tiny(), fresh())
    assert all(p.requires_grad for p in tiny.model.parameters())
    after = {n: m.processor for n, m in attention_layers(tiny.model).items()}
    assert {n: type(p) for n, p in after.items()} == {n: type(p) for n, p in before.items()}
    untrained = fresh_weights(tiny.model, config).state_dict()
    trained = load_student(folder).weights.state_dict()
    # with g = 0, its first layers have no gradient in the first step
    assert not any(torch.equal(x, untrained[key]) for key, x in trained.items())


def test_an_unfinished_run_goes_on_exactly(tmp_path, monkeypatch):
    """Stopped after the checkpoints of step 2 of both stages; the other run never is."""
    few = {"layer_steps": 4, "steps": 4, "save_every": 2, "accumulate": 2, "log_every": 1}
    config = options(tmp_path, **few)
    _, whole = run(config)
    broken = dataclasses.replace(config, out=str(tmp_path / "broken"))

    class Stop(Exception):
        pass

    for name in ("layers", "whole"):

        def save(accelerator, folder, step, name=name, save=stage.save_checkpoint):
            save(accelerator, folder, step)
            if folder.name == name and step == 2:
                raise Stop

        with monkeypatch.context() as patched:
            patched.setattr(stage, "save_checkpoint", save)
            with pytest.raises(Stop):
                run(broken)
    _, resumed = run(broken)
    files = ("layers.safetensors", "whole.safetensors", "student/student.safetensors")
    for file in files:
        assert_equal(load_file(resumed.parent / file), load_file(whole.parent / file))
    rows, wanted = (read_log(folder.parent / "log.jsonl") for folder in (resumed, whole))
    told = [[(r["stage"], r["step"], r["loss"], r["rate"]) for r in x] for x in (rows, wanted)]
    assert told[0] == told[1]
    assert len(told[0]) == 8
    has_matplotlib = find_spec("matplotlib") is not None
    plots = [(folder.parent / "loss.png").exists() for folder in (whole, resumed)]
    assert plots == [has_matplotlib, has_matplotlib]


@pytest.mark.parametrize(
    ("name", "student", "radius", "train"),
    [
        ("sd", "linear", None, None),
        ("sd", "hybrid", 2, ("g", "maps", "gate")),
        ("flux", "local", 2, ("to_q", "to_v")),
        ("flux", "hybrid", 2, None),
        ("flux", "foveated", 2, ("to_q", "to_k", "pool_weight")),
        ("sd", "agent", None, None),
    ],
)
def test_a_saved_student_gives_the_same_output(tmp_path, name, student, radius, train):
    few = {"layer_steps": 0, "steps": 1, "rate": 0.1, "ema": 0.0}
    of_kind = {"foveated": {"pool": 2}, "agent": {"agents": 4}}.get(student, {})
    few |= of_kind
    config = options(tmp_path, name, student=student, radius=radius, train=train, **few)
    tiny, folder = run(config)
    weights = fresh_weights(tiny.model, config)
    with apply(tiny.pipe, student_processor(config, weights)):
        untrained = tiny()
    weights.load_state_dict(load_file(folder.parent / "whole.safetensors"))
    with apply(tiny.pipe, student_processor(config, weights)):
        want = tiny()
    with apply(tiny.pipe, load_student(folder, tiny.pipe)) as handle:
        assert torch.equal(tiny(), want)
        ran = {row.operator for row in handle.report().layers if row.kind != "cross"}
    assert ran == {"linear" if student == "hybrid" else student}
    assert not torch.equal(untrained, want)


def test_a_student_goes_on_from_one_with_fewer_parts(tmp_path):
    """At gate 0 a hybrid is its window: it begins as the local student that it starts from."""
    parts = ("to_q", "to_k", "to_v", "to_out")
    _, local = run(options(tmp_path, "flux", train=parts, rate=0.1, ema=0.0))
    still = {"layer_steps": 0, "steps": 1, "rate": 1e-30, "gate": 0.0, "out": str(tmp_path / "h")}
    config = options(
        tmp_path, "flux", student="hybrid", train=(*parts, "gate"), start=str(local), **still
    )
    tiny, hybrid = run(config)
    with apply(tiny.pipe, load_student(local)):
        want = tiny()
    with apply(tiny.pipe, load_student(hybrid)):
        torch.testing.assert_close(tiny(), want, rtol=1e-5, atol=1e-5)
    less = dataclasses.replace(config, train=("to_q", "gate"), out=str(tmp_path / "less"))
    with pytest.raises(ValueError, match="other layers, parts or sizes"):
        run(less)


def test_a_student_meets_a_model_in_half_precision(tmp_path):
    """Loaded parts take the dtype of the model they are put on, and leave the file's as it is."""
    _, folder = run(options(tmp_path, "flux", layer_steps=0, steps=1, rate=0.1))
    half = Tiny("flux")
    half.pipe.to(torch.bfloat16)
    dense, student = half(), load_student(folder)
    with apply(half.pipe, student, strict=True):
        drawn = half()
    assert drawn.isfinite().all()
    assert not torch.equal(drawn, dense)
    assert {p.dtype for p in student.weights.parameters()} == {torch.float32}


def test_an_embedded_student_goes_by_its_name(tmp_path, monkeypatch):
    _, folder = run(options(tmp_path, "flux", layer_steps=0, steps=1))
    monkeypatch.setattr(shapes_load, "_WEIGHTS", tmp_path / "weights")
    shutil.copytree(folder, tmp_path / "weights" / "students" / "shapes-flux-local")
    named, read = load_student("shapes-flux-local"), load_student(folder)
    assert_equal(named.weights.state_dict(), read.weights.state_dict())
    with pytest.raises(ValueError, match=r"shapes-sd-local is neither .* are: shapes-flux-local$"):
        load_student("shapes-sd-local")


def test_embedded_students_fit_their_models():
    for name, folder in shapes_load.embedded_students().items():
        base = name.split("-")[1]
        with apply(load_shapes(base), load_student(folder, load_shapes(base)), strict=True):
            pass


def test_nothing_to_train_is_told(tmp_path):
    """256 agents for 12 x 16 tokens run dense, so no gradient would reach the parts."""
    config = options(tmp_path, student="agent", agents=256, layer_steps=1, steps=0)
    with pytest.raises(ValueError, match=r"(?s)no layer ran the student's operator.*dense"):
        run(config)


class Losses:
    """A distiller of a tiny pipeline and a batch of two of its own pictures."""

    def __init__(self, tiny, config, handle, weights):
        call = {**call_of(tiny), "height": config.height, "width": config.width}
        prompts = ["a cat", "a dog", "a cow"]
        folder = data_folder(tiny.model, prompts, config, call)
        with handle.paused():
            draw_pictures(tiny.pipe, tiny.model, prompts, config, call, folder)
        samples = Pictures(folder, config, 0, 2)
        self.batch = torch.utils.data.default_collate([samples[0], samples[1]])
        noising = Noising(tiny.pipe.scheduler)
        shared = samples.shared()
        self.distiller = Distiller(tiny.model, handle, weights, noising, shared, config)

    def __call__(self, layerwise):
        return self.distiller(self.batch, layerwise)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_student_that_sees_everything_has_no_distance_to_its_teacher(tmp_path, name):
    """A window over the grid with the model's own projections is the teacher itself."""
    tiny = Tiny(name)
    config = options(tmp_path, name, student="local", radius=99)
    weights = fresh_weights(tiny.model, config)
    with apply(tiny.pipe, student_processor(config, weights)) as handle:
        losses_of = Losses(tiny, config, handle, weights)
        near, near_layers = losses_of(False), losses_of(True)
        for parameter in weights.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        far, far_layers = losses_of(False), losses_of(True)
    for part in ("prediction", "attention"):
        assert near[part] < 1e-10 < 1e-6 < far[part]
    assert near_layers["loss"] < 1e-10 < 1e-6 < far_layers["loss"]
    assert near["task"] > 0.1
    torch.testing.assert_close(near["loss"], near["task"])
    total = far["task"] + 0.5 * far["prediction"] + 0.5 * far["attention"]
    torch.testing.assert_close(far["loss"].detach(), total)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_gradient_checkpointing_changes_no_loss_and_no_gradient(tmp_path, name):
    tiny = Tiny(name)
    tiny.model.requires_grad_(False)
    config = options(tmp_path, name)
    weights = fresh_weights(tiny.model, config)
    found = []
    with apply(tiny.pipe, student_processor(config, weights)) as handle:
        losses_of = Losses(tiny, config, handle, weights)
        for checkpointing in (False, True):
            if checkpointing:
                tiny.model.enable_gradient_checkpointing()
            losses = losses_of(False)
            losses["loss"].backward()
            found.append((losses, [p.grad.clone() for p in weights.parameters()]))
            weights.zero_grad()
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)
    assert any(gradient.any() for gradient in found[0][1])


def test_layer_by_layer_brings_an_embedded_model_nearer_within_a_few_steps(tmp_path):
    pipe = load_shapes("flux")
    few = {"pictures": 4, "picture_steps": 2, "layer_steps": 12, "steps": 0, "batch": 2}
    config = options(tmp_path, "flux", **few, log_every=1, height=64, width=64, layer_rate=2e-3)
    folder = distill(pipe, config, call=MODELS["flux"].call)
    losses = [row["loss"] for row in read_log(folder.parent / "log.jsonl")]
    assert len(losses) == 12
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
