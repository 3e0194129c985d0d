"""Boundaries of the package: what is installed, what an import loads, who may import whom."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import foveate

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ["kernels", "attn_processors", "pipelines", "comfyui"]  # each may import those before it
KERNELS_MAY = {*sys.stdlib_module_names, "torch"}
NOT_OURS = {"build", "dist", "runs", "site", "__pycache__"}
TEXT = {".cff", ".ini", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml", ""}
PRIVATE = {
    "a path of one machine": r"(?<![\w.-])/(?:work|home|root|Users|opt|mnt|srv)/\w",
    "a package index": r"index[-_]url|find[-_]links|trusted[-_]host|file:/{2}",
}


def _ours(folder):
    """Every file below `folder` but those that tools and runs leave behind."""
    for path in sorted(folder.rglob("*")):
        parts = {*path.relative_to(ROOT).parts}
        hidden = any(part.startswith(".") for part in parts - {".ci", ".pre-commit-config.yaml"})
        generated = parts & NOT_OURS or any(part.endswith(".egg-info") for part in parts)
        if path.is_file() and not hidden and not generated:
            yield path


def _name(path):
    return path.relative_to(ROOT).as_posix()


FILES = list(_ours(ROOT))
FOLDERS = [path.parent for path in FILES if path.name == "__init__.py"]
SOURCES = [path for folder in FOLDERS for path in sorted(folder.glob("*.py"))]
WEIGHTS = list(_ours(ROOT / "pipelines" / "shapes" / "weights"))


def _run(code, cwd):
    """Runs `code` in a fresh process, away from the root, whose folders would hide packages."""
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, text=True, capture_output=True)


def _absolute(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def _layers_imported(path):
    """First folder below the root of everything `path` imports from this package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            base = [*path.relative_to(ROOT).parts[: -node.level], node.module or node.names[0].name]
            yield base[0].partition(".")[0]


def test_wheel_holds_the_package_and_nothing_else(tmp_path):
    setup = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q"]
    aside = ["egg_info", "-e", tmp_path, "build", "-b", tmp_path, "bdist_wheel", "-d", tmp_path]
    done = subprocess.run([*setup, *aside], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("foveate-*.whl")
    assert wheel.name.startswith(f"foveate-{foveate.__version__}-")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {f"foveate/{_name(path)}" for path in [*SOURCES, *WEIGHTS, ROOT / "py.typed"]}


def test_weights_stay_small():
    assert 0 < sum(path.stat().st_size for path in WEIGHTS) < 40e6


@pytest.mark.parametrize(
    ("module", "unloaded"),
    [
        ("foveate", {"torch", "numpy", "diffusers", "transformers", "triton"}),
        ("foveate.kernels", {"diffusers", "transformers", "triton"}),
    ],
)
def test_import_is_light(module, unloaded, tmp_path):
    done = _run(f"import sys, {module}; print(*{unloaded} & {{*sys.modules}})", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_import_is_quick_and_quiet(tmp_path):
    code = "import time; t = time.process_time(); import foveate; print(time.process_time() - t)"
    command = [sys.executable, "-W", "error", "-c", code]
    done = [subprocess.run(command, cwd=tmp_path, text=True, capture_output=True) for _ in range(3)]
    assert {(one.returncode, one.stderr) for one in done} == {(0, "")}
    assert min(float(one.stdout) for one in done) < 0.05


def test_nothing_of_others_is_patched(tmp_path):
    """Every function and class of torch, diffusers and transformers, and their members."""
    code = """
import sys, torch, diffusers, diffusers.models.attention_processor

flux = diffusers.FluxTransformer2DModel(
    in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, patch_size=1,
    num_attention_heads=2, joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8))
image = torch.cartesian_prod(torch.zeros(1), torch.arange(6.0), torch.arange(7.0))
inputs = {"hidden_states": torch.randn(1, 42, 4), "encoder_hidden_states": torch.randn(1, 5, 8),
    "pooled_projections": torch.randn(1, 8), "timestep": torch.ones(1), "img_ids": image,
    "txt_ids": torch.zeros(5, 3)}
flux(**inputs)

def snapshot():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("torch", "diffusers", "transformers"):
            for key, value in vars(module).items():
                if callable(value):
                    found[name, key] = value
                if isinstance(value, type) and value.__module__ == name:
                    found.update({(name, key, k): v for k, v in vars(value).items() if callable(v)})
    return found

def changed():
    now = snapshot()
    return [".".join(key) for key, value in before.items() if now.get(key) is not value]

before = snapshot()
import foveate
with foveate.apply(flux, foveate.LocalAttnProcessor(radius=2)) as handle:
    flux(**inputs)
    during = changed()
print(handle.report().layers[0].operator, during, changed())
torch.nn.functional.scaled_dot_product_attention = print
print(changed())
"""
    done = _run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    patched = "['torch.nn.functional.scaled_dot_product_attention']"
    assert done.stdout.splitlines() == ["local [] []", patched]


@pytest.mark.parametrize("name", foveate.__all__)
def test_public_name_resolves(name):
    assert callable(getattr(foveate, name))
    assert name in dir(foveate)


def test_public_names_are_listed_alike():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    homes = {alias.name: "." + node.module for node in checked.body for alias in node.names}
    assert homes == foveate._HOMES
    assert sorted(homes) == sorted(foveate.__all__)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'foveate' has no attribute 'no_such_name'"):
        foveate.no_such_name  # noqa: B018


def test_loads_by_path_under_another_name(tmp_path):
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location(
    "nodes_x_y", {str(ROOT / "__init__.py")!r}, submodule_search_locations=[{str(ROOT)!r}])
module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.TokenLayout.__module__, "foveate" in sys.modules)
"""
    done = _run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["nodes_x_y.kernels.layout", "False"]


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_source_file(path):
    assert len(path.read_text().splitlines()) <= 300
    tree = ast.parse(path.read_text())
    assert "foveate" not in set(_absolute(ast.walk(tree))), "import it relatively"
    layer = path.relative_to(ROOT).parts[0]
    if layer in LAYERS:
        assert set(_layers_imported(path)) <= set(LAYERS[: LAYERS.index(layer) + 1])
    if layer == "kernels":
        assert set(_absolute(ast.walk(tree))) <= KERNELS_MAY | {"triton"}
        if path.parent.name != "triton":
            assert set(_absolute(tree.body)) <= KERNELS_MAY


@pytest.mark.parametrize("what", PRIVATE)
def test_text_names_nothing_private(what):
    texts = [path for path in FILES if path.suffix in TEXT and path.name != "LICENSE"]
    assert ROOT / ".ci" / "run" in texts
    found = [
        f"{_name(path)}:{number}: {line.strip()[:100]}"
        for path in texts
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if re.search(PRIVATE[what], line)
    ]
    assert found == []


@pytest.mark.parametrize("page", [path for path in FILES if path.suffix == ".md"], ids=_name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


def test_citation_has_the_version():
    assert f"\nversion: {foveate.__version__}\n" in (ROOT / "CITATION.cff").read_text()
