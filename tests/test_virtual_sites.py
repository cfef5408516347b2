"""Frames of virtual sites: exact positions of every kind, motion with the molecule, degenerate geometries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from offjax import virtual_sites
from offjax.virtual_sites import KINDS

# the parent at (1, 0, 0); the others in the plane z = 0 but for the fourth
CORNERS = np.array([[1.0, 0, 0], [1, 2, 0], [3, 0, 0], [1, 0, 3]])


def place(kind, distance, outOfPlaneAngle=0.0, inPlaneAngle=np.pi, x=CORNERS):
    atoms = np.arange(4)[None] if kind == "TrivalentLonePair" else np.array([[0, 1, 2, 0]])
    values = [jnp.full(1, v) for v in (distance, outOfPlaneAngle, inPlaneAngle)]
    return virtual_sites.positions(jnp.asarray(x), atoms, np.array([KINDS.index(kind)]), *values)[0]


def test_a_bond_charge_stands_on_the_line_of_the_bond():
    assert np.allclose(place("BondCharge", 0.1), [1, -0.1, 0], atol=1e-15)
    assert np.allclose(place("BondCharge", -0.1), [1, 0.1, 0], atol=1e-15)


def test_a_monovalent_lone_pair_has_both_angles():
    assert np.allclose(place("MonovalentLonePair", 0.1, 0.0, 0.0), [1, 0.1, 0], atol=1e-15)
    assert np.allclose(place("MonovalentLonePair", 0.1, 0.0, np.pi / 2), [1.1, 0, 0], atol=1e-15)
    assert np.allclose(place("MonovalentLonePair", 0.1, np.pi / 2, 0.3), [1, 0, -0.1], atol=1e-15)
    c, s = np.cos(np.pi / 3), np.sin(np.pi / 3)
    assert np.allclose(place("MonovalentLonePair", 0.1, 0.0, np.pi / 3), [1 + 0.1 * s, 0.1 * c, 0], atol=1e-15)


def test_a_divalent_lone_pair_stands_opposite_to_the_bisector_and_out_of_the_plane():
    r = 0.1 / np.sqrt(2)
    assert np.allclose(place("DivalentLonePair", 0.1), [1 - r, -r, 0], atol=1e-15)
    up, down = place("DivalentLonePair", 0.1, 0.7), place("DivalentLonePair", 0.1, -0.7)
    assert np.allclose([up[2], down[2]], [0.1 * np.sin(0.7), -0.1 * np.sin(0.7)], atol=1e-15)
    assert np.allclose(up[:2], [1 - r * np.cos(0.7), -r * np.cos(0.7)], atol=1e-15)


def test_a_trivalent_lone_pair_stands_opposite_to_the_centre_of_the_others():
    centre = np.mean(CORNERS[1:], axis=0) - CORNERS[0]
    assert np.allclose(place("TrivalentLonePair", 0.1), CORNERS[0] - 0.1 * centre / np.linalg.norm(centre), atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_sites_move_with_the_molecule(kind):
    x = np.random.default_rng(0).normal(size=(4, 3))
    turn = Rotation.random(random_state=1).as_matrix()
    site = place(kind, 0.2, 0.4, 2.0, x)
    assert np.allclose(place(kind, 0.2, 0.4, 2.0, x @ turn.T + 1.5), turn @ site + 1.5, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("x", [np.zeros((4, 3)), np.outer(np.arange(4.0), [0.1, 0.2, 0.2]), CORNERS[[0, 1, 0, 1]]])
def test_degenerate_frames_are_finite_in_value_and_derivatives_of_both_modes(kind, x):
    def site(x, values):
        return place(kind, *values, x=x)

    values = (0.1, 0.3, 2.0)
    for derivative in (jax.jacfwd(site, (0, 1)), jax.jacrev(site, (0, 1)), jax.hessian(site)):
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(derivative(jnp.asarray(x), values)))
    assert np.all(np.isfinite(site(x, values)))
