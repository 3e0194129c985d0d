"""Every example runs as it stands, with few steps, and writes its picture."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))
FASTER = {"progressive_large": ["--side", "96"]}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path, tmp_path, monkeypatch, capsys):
    out = tmp_path / "picture.png"
    arguments = ["--out", str(out), "--steps", "2", *FASTER.get(path.stem, [])]
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    runpy.run_path(str(path), run_name="__main__")
    with Image.open(out) as picture:
        assert picture.getextrema() != ((0, 0),) * 3


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_one_idea(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 60
    assert f"python examples/{path.name} --out {path.stem}.png" in "\n".join(lines[:5])
