"""A few families of :mod:`tests.nonbonded.fuzz`; run that module for as long as you like."""

import pytest

from tests.nonbonded import fuzz


@pytest.mark.parametrize("seed", [1, 5])
def test_a_list_gives_the_energy_of_all_pairs_or_refuses(seed):
    seen = fuzz.family(seed, draws=6)
    assert seen["right"] > 0 and seen["moved right"] > 0
