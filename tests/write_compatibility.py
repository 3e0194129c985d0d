"""Runs the whole conformance matrix and writes docs/compatibility.md with what it found.

`make conformance`. Exits with 1 where a law is broken; the table then says which.
"""

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
from foveate.pipelines.page import put_on_page
from tiny_families import FAMILIES, TinyFamily

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
FAILS = "**FAILS**"

INTRO = """This part is written by `make conformance`, which runs stock diffusers pipelines with
tiny random denoisers on a CPU (diffusers {diffusers}, transformers {transformers}, torch {torch}).
`make test` runs a slice of it.

## Families and processors

A cell says in how many layers the operator ran, of the self-attention and joint layers of the
model. For each cell: small options give a finite picture that differs from dense; options that
cover the grid equal dense (linear attention has none); a batch of one equals a batch of two; the
report names every layer, with a reason where it ran dense; `remove` puts back processors, weights
and picture bit for bit. `softmax` equals the stock pipeline bit for bit, and an operator of zeros
changes the picture of every family in which it runs. No picture is square.

`broadcast` is `BroadcastAttnProcessor` around the softmax and around one of the others, families
taking turns: computing in every step equals what lies underneath bit for bit, every second step of
{steps} gives a finite picture that differs; a cell says in how many layers outputs were forecast or
reused, which needs no softmax. `modulate` is `Emphasize` and `SelfTemperature`, which act in
cross-attention too: factors of 1 change nothing bit for bit, others change the picture.

"""

LEFT = """
Reasons:

{reasons}

## Layers that no operator runs in

They keep the stock softmax, and the report says so.

"""

NEIGHBOURS = """
## Neighbours

What else people do to a pipeline, before and after `foveate.apply`, and what they take back
afterwards. "works" means: the operator runs in every layer it is meant for, the softmax operator
equals the pipeline with that neighbour alone bit for bit, the picture is the one that `apply` last
would give, and `remove` gives the picture without it. Where a call of diffusers takes the
processors off, `foveate.status(pipe)` sees it and says what to call; after that the picture is
right again. A copy of a pipeline has no handle, so nothing is removed from it.

"""

OUTRO = """
Not run here, for want of a device: xFormers, sage and flash backends, regional compilation with
Inductor. Context parallelism runs apart, in two and four processes: sequence.md. Graphs and
recompilations are counted in tests/test_compiled.py.
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


def matrix_cell(tiny, check, reasons):
    try:
        cell = check(tiny)
    except AssertionError as error:
        return f"{FAILS}: {error}"
    marks = "".join(f" {reasons.mark(reason)}" for reason in cell.reasons)
    return f"{cell.ran}/{cell.total}{marks}"


def matrix(progress):
    """The first table, its reasons, and the table of layers left alone."""
    reasons = Reasons()
    rows, left = head(["pipeline", "denoiser", *conformance.COLUMNS]), []
    for name in FAMILIES:
        tiny = TinyFamily(name)
        cells = [title(name), f"`{type(tiny.model).__name__}`"]
        conformance.check_zero(tiny)
        for check in conformance.COLUMNS.values():
            cells.append(matrix_cell(tiny, check, reasons))
            progress.update()
        rows += row(cells)
        counts = [str(tiny.expected.kinds.get(kind, "-")) for kind in LEFT_ALONE]
        if set(counts) != {"-"}:
            left.append(row([title(name), *counts]))
    table = head(["pipeline", *LEFT_ALONE.values()]) + "".join(left)
    return rows + LEFT.format(reasons=reasons) + table


def outcome(family, neighbour, order):
    try:
        return neighbours.check(family, neighbour, order)
    except AssertionError as error:
        return f"{FAILS}: {error}"


def neighbour_rows(name, neighbour, progress):
    """One row for all families that fared alike."""
    alike = {}
    for family in neighbour.families:
        ends = tuple(outcome(family, neighbour, order) for order in neighbours.ORDERS)
        alike.setdefault(ends, []).append(type(pipeline(family)).__name__)
        progress.update()
    return "".join(
        row([name, ", ".join(pipes), *ends, neighbour.note or "-"]) for ends, pipes in alike.items()
    )


def neighbour_table(progress):
    rows = head(["neighbour", "pipelines", *neighbours.ORDERS, "remarks"])
    for name, neighbour in neighbours.NEIGHBOURS.items():
        rows += neighbour_rows(name, neighbour, progress)
    return rows


def main():
    warnings.simplefilter("ignore")
    conformance.quiet()
    cells = len(FAMILIES) * len(conformance.COLUMNS)
    cells += sum(len(neighbour.families) for neighbour in neighbours.NEIGHBOURS.values())
    with tqdm.tqdm(total=cells) as progress:
        page = INTRO.format(
            diffusers=diffusers.__version__,
            transformers=transformers.__version__,
            torch=torch.__version__.partition("+")[0],
            steps=conformance.BROADCAST_STEPS,
        )
        page += matrix(progress) + NEIGHBOURS + neighbour_table(progress) + OUTRO
    put_on_page(PAGE, "conformance", page)
    return page.count(FAILS)


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
