"""The quality study: resumable files, errors against dense, tables between the page's markers."""

import json

import numpy as np
import pytest

from foveate.attn_processors import LocalAttnProcessor, SoftmaxAttnProcessor
from foveate.kernels import TokenLayout
from foveate.pipelines.page import markers
from foveate.pipelines.shapes import load_shapes
from foveate.pipelines.shapes.load import MODELS
from foveate.pipelines.shapes.quality import draw
from foveate.pipelines.shapes.study.__main__ import study_fidelity, study_pictures
from foveate.pipelines.shapes.study.fidelity import layer_errors
from foveate.pipelines.shapes.study.methods import methods, slug, top_layout, untrained
from foveate.pipelines.shapes.study.pictures import asks_of
from foveate.pipelines.shapes.study.quality import students, study_quality
from foveate.pipelines.shapes.study.quality_report import write_quality
from foveate.pipelines.shapes.study.report import write_report

BEGIN, END = markers("study")


def test_errors_are_zero_for_dense_and_not_for_a_small_disc():
    pipe = load_shapes("sd")

    def run():
        draw(pipe, asks_of(1), size=(64, 64), steps=1, call=MODELS["sd"].call)

    others = {"dense": SoftmaxAttnProcessor(), "disc": LocalAttnProcessor(radius=2)}
    errors = layer_errors(pipe, others, run)
    assert len(errors) == 7  # self-attention layers of the UNet
    for rows in errors.values():
        assert rows["dense"] == [0.0]
        assert rows["disc"][0] > 0.01


def test_equal_cost_needs_as_many_keys():
    layout = TokenLayout(grid=(1, 32, 32))
    chosen = methods("sd", layout)
    wanted = chosen["foveated"].count_keys(layout).needed
    equal = chosen["local, equal cost"]
    smaller = LocalAttnProcessor(radius=equal.radius - 1)
    assert smaller.count_keys(layout).needed < wanted <= equal.count_keys(layout).needed


def test_study_writes_tables_and_does_not_run_twice(tmp_path):
    def run():
        study_fidelity("sd", 64, 1, tmp_path)
        study_pictures("sd", 64, 3, 1, tmp_path, tmp_path)
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}

    stamps = run()
    assert len(stamps) == 6
    assert run() == stamps
    rows = json.loads((tmp_path / "pictures-sd-64-local.json").read_text())["rows"]
    assert [row["objects"] for row in rows] == [1, 2, 3]
    assert np.isfinite([row["psnr"] for row in rows]).all()
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_report(tmp_path, page)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n| model |")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert text.count("| foveated |") == 2
    assert (tmp_path / "errors.png").stat().st_size > 5000


def test_quality_compares_every_processor_with_dense(tmp_path):
    study_quality("flux", 64, 3, 1, tmp_path, tmp_path)
    files = {path.stem for path in tmp_path.glob("*.json")}
    chosen = untrained("flux", top_layout("flux", 64)) | students("flux")
    assert files == {f"pictures-flux-64-{slug(name)}" for name in ("dense", *chosen)}
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    write_quality(tmp_path, page)
    lines = page.read_text().splitlines()
    assert lines[1] == "### shapes-flux, 64 px"
    assert lines[5].startswith("| dense | ")
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in lines[5:-1]}
    assert set(cells) == {"dense", *chosen}
    assert {row[-1] for row in cells.values()} >= {"96 of 96 |", "48 of 96 |"}
    assert all(0 < float(row[5]) < 60 for name, row in cells.items() if name != "dense")


def test_a_page_without_markers_is_refused(tmp_path):
    (tmp_path / "page.md").write_text("nothing here")
    with pytest.raises(ValueError, match="lacks the markers"):
        write_report(tmp_path, tmp_path / "page.md")
