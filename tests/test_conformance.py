"""A quick slice of the conformance matrix: each family once, the columns taking turns.

The whole matrix is `make conformance`, which writes docs/compatibility.md.
"""

from pathlib import Path

import pytest

import foveate
from conformance import COLUMNS, PROCESSORS, check_broadcast, check_zero
from tiny_families import FAMILIES, tiny_family

NAMES = list(COLUMNS)
SLICE = [(family, NAMES[i % len(NAMES)]) for i, family in enumerate(FAMILIES)]
PAGE = Path(foveate.__file__).parent / "docs" / "compatibility.md"


@pytest.mark.parametrize("family", FAMILIES)
def test_zeros_change_the_picture(family):
    check_zero(tiny_family(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_identity(family):
    COLUMNS["softmax"](tiny_family(family))


@pytest.mark.parametrize(("family", "column"), SLICE)
def test_slice(family, column):
    COLUMNS[column](tiny_family(family))


@pytest.mark.parametrize("family", ["z_image", "aura_flow"])
def test_broadcast_where_the_timestep_runs_otherwise(family):
    check_broadcast(tiny_family(family))


@pytest.mark.slow
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("family", FAMILIES)
def test_matrix(family, column):
    COLUMNS[column](tiny_family(family))


# the page


def test_every_public_processor_is_a_column():
    processors = [type(options.wide or options.small) for options in PROCESSORS.values()]
    names = {processor.__name__ for processor in processors} | {"BroadcastAttnProcessor"}
    assert names == {name for name in foveate.__all__ if name.endswith("AttnProcessor")}


def test_the_page_has_every_cell_and_no_failure():
    page = PAGE.read_text()
    assert "FAILS" not in page
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
    assert all(cell.strip() for row in rows for cell in row)
    head = [cell.strip() for cell in rows[0]]
    assert head == ["pipeline", "denoiser", *COLUMNS]
    assert sum(len(row) == len(head) for row in rows[2:]) == len(FAMILIES)
