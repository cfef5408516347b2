"""Boxes that Packmol packs: composition, density, distances, and what is refused."""

import numpy as np
import pytest
from openff.toolkit import Molecule
from openff.units import Quantity

import offjax

WATER, ETHANOL = Molecule.from_smiles("O"), Molecule.from_smiles("CCO")


def test_a_mixture_has_the_counts_density_and_distances_asked_for():
    box = offjax.build_box([WATER, ETHANOL], [30, 5], Quantity(800, "kilogram / meter**3"), tolerance=0.19)
    assert box.topology.n_molecules == 35 and box.positions.shape == (30 * 3 + 5 * 9, 3)
    np.testing.assert_allclose(box.topology.get_positions().m_as("nanometer"), box.positions)
    np.testing.assert_allclose(box.topology.box_vectors.m_as("nanometer"), box.box)
    grams = sum(a.mass.m_as("dalton") for a in box.topology.atoms) / 6.02214076e23
    assert grams / (box.box[0, 0] ** 3 * 1e-21) == pytest.approx(0.8, rel=1e-12)

    owner = np.repeat(np.arange(35), [3] * 30 + [9] * 5)
    between = box.positions[:, None] - box.positions
    between -= box.box[0, 0] * np.round(between / box.box[0, 0])
    distance = np.linalg.norm(between, axis=-1)[owner[:, None] != owner]
    assert 0.185 < distance.min() < 0.25  # Packmol leaves up to 0.01 A of an overlap

    again = offjax.build_box([WATER, ETHANOL], [30, 5], 0.8, tolerance=0.19)
    np.testing.assert_array_equal(again.positions, box.positions)
    assert np.abs(offjax.build_box([WATER], [30], 0.8, seed=1).positions - again.positions[:90]).max() > 0.1


def test_a_packed_box_is_a_system_with_a_finite_energy():
    box = offjax.build_box([WATER], [216], 0.9)
    system = offjax.System.from_smirnoff("offjax-water3-1.0.offxml", box.topology)
    np.testing.assert_allclose(system.box, box.box)
    assert np.isfinite(float(system.to_jax(cutoff=0.8)(system.parameters, box.positions)))


@pytest.mark.parametrize(
    ("molecules", "counts", "density", "message"),
    [
        ([WATER], [1, 2], 1.0, "one count a molecule"),
        ([WATER], [-1], 1.0, "negative"),
        ([WATER], [10.7], 0.8, "integers"),
        ([WATER], [10], 997.0, "g/mL"),
        ([WATER], [10], "0.9", "g/mL"),
        (["O"], [10], 0.9, "Molecule.from_smiles"),
        ([ETHANOL], [1], 20.0, "too small"),
        ([WATER], [20], 6.0, "lower the density"),
    ],
)
def test_what_cannot_be_packed_is_refused(molecules, counts, density, message):
    with pytest.raises(offjax.InputError, match=message):
        offjax.build_box(molecules, counts, density)
