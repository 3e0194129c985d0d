"""The study of broadcasting: its files, what is not run again, its page."""

import json
from dataclasses import replace

import pytest
import torch

from foveate.attn_processors.broadcast import CalibratedPlan
from foveate.pipelines.broadcast import study as study_module
from foveate.pipelines.broadcast.study import Study
from foveate.pipelines.broadcast.tables import write_page


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("study")
    study(folder).run()
    return folder


def study(folder):
    return Study(name="sd", number=1, steps=12, folder=folder, refine_on=1, tries=2, size=32)


def rows(folder):
    return [json.loads(path.read_text()) for path in folder.glob("sd@32-1-12-*.json")]


def test_groups_have_equal_calls(folder):
    groups = {}
    for row in rows(folder):
        if row["group"].startswith("PAB") and not row["method"].startswith("dense"):
            groups.setdefault(row["group"], {})[row["method"]] = row["computed_share"]
    assert set(groups) == {"PAB (2, 2)", "PAB (3, 5)", "PAB (5, 9)"}
    for name, shares in groups.items():
        assert set(shares) == {
            name,
            "the same, forecast",
            "calibrated, order 0",
            "calibrated, order 0 and 1",
        }
        assert max(shares.values()) == pytest.approx(shares[name])


def test_rows_are_refined_once_a_share(folder, monkeypatch):
    plan = replace(CalibratedPlan.load(folder / "sd-12.json"), share=0.75)
    rows = {"spatial": "#####=#=#=##", "cross": "#####=#=#=##"}
    asked = []

    def refine(plan, runs, tries, check):
        asked.append((runs, tries, check))
        return replace(plan, refined=rows)

    monkeypatch.setattr(study_module, "refine", refine)
    path = folder / "refined.json"
    for _ in range(2):
        assert study_module.refined(plan, "runs", 5, "check", path).refined == rows
    assert asked == [("runs", 5, "check")]
    assert json.loads(path.read_text()) == {"0.7500": rows}


def test_what_is_there_is_not_run_again(folder):
    before = {
        path: path.stat().st_mtime_ns for path in folder.iterdir() if "dense" not in path.name
    }
    study(folder).run()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_page_names_model_and_size(folder, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- study: begin -->\n<!-- study: end -->\nb\n")
    write_page(folder, page)
    text = page.read_text()
    assert "`shapes-sd` at 32 px, 1 prompts, 12 steps:" in text
    assert text.count("\n| calibrated, order 0 |") == 3
    assert text.index("| PAB (2, 2) |") < text.index("calibrated, order 0 and 1")
