"""A quick slice of the conformance matrix: each family once, the processors taking turns.

The whole matrix is `make conformance`, which writes docs/compatibility.md.
"""

import pytest

from conformance import PROCESSORS, check, check_zero
from tiny_families import FAMILIES, tiny_family

NAMES = list(PROCESSORS)
SLICE = [(family, NAMES[i % len(NAMES)]) for i, family in enumerate(FAMILIES)]


@pytest.mark.parametrize("family", FAMILIES)
def test_zeros_change_the_picture(family):
    check_zero(tiny_family(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_identity(family):
    check(tiny_family(family), PROCESSORS["softmax"])


@pytest.mark.parametrize(("family", "processor"), SLICE)
def test_slice(family, processor):
    check(tiny_family(family), PROCESSORS[processor])


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_matrix(family, processor):
    check(tiny_family(family), PROCESSORS[processor])
