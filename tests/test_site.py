"""The documentation site: every page and every public name has its place, no link is lost."""

import importlib.util
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from posixpath import dirname, join, normpath

import pytest

import foveate
from foveate import kernels

ROOT = Path(__file__).resolve().parents[1]
PAGES = {str(path.relative_to(ROOT / "docs")): path for path in (ROOT / "docs").rglob("*.md")}


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(hooks):
    """Path -> text of the pages of the site."""
    pages = {
        name: hooks.relink(path.read_text(), normpath(f"docs/{dirname(name)}"))
        for name, path in PAGES.items()
    }
    outside = {
        page: hooks.relink((ROOT / source).read_text(), "")
        for source, page in hooks.OUTSIDE.items()
    }
    return pages | outside | hooks.reference()


def leaves(nav):
    for item in nav:
        if isinstance(item, str):
            yield item
        else:
            for value in item.values():
                yield from leaves([value] if isinstance(value, str) else value)


def test_every_page_is_in_the_navigation_once(hooks, site):
    found = list(leaves(hooks.navigation(PAGES["index.md"].read_text())))
    assert found[0] == "index.md"
    assert sorted(found) == sorted(site)


def test_every_public_name_is_in_the_reference(hooks):
    entries = re.findall(r"^::: (\S+)\.(\w+)$", "".join(hooks.reference().values()), re.MULTILINE)
    names = [name for _, name in entries]
    assert set(names) >= {*foveate.__all__, *kernels.__all__}
    assert len(set(names)) == len(names)
    for module, name in entries:
        documented = getattr(import_module(module), name)
        assert documented.__doc__, name


def test_links_of_the_site_lead_somewhere(site):
    for page, text in site.items():
        for mark, target in re.findall(r"(!?)\[[^\]]*\]\((?!https?:|#)([^)#\s]+)", text):
            path = normpath(join(dirname(page), target))
            is_there = path in site or (ROOT / "docs" / path).is_file()
            assert is_there or (mark and (ROOT / path).is_file()), (page, target)


@pytest.mark.parametrize(
    ("folder", "text", "moved"),
    [
        ("docs", "[README](../README.md#use)", "[README](readme.md#use)"),
        ("docs", "[a](local.md) and ![b](shapes/sd.png)", "[a](local.md) and ![b](shapes/sd.png)"),
        ("docs", "[one](../examples/linear.py)", "one"),
        ("docs", "[a](modulation/emphasize.md)", None),
        (
            "docs/modulation",
            "[a](../../README.md), [b](../local.md)",
            "[a](../readme.md), [b](../local.md)",
        ),
        (
            "docs/modulation",
            "![a](maps.png) [b](emphasize.md) [c](../../examples/linear.py)",
            "![a](maps.png) [b](emphasize.md) c",
        ),
        ("", "[a](docs/local.md#x), [docs/](docs/index.md)", "[a](local.md#x), [docs/](index.md)"),
        ("", "[code](kernels/layout.py), [all](examples)", "code, all"),
        ("", "[paper](https://arxiv.org/abs/1) [here](#use)", None),
    ],
)
def test_relink(hooks, folder, text, moved):
    assert hooks.relink(text, folder) == (text if moved is None else moved)


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "-q", "-d", tmp_path]
    if sys.version_info < (3, 11):
        command.remove("-P")
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "reference" / "foveate.html").read_text()
    assert all(f">{name}<" in text for name in foveate.__all__)
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)', page.read_text()
        )
        assert loaded == [], page
