"""The command line: pictures and reports, and one clear line for every mistake."""

import importlib
import json

import pytest
from PIL import Image

import foveate
from foveate.cli.models import Model
from tiny_pipelines import Tiny

demo_module = importlib.import_module("foveate.cli.demo")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny pipelines as `save_pretrained` writes them."""
    root = tmp_path_factory.mktemp("models")
    for name in ("sd", "flux"):
        Tiny(name).pipe.save_pretrained(root / name)
    (root / "empty").mkdir()
    return root


@pytest.fixture
def run(foveate_command):
    """Runs the command line; gives (exit status, stdout, stderr)."""
    return foveate_command


COMMANDS = [
    (),
    ("demo",),
    ("generate",),
    ("maps",),
    ("calibrate",),
    ("distill",),
    ("bench",),
    ("tune",),
    ("info",),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help(run, command):
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert "Usage: foveate" in out


@pytest.mark.parametrize(
    ("name", "base", "size", "stages"),
    [("sd", 32, "64x48", "40x24, then 64x48"), ("flux", 12, "20x16", "14x10, then 20x16")],
)
@pytest.mark.parametrize("attention", ["dense", "local", "foveated"])
def test_generate_in_stages(run, folders, tmp_path, name, base, size, stages, attention):
    out = tmp_path / "picture.png"
    arguments = ["--model", folders / name, "--prompt", "a cat", "--attention", attention]
    arguments += ["--size", size, "--base-size", base, "--steps", 2, "--out", out]
    arguments += [] if attention == "dense" else ["--radius", 2]
    code, printed, _ = run("generate", *arguments)
    assert code == 0
    with Image.open(out) as picture:
        assert "{}x{}".format(*picture.size) == size
    assert f"drew {stages} px" in printed
    assert str(out) in printed
    report = "stock attention" if attention == "dense" else "AttnProcessor(radius=2"
    assert report in printed


def test_generate_is_seeded(run, folders, tmp_path):
    def draw(seed):
        out = tmp_path / "picture.png"
        arguments = ["--model", folders / "flux", "--prompt", "a cat", "--size", "16x12"]
        assert run("generate", *arguments, "--steps", 2, "--seed", seed, "--out", out)[0] == 0
        return out.read_bytes()

    assert draw(3) == draw(3) != draw(4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "no/such/folder"],
            "--model must be shapes-sd, shapes-sd-bow, shapes-flux or a folder",
        ),
        (["--model", "{empty}"], "with a model_index.json"),
        (["--size", "large"], "--size must be WIDTHxHEIGHT in pixels, such as 256x192"),
        (["--size", "64"], "--size must be WIDTHxHEIGHT"),
        (["--size", "0x64"], "--size must be WIDTHxHEIGHT"),
        (["--size", "64x100"], "height must be a positive multiple of 8"),
        (["--size", "64x100"], "got 100; nearest: 96 or 104"),
        (["--attention", "locl"], "--attention must be dense, local, foveated, got 'locl'"),
        (["--attention", "local", "--radius", "0"], "radius must be"),
        (["--attention", "dense", "--radius", "8"], "--radius is for local and foveated"),
        (["--strength", "0", "--size", "64x64"], "strength must be in (0, 1], got 0.0"),
        (["--device", "abacus"], "--device must be"),
        (["--dtype", "int8"], "--dtype must be float32, bfloat16, float16"),
        (["--out", "no_such_folder/picture.png"], "--out names a folder that does not exist"),
        (["--out", "picture.txt"], "--out must end in .png"),
        (["--out", "picture.psd"], "--out must end in .png"),
        (["--model", "shapes-motion"], "shapes-motion draws clips"),
    ],
)
def test_mistakes_are_one_line(run, folders, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = [str(folders / "empty") if a == "{empty}" else a for a in arguments]
    model = ["--model", folders / "sd"]
    code, out, err = run("generate", *model, "--prompt", "a cat", "--base-size", 32, *given)
    assert code == 2
    assert out == ""
    assert err.startswith("foveate: ")
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_that_is_cut_is_told(run, tmp_path):
    prompt = "a red circle on a teal background, " * 5 + "nothing"
    arguments = ["--steps", 1, "--out", tmp_path / "picture.png"]
    code, _, err = run("generate", "--prompt", prompt, *arguments)
    assert code == 0
    assert "tokens, the model reads 32: up to '" in err
    assert "tokens" not in run("generate", "--prompt", "a red circle", *arguments)[2]


def test_maps_refuses_a_size_that_it_would_not_draw(run, tmp_path):
    arguments = ["--model", "shapes-flux", "--size", "100x100", "--out", tmp_path / "maps.png"]
    code, _, err = run("maps", "--prompt", "a red star", *arguments)
    assert code == 2
    assert "got 100; nearest: 96 or 104" in err


def test_an_out_that_is_a_folder(run, tmp_path):
    (tmp_path / "maps.png").mkdir()
    code, _, err = run("maps", "--prompt", "a red star", "--out", tmp_path / "maps.png")
    assert code == 2
    assert "--out must be a file" in err


def test_version(run):
    assert run("--version")[:2] == (0, f"{foveate.__version__}\n")


@pytest.mark.parametrize("arguments", [["generate"], ["generate", "--no-such"], ["draw"]])
def test_usage_errors(run, arguments):
    code, _, err = run(*arguments)
    assert code == 2
    assert "Error" in err


def test_demo_on_stand_ins(run, tmp_path, monkeypatch):
    """The whole command on random weights: the embedded models have tests of their own."""
    tinies = {"shapes-sd": Tiny("sd"), "shapes-flux": Tiny("flux")}

    def load_model(name, device):
        tiny = tinies[name]
        call = {key: value for key, value in tiny.arguments.items() if key != "prompt"}
        return Model(pipe=tiny.pipe, base_size=16, call=call)

    monkeypatch.setattr(demo_module, "load_model", load_model)
    out = tmp_path / "demo.png"
    caption = "a red circle on a teal background"
    arguments = ["--size", "32x32", "--step-size", "64x48", "--steps", 2, "--radius", 2]
    code, printed, _ = run("demo", *arguments, "--prompt", caption, "--out", out)
    assert code == 0
    with Image.open(out) as picture:
        assert picture.width > 6 * 256
    for word in ("shapes-sd", "shapes-flux", "PSNR to dense", "keys/query", "largest tensor"):
        assert word in printed
    figures = json.loads(out.with_suffix(".json").read_text())
    assert figures["prompts"] == [caption]
    methods = ["dense", "local 2", "foveated 2"] * 2
    assert [row["method"] for row in figures["pictures"]] == methods
    assert [row["method"] for row in figures["one_step"]] == methods
    for dense, local, _ in (figures["pictures"][:3], figures["pictures"][3:]):
        assert dense["psnr_to_dense_db"] is None
        assert local["psnr_to_dense_db"] > 10
    for dense, local, foveated in (figures["one_step"][:3], figures["one_step"][3:]):
        assert dense["keys"] == dense["tokens"] == local["tokens"] == foveated["tokens"]
        assert local["keys"] < foveated["keys"] < dense["keys"]
        assert all(row["seconds"] > 0 and row["largest_tensor"] > 0 for row in (dense, local))


def test_demo_refuses_a_foreign_prompt(run, tmp_path):
    code, _, err = run("demo", "--prompt", "a cat", "--out", tmp_path / "demo.png")
    assert code == 2
    assert "caption 'a cat' is not of the form" in err


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_maps(run, folders, tmp_path, name):
    out = tmp_path / "maps.png"
    arguments = ["--model", folders / name, "--prompt", "a [red cat]{a} by a dog", "--rows", 2]
    arguments += ["--phrase", "dog", "--size", "48x32", "--steps", 2, "--out", out]
    code, printed, _ = run("maps", *arguments)
    assert code == 0
    assert "2 maps" in printed
    with Image.open(out) as picture:
        assert picture.width < 1000
        low, high = picture.convert("L").getextrema()
    assert high - low > 50


def test_maps_of_every_word(run, folders, tmp_path):
    out = tmp_path / "maps.png"
    arguments = ["--model", folders / "sd", "--size", "48x32", "--steps", 2, "--out", out]
    code, printed, _ = run("maps", "--prompt", "a cat by a dog", *arguments)
    assert code == 0
    assert "5 maps" in printed


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--phrase", "dogs"], "has no phrase 'dogs'; nearest: 'dog'"),
        (["--rows", 4, "--steps", 2], "--rows must be at most --steps"),
    ],
)
def test_maps_refuse_before_a_model_loads(run, tmp_path, arguments, error):
    out = tmp_path / "maps.png"
    code, _, err = run("maps", "--prompt", "a cat by a dog", "--out", out, *arguments)
    assert code == 2
    assert error in err
