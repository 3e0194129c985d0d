"""Runs the whole conformance matrix and writes docs/compatibility.md with what it found.

`make conformance`. Exits with 1 where a law is broken; the table then says which.
"""

import importlib.util
import os
import sys
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import torch
import tqdm
import transformers

import conformance
import neighbours
from foveate.attn_processors.layouts import LEFT_ALONE
from tiny_families import FAMILIES, TinyFamily

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
FAILS = "**FAILS**"

INTRO = """# Compatibility

This page is written by `make conformance`, which runs stock diffusers pipelines with tiny random
denoisers on a CPU (diffusers {diffusers}, transformers {transformers}, torch {torch}). `make test`
runs a slice of it.

## Families and processors

A cell says in how many layers the operator ran, of the self-attention and joint layers of the
model. For each cell: small options give a finite picture that differs from dense; options that
cover the grid equal dense (linear attention has none); a batch of one equals a batch of two; the
report names every layer, with a reason where it ran dense; `remove` puts back processors, weights
and picture bit for bit. `softmax` equals the stock pipeline bit for bit, and an operator of zeros
changes the picture of every family in which it runs. No picture is square.

"""

LEFT = """
Reasons:

{reasons}

## Layers that no operator runs in

They keep the stock softmax, and the report says so.

"""

NEIGHBOURS = """
## Neighbours

What else people do to a pipeline, before and after `foveate.apply`. "works" means: the operator
runs in every layer it is meant for, the softmax operator equals the pipeline with that neighbour
alone bit for bit, and the picture is the one that `apply` last would give. Where a call of
diffusers takes the processors off, `foveate.status(pipe)` sees it and says what to call; after
that the picture is right again.

"""

OUTRO = """
Not run here, for want of a device: sequential offload, xFormers, sage and flash backends, regional
compilation with Inductor. Context parallelism runs apart, in two and four processes: sequence.md.
"""


def title(name):
    """The pipeline class, and what sets the case apart from the same class."""
    variant = {
        "sd3": " (dual attention)",
        "kontext": " (reference image)",
        "chroma": " (boolean text mask)",
        "chroma_bias": " (text mask as its own encoder makes it)",
    }
    return type(pipeline(name)).__name__ + variant.get(name, "")


def pipeline(name):
    return TinyFamily(name).pipe


def row(cells):
    return f"| {' | '.join(cells)} |\n"


def head(cells):
    return row(cells) + row(["---"] * len(cells))


class Reasons:
    """Footnotes: a number for each reason."""

    def __init__(self):
        self.known = {}

    def mark(self, reason):
        return f"[{self.known.setdefault(reason, len(self.known) + 1)}]"

    def __str__(self):
        return "\n".join(f"{n}. {reason}" for reason, n in self.known.items())


def matrix_cell(tiny, options, reasons):
    try:
        cell = conformance.check(tiny, options)
    except AssertionError as error:
        return f"{FAILS}: {error}"
    marks = "".join(f" {reasons.mark(reason)}" for reason in cell.reasons)
    return f"{cell.ran}/{cell.total}{marks}"


def matrix(progress):
    """The first table, its reasons, and the table of layers left alone."""
    reasons = Reasons()
    rows, left = head(["pipeline", "denoiser", *conformance.PROCESSORS]), []
    for name in FAMILIES:
        tiny = TinyFamily(name)
        cells = [title(name), f"`{type(tiny.model).__name__}`"]
        conformance.check_zero(tiny)
        for options in conformance.PROCESSORS.values():
            cells.append(matrix_cell(tiny, options, reasons))
            progress.update()
        rows += row(cells)
        counts = [str(tiny.expected.kinds.get(kind, "-")) for kind in LEFT_ALONE]
        if set(counts) != {"-"}:
            left.append(row([title(name), *counts]))
    table = head(["pipeline", *LEFT_ALONE.values()]) + "".join(left)
    return rows + LEFT.format(reasons=reasons) + table


def outcome(check, family, neighbour):
    try:
        return check(family, neighbour)
    except AssertionError as error:
        return f"{FAILS}: {error}"


def neighbour_rows(name, neighbour, progress):
    """One row for all families that fared alike."""
    if name == "LoRA" and importlib.util.find_spec("peft") is None:
        progress.update(len(neighbour.families))
        return row([name, "", "not run", "not run", "peft is not installed"])
    alike = {}
    for family in neighbour.families:
        ends = tuple(
            outcome(check, family, neighbour)
            for check in (neighbours.check_before, neighbours.check_after)
        )
        alike.setdefault(ends, []).append(type(pipeline(family)).__name__)
        progress.update()
    return "".join(
        row([name, ", ".join(pipes), *ends, neighbour.note or "-"]) for ends, pipes in alike.items()
    )


def neighbour_table(progress):
    rows = head(["neighbour", "pipelines", "before `apply`", "after `apply`", "remarks"])
    for name, neighbour in neighbours.NEIGHBOURS.items():
        rows += neighbour_rows(name, neighbour, progress)
    return rows


def main():
    warnings.simplefilter("ignore")
    conformance.quiet()
    cells = len(FAMILIES) * len(conformance.PROCESSORS)
    cells += sum(len(neighbour.families) for neighbour in neighbours.NEIGHBOURS.values())
    with tqdm.tqdm(total=cells) as progress:
        page = INTRO.format(
            diffusers=diffusers.__version__,
            transformers=transformers.__version__,
            torch=torch.__version__.partition("+")[0],
        )
        page += matrix(progress) + NEIGHBOURS + neighbour_table(progress) + OUTRO
    PAGE.write_text(page)
    return page.count(FAILS)


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
