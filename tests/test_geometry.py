"""Internal coordinates: exact values, and finite derivatives at the singular points in both modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offjax import geometry
from offjax.terms import angles

REGULAR = np.array([[0.1, 0.0, 0.02], [0.0, 0.0, 0.0], [0.0, 0.13, 0.01], [0.05, 0.2, 0.1]])


def test_exact_values():
    a, b, c = np.eye(3)
    origin = np.zeros(3)
    assert geometry.norm(3.0 * a) == 3.0
    assert np.isnan(geometry.norm(a * np.nan))
    assert geometry.angle(a, origin, b) == pytest.approx(np.pi / 2, abs=1e-16)
    assert geometry.angle(a, origin, -a) == np.pi
    assert geometry.dihedral(a, origin, b, b - c) == pytest.approx(np.pi / 2, abs=1e-15)
    assert geometry.dihedral(a, origin, b, b + c) == pytest.approx(-np.pi / 2, abs=1e-15)
    assert geometry.dihedral(a, origin, b, b + a) == 0.0


def test_dihedral_sign_is_openmm_s():
    import openmm

    force = openmm.CustomTorsionForce("theta")
    force.addTorsion(0, 1, 2, 3, [])
    system = openmm.System()
    for _ in range(4):
        system.addParticle(1.0)
    system.addForce(force)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(REGULAR)
    expected = context.getState(getEnergy=True).getPotentialEnergy()._value
    assert geometry.dihedral(*REGULAR) == pytest.approx(expected, rel=1e-12)


SINGULAR = {
    "coincident": np.zeros((4, 3)),
    "collinear": np.outer(np.arange(4.0), [0.1, 0.2, 0.05]),
    "folded back": np.array([[0.1, 0, 0], [0, 0, 0], [0.1, 0, 0], [0.2, 0, 0]]),
    "three collinear": np.array([[0.0, 0, 0], [0.1, 0, 0], [0.2, 0, 0], [0.25, 0.1, 0]]),
}


@pytest.mark.parametrize("x", SINGULAR.values(), ids=SINGULAR)
@pytest.mark.parametrize(
    "coordinate",
    [
        lambda x: geometry.norm(x[1] - x[0]),
        lambda x: geometry.angle(x[0], x[1], x[2]),
        lambda x: geometry.squared_deviation_from_linear(x[0], x[1], x[2]),
        lambda x: geometry.dihedral(*x),
    ],
    ids=["norm", "angle", "squared deviation", "dihedral"],
)
def test_derivatives_are_finite_at_singular_points(coordinate, x):
    assert np.isfinite(coordinate(x))
    for derivative in (jax.jacrev(coordinate), jax.jacfwd(coordinate), jax.hessian(coordinate)):
        assert np.all(np.isfinite(derivative(jnp.asarray(x))))


def test_linear_angle_term_keeps_its_curvature():
    """k/2 (theta - pi)^2 at the linear minimum: the bending curvature of the central atom is k (1/a + 1/b)^2."""
    x = jnp.array([[-0.1, 0, 0], [0, 0, 0], [0.12, 0, 0]])

    def energy(x):
        return angles.energies(x, np.array([[0, 1, 2]]), jnp.array([400.0]), jnp.array([np.pi]))[0]

    assert np.all(jax.grad(energy)(x) == 0)
    hessian = jax.hessian(energy)(x)
    expected = 400.0 * (1 / 0.1 + 1 / 0.12) ** 2
    assert hessian[1, 1, 1, 1] == pytest.approx(expected, rel=1e-10)
    assert hessian[1, 2, 1, 2] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("bend", [0.0299, 0.0301, 1e-3, 1e-6])
@pytest.mark.parametrize("equilibrium", [np.pi, 1.9])
def test_both_branches_of_the_angle_term_agree(bend, equilibrium):
    x = jnp.array([[-0.1, 0, 0], [0, 0, 0], [0.12 * np.cos(bend), 0.12 * np.sin(bend), 0]])
    one = jnp.ones(1)
    energy = angles.energies(x, np.array([[0, 1, 2]]), 400.0 * one, equilibrium * one)[0]
    assert energy == pytest.approx(200.0 * (np.pi - bend - equilibrium) ** 2, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_coordinates_are_invariant_under_rotation_and_translation(seed):
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4, 3))
    y = Rotation.random(rng=rng).apply(x) + rng.normal(size=3)
    assert geometry.dihedral(*y) == pytest.approx(float(geometry.dihedral(*x)), abs=1e-9)
    assert geometry.angle(*y[:3]) == pytest.approx(float(geometry.angle(*x[:3])), abs=1e-12)


def test_second_derivative_of_a_collinear_torsion_is_finite_in_float32():
    from scipy.spatial.transform import Rotation

    x = np.array([[0.0, 0, 0], [0.1, 0, 0], [0.2, 0, 0], [0.25, 0.1, 0]])
    rotated = (Rotation.random(20, rng=np.random.default_rng(0)).as_matrix() @ x.T).transpose(0, 2, 1)
    hessian = jax.jit(jax.vmap(jax.hessian(lambda y: jnp.cos(geometry.dihedral(*y)))))
    assert np.all(np.isfinite(hessian(jnp.asarray(rotated, jnp.float32))))
