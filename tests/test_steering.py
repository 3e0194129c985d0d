"""The study of steering: objects go where they are told, costs and edits become tables."""

import dataclasses
import json

import pytest
import torch

from foveate.pipelines.page import markers
from foveate.pipelines.shapes import load_shapes
from foveate.pipelines.shapes.steering.cost import costs
from foveate.pipelines.shapes.steering.edits import ALONE, edit_rows, edits_of
from foveate.pipelines.shapes.steering.measure import COLUMNS, draw_batch, row_of
from foveate.pipelines.shapes.steering.methods import COST_ALONE, methods_of
from foveate.pipelines.shapes.steering.prompts import prompts
from foveate.pipelines.shapes.steering.report import write_edits, write_report

SEED = 700  # of the tables


@pytest.fixture(scope="module")
def sd():
    return load_shapes("sd")


def test_with_boxes_exchanged_objects_arrive_in_the_other_box(sd):
    asked = prompts(10, SEED)
    method = "RegionBind, boxes swapped (control)"
    with torch.autocast("cpu", torch.bfloat16):
        pictures = draw_batch(sd, "sd", method, asked, 0, 8)
    exchanged = [dataclasses.replace(one, boxes=one.boxes[::-1]) for one in asked]
    placed = [row_of(*pair)["placed"] for pair in zip(pictures, exchanged, strict=True)]
    assert placed.count(1.0) >= 8


def test_costs_of_readers_and_edits_are_in_the_table(sd, tmp_path):
    found = costs(sd, "sd", prompts(1, SEED)[0], 1, 1)
    assert set(found) == {*methods_of("sd"), *COST_ALONE, *edits_of("sd")}
    assert found["plain"] == found[ALONE] == 1
    assert min(found.values()) > 0
    row = dict.fromkeys(COLUMNS, 1.0)
    (tmp_path / "cost-sd.json").write_text(json.dumps(found))
    (tmp_path / "rows-sd-1-plain.json").write_text(json.dumps({"rows": [row]}))
    page = tmp_path / "page.md"
    page.write_text("\n".join((*markers("steering"), "")))
    write_report(tmp_path, page, 1)
    (header,) = [line for line in page.read_text().splitlines() if "SpanMaps" in line]
    names = [*COST_ALONE, *(edit for edit in edits_of("sd") if edit != ALONE)]
    assert header == f"|  | {' | '.join(names)} |"


def test_an_edit_keeps_what_the_source_had(sd, tmp_path):
    found = edit_rows(sd, "sd", prompts(2, SEED), 8)
    both = found["AttentionReplace + SelfAttentionReplace"]
    assert len(both) == len(found[ALONE]) > 0
    for one, alone in zip(both, found[ALONE], strict=True):
        assert one["psnr"] > alone["psnr"]
    (tmp_path / "edits-sd.json").write_text(json.dumps(found))
    page = tmp_path / "page.md"
    page.write_text("\n".join((*markers("edits"), "")))
    write_edits(tmp_path / "edits-sd.json", page)
    assert "|  | EDITED | KEPT | PSNR |" in page.read_text()
