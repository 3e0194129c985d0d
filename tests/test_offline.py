"""The offline check of the kernels: the rules that make it fail, and the page it writes."""

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from foveate.kernels.triton.offline.__main__ import judge
from foveate.kernels.triton.offline.jobs import jobs_matching
from foveate.kernels.triton.offline.page import BEGIN, END, read_rows, version_key, write
from foveate.kernels.triton.offline.reading import Loop, Reading
from foveate.kernels.triton.offline.rules import faults, rises, row
from foveate.kernels.triton.variants import Variant

DOCS = Path(__file__).resolve().parents[1] / "docs"
READING = Reading(
    registers=200,
    spill=0,
    shared=65536,
    tensor_memory=0,
    threads=256,
    kinds=("HMMA.16816",),
    loops=(Loop(482, {"HMMA.16816": 128}), Loop(659, {"HMMA.16816": 128})),
)
VARIANT = Variant(
    name="local",
    kernel=None,
    signature={},
    constexprs={},
    num_warps=8,
    num_stages=2,
    default=True,
    tiles=((128, 64), (128, 64)),
)


def _row(reading=READING, variant=VARIANT, architecture="sm_80"):
    return row("local", variant, architecture, reading)


def _faults(reading=READING, variant=VARIANT, architecture="sm_80", bars=True):
    return faults(_row(reading, variant, architecture), variant, reading, bars=bars)


def test_instructions_per_score_element():
    # 659 instructions x 256 threads over 128 queries x 64 keys
    assert _row().per_element == (15.06, 20.59)
    assert _faults() == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"spill": 8}, "spills 8 bytes a thread"),
        ({"shared": 163 * 1024 + 1}, "166913 bytes of shared memory, limit 166912"),
        ({"tensor_memory": 640}, "640 columns of tensor memory, limit 512"),
    ],
    ids=["spill", "shared", "tensor memory"],
)
def test_a_default_stays_within_the_limits(change, fault):
    over = replace(READING, **change)
    assert _faults(over) == [fault]
    assert _faults(over, replace(VARIANT, default=False)) == []


@pytest.mark.parametrize(("architecture", "kib"), [("sm_86", 99), ("sm_90", 227), ("gfx942", 64)])
def test_shared_memory_limit_follows_the_architecture(architecture, kib):
    assert _faults(replace(READING, shared=kib * 1024), architecture=architecture) == []
    assert _faults(replace(READING, shared=kib * 1024 + 1), architecture=architecture) != []


def test_missing_tensor_core_instruction_fails():
    scalar = replace(READING, kinds=(), loops=())
    variant = replace(VARIANT, tiles=(), default=False)
    assert _faults(scalar, variant) == ["no tensor-core instruction"]
    assert _faults(scalar, replace(variant, tensor_cores=False)) == []


def test_loops_must_be_those_declared():
    unrolled = replace(READING, loops=(*READING.loops, READING.loops[0]))
    assert _faults(unrolled) == ["declares 2 loops, the code has 3"]


def test_bar_on_the_last_loop():
    bar = replace(VARIANT, instructions_at_most={"sm_80": 20.5, "sm_90": 13})
    assert _faults(variant=bar) == ["20.59 instructions per score element, at most 20.5"]
    assert _faults(variant=bar, architecture="sm_89") == []
    assert _faults(variant=bar, bars=False) == []


def test_a_rise_of_more_than_a_tenth_is_told():
    assert rises(_row(), _row(replace(READING, registers=220))) == []
    assert rises(_row(), _row(replace(READING, registers=221))) == [
        "registers rose from 200 to 221"
    ]
    longer = replace(READING, loops=(READING.loops[0], Loop(730, {"HMMA.16816": 128})))
    (told,) = rises(_row(), _row(longer))
    assert told == "instructions per score element of loop 2 rose from 20.59 to 22.81"
    assert rises(_row(longer), _row()) == []


def test_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="sm_75"):
        replace(VARIANT, architectures=("sm_75",))


def test_every_job_is_judged(capsys):
    jobs = {("local", "local", name): VARIANT for name in ("sm_80", "sm_86", "sm_89", "sm_90")}
    futures = {Future(): job for job in jobs}
    compiled, grown, broken, over = futures
    compiled.set_result(READING)
    grown.set_result(replace(READING, registers=240))
    broken.set_exception(RuntimeError("where it is\n  tl.dot needs 16 rows\n"))
    over.set_result(replace(READING, spill=8))
    old = {("local", architecture): _row() for _, _, architecture in jobs}
    rows, failing, rose = judge(jobs, futures, old, bars=True)
    assert [row.architecture for row in rows] == ["sm_80", "sm_86", "sm_90"]
    assert sorted(failing) == [
        "local on sm_89: does not compile, RuntimeError: tl.dot needs 16 rows",
        "local on sm_90: spills 8 bytes a thread",
    ]
    assert rose == ["local on sm_86: registers rose from 200 to 240"]
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_page_keeps_its_text_and_every_version(tmp_path):
    page = tmp_path / "kernels.md"
    page.write_text(f"before\n{BEGIN}\nforgotten\n{END}\nafter\n")
    slower = replace(READING, loops=(READING.loops[0], Loop(1318, {"HMMA.16816": 128})))
    write(tmp_path, "3.9.0", [_row(), _row(architecture="sm_90")])
    write(tmp_path, "3.10.0", [_row(slower)])
    kept = read_rows(tmp_path / "kernels.json")
    assert kept == {"3.9.0": [_row(), _row(architecture="sm_90")], "3.10.0": [_row(slower)]}
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "forgotten" not in text
    assert (
        "| **local** | sm_80 | 8 | 2 | 200 | 0 | 64 / 163 |  | 128 HMMA.16816 | 15.1, 41.2 |"
        in text
    )
    assert "Triton 3.9.0: 1 compiled, 0 defaults spill" in text
    assert "0.50 to 1.00 times" in text


def test_page_without_marks_is_refused(tmp_path):
    (tmp_path / "kernels.md").write_text("no marks")
    with pytest.raises(ValueError, match="kernels: begin"):
        write(tmp_path, "3.9.0", [_row()])


def test_the_committed_table_lists_exactly_the_declared_variants():
    pytest.importorskip("triton")
    tables = read_rows(DOCS / "kernels.json")
    newest = tables[max(tables, key=version_key)]
    declared = {(name, architecture) for (_, name, architecture), _ in jobs_matching("*")}
    assert {(row.name, row.architecture) for row in newest} == declared
    assert not [row.name for row in newest if row.default and row.spill]
