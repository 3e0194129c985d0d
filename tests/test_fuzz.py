"""A seeded slice of the random combinations; `make fuzz` runs more and writes what came of them."""

import pytest

from fuzz import OPTIONS, combination, run
from tiny_families import FAMILIES

SLICE = range(30)


@pytest.mark.parametrize("seed", SLICE)
def test_combination(seed):
    run(combination(seed))


def test_seeds_differ_and_repeat():
    cases = [combination(seed) for seed in range(200)]
    assert cases == [combination(seed) for seed in range(200)]
    assert {case.family for case in cases} == set(FAMILIES)
    assert {case.operator for case in cases} == set(OPTIONS)
    assert {case.every for case in cases} == {None, 1, 2, 3}
    assert sum(case.is_dense for case in cases) > 20
