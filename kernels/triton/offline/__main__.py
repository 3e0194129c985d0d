"""Checks every kernel variant without a GPU and writes docs/kernels.md.

    python -P -m foveate.kernels.triton.offline [--check] [--only 'local*'] [--python OTHER]

Exit status 1 when a kernel does not compile or breaks a rule; nothing is written then. `--accept`
writes although figures rose.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from ..variants import Variant
from .jobs import Job, jobs_matching, read
from .page import read_rows, version_key, write
from .reading import Reading
from .rules import Row, faults, rises, row

ROOT = Path(__file__).resolve().parents[3]


def _error(future: Future[Reading]) -> str | None:
    error = future.exception()
    if error is None:
        return None
    if isinstance(error, BrokenProcessPool):  # nothing that is still waiting will run
        raise error
    last = str(error).strip().rpartition("\n")[2].strip()
    return f"does not compile, {type(error).__name__}: {last}"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _figures(row: Row) -> str:
    loops = "".join(f", {number:.1f}" for number in row.per_element)
    return f"{row.registers} registers, {row.shared // 1024} KiB{loops}"


def judge(
    jobs: dict[Job, Variant],
    futures: dict[Future[Reading], Job],
    old: dict[tuple[str, str], Row],
    *,
    bars: bool,
) -> tuple[list[Row], list[str], list[str]]:
    """Rows in the order of the jobs, faults, and rises against `old`; says each as it comes."""
    rows: dict[Job, Row] = {}
    broken, grown = [], []
    for number, future in enumerate(as_completed(futures), start=1):
        job = futures[future]
        label = f"{job[1]} on {job[2]}"
        if error := _error(future):
            found, more = [error], []
        else:
            variant, reading = jobs[job], future.result()
            rows[job] = row(job[0], variant, job[2], reading)
            found = faults(rows[job], variant, reading, bars=bars)
            more = rises(old[job[1:]], rows[job]) if job[1:] in old else []
        broken += [f"{label}: {text}" for text in found]
        grown += [f"{label}: {text}" for text in more]
        figures = "" if error else f"{_figures(rows[job])}: "
        marks = "; ".join([*found, *more]) or "ok"
        _say(f"[{number}/{len(futures)}] {label}: {figures}{marks}")
    return [rows[job] for job in jobs if job in rows], broken, grown


def check(options: argparse.Namespace) -> int:
    """Compiles under this interpreter; the number of things that fail."""
    import triton

    jobs = dict(jobs_matching(options.only))
    folder = ROOT / "build" / "kernels"
    tables = read_rows(ROOT / "docs" / "kernels.json")
    newest = max([*tables, triton.__version__], key=version_key) == triton.__version__
    old = {(row.name, row.architecture): row for row in tables.get(triton.__version__, [])}
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        futures = {pool.submit(read, job, folder / "readings"): job for job in jobs}
        rows, broken, grown = judge(jobs, futures, old, bars=newest)
    failing = broken + ([] if options.accept else grown)
    for line in failing:
        _say(f"FAILS {line}")
    _say(f"Triton {triton.__version__}: {len(rows)} compiled, {len(failing)} failures")
    if not failing and not options.check and options.only == "*":
        write(ROOT / "docs", triton.__version__, rows)
    return len(failing)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="offline", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--accept", action="store_true", help="write although figures rose")
    parser.add_argument("--only", default="*", help="pattern of variant names; writes nothing")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--python", action="append", default=[], help="also run under this interpreter"
    )
    return parser.parse_args()


def main() -> None:
    options = _options()
    # before triton is imported: kernels must be compiled here, not interpreted
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ["TRITON_CACHE_DIR"] = str(ROOT / "build" / "kernels" / "triton")
    failing = check(options)
    flags = [f"--only={options.only}", f"--processes={options.processes}"]
    flags += ["--check"] * options.check + ["--accept"] * options.accept
    for python in options.python:
        done = subprocess.run([python, "-P", "-m", __package__, *flags])
        failing += done.returncode != 0
    sys.exit(failing > 0)


if __name__ == "__main__":
    main()
