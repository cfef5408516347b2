"""Minimisation of a batch's conformers: against single Systems, unrolled steps and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import offjax
from offjax.batch import compiler_options
from offjax.errors import InputError
from tests.samples import positions, system

SMILES = ("S", "CO", "C=O")
COUNTS = (2, 3, 2)


@pytest.fixture(scope="module")
def batch():
    return offjax.SystemBatch.from_systems([system(s) for s in SMILES])


@pytest.fixture(scope="module")
def conformers(batch):
    return batch.pack(
        [np.stack([positions(s, seed) for seed in range(n)]) for s, n in zip(SMILES, COUNTS, strict=True)]
    )


@pytest.fixture(scope="module")
def p():
    return system("S").parameters


@pytest.fixture(scope="module")
def rows(batch, conformers):
    """(first row, number of atoms) of each conformer."""
    sizes = np.array([batch.systems[m].n_particles for m in np.asarray(conformers.molecule)])
    return list(zip(np.cumsum(sizes) - sizes, sizes, strict=True))


@pytest.fixture(scope="module")
def free(batch, p, conformers):
    return batch.minimize(p, conformers, tolerance=1e-4)


def test_every_conformer_reaches_the_minimum_of_its_system_alone(batch, p, conformers, rows, free):
    assert np.all(free.converged) and np.all(free.largest_force <= 1e-4)
    assert len(set(np.asarray(free.steps).tolist())) > 1  # each ends by itself
    energies, forces = batch.energies_and_forces(p, conformers.with_positions(free.positions))
    np.testing.assert_allclose(energies, free.energies, rtol=1e-12)
    assert np.max(np.linalg.norm(forces, axis=1)) <= 1.001e-4
    first, n = rows[0]
    alone = offjax.minimize(lambda x: batch.systems[0].to_jax()(p, x), conformers.positions[:n], tolerance=1e-6)
    assert free.energies[0] == pytest.approx(float(alone.energy), abs=1e-9)


def test_too_few_steps_and_not_a_number_are_reported_by_conformer(batch, p, conformers, rows, free):
    few = batch.minimize(p, conformers, tolerance=1e-4, max_steps=3)
    assert not np.any(few.converged) and np.all(few.steps == 3)
    assert np.all(few.largest_force > 1e-4)
    first, _ = rows[3]
    x = np.array(conformers.positions)
    x[first : first + 2] = np.nan
    broken = batch.minimize(p, conformers.with_positions(x), tolerance=1e-4)
    expected = np.arange(len(rows)) != 3
    np.testing.assert_array_equal(broken.converged, expected)
    np.testing.assert_array_equal(broken.energies[expected], free.energies[expected])


@pytest.fixture(scope="module")
def held(batch, conformers, rows):
    """Methanol's C and O frozen, every atom restrained: arguments of minimize."""
    frozen = np.zeros(conformers.n_rows, bool)
    for c in (2, 3, 4):
        frozen[rows[c][0] : rows[c][0] + 2] = True
    return {"frozen": frozen, "restraint": 2e4}


def test_frozen_atoms_stay_and_the_energies_are_without_restraint(batch, p, conformers, held):
    found = batch.minimize(p, conformers, tolerance=1e-4, **held)
    assert np.all(found.converged)
    moved = np.linalg.norm(found.positions - conformers.positions, axis=1)
    assert np.all(moved[held["frozen"]] == 0) and np.all(moved[~held["frozen"]] > 0)
    energies, forces = batch.energies_and_forces(p, conformers.with_positions(found.positions))
    np.testing.assert_allclose(energies, found.energies, rtol=1e-10)
    balance = forces - 2e4 * (found.positions - conformers.positions)
    assert np.max(np.linalg.norm(balance, axis=1)[~held["frozen"]]) <= 1.001e-4


def observables(batch, conformers, positions, energies):
    """The energies, and squared distances of neighbouring rows: some in one molecule, some not."""
    squared = jnp.sum((positions[1:] - positions[:-1]) ** 2, axis=1)
    inside = conformers.conformer[1:] == conformers.conformer[:-1]
    return jnp.sum(energies * jnp.cos(jnp.arange(len(energies)))) + 1e3 * jnp.sum(jnp.where(inside, squared, 0.0))


def test_the_implicit_gradient_is_that_of_unrolled_steps(batch, p, conformers, held):
    plain = batch.plain(conformers)
    start, still = conformers.positions, jnp.asarray(held["frozen"])[:, None]

    def unrolled(theta):
        def step(x, _):
            _, forces = plain.energies_and_forces(p.from_vector(theta), x)
            move = 8e-7 * (forces - held["restraint"] * (x - start))
            return jnp.where(still, x, x + move), None

        x, _ = jax.lax.scan(step, start, length=1000)
        return observables(batch, conformers, x, plain.energies(p.from_vector(theta), x))

    def implicit(theta, conformers):
        found = batch.minimize(p.from_vector(theta), conformers, tolerance=1e-7, **held)
        return observables(batch, conformers, found.positions, found.energies)

    theta = jnp.asarray(p.to_vector())
    value, gradient = jax.jit(jax.value_and_grad(unrolled))(theta)
    other, derivative = jax.jit(jax.value_and_grad(implicit), compiler_options=compiler_options())(theta, conformers)
    assert other == pytest.approx(float(value), rel=1e-10)
    np.testing.assert_allclose(derivative, gradient, atol=1e-6 * float(jnp.max(jnp.abs(gradient))))
    assert jnp.count_nonzero(gradient) > 20


def test_geometries_of_free_molecules_respond_as_finite_differences_say(batch, p, conformers):
    chosen = p.select("Angles/angle", ["a28"])  # C-O-H

    def of(v, conformers):
        found = batch.minimize(chosen.insert(v), conformers, tolerance=1e-6)
        return observables(batch, conformers, found.positions, found.energies)

    both = jax.jit(jax.value_and_grad(of), compiler_options=compiler_options())
    v = jnp.asarray(chosen.to_vector())
    h = 1e-5
    difference = (both(v + h, conformers)[0] - both(v - h, conformers)[0]) / (2 * h)
    assert abs(float(difference)) > 1.0
    assert both(v, conformers)[1][0] == pytest.approx(float(difference), rel=1e-5)


def test_wrong_shapes_are_refused(batch, p, conformers):
    with pytest.raises(InputError, match="frozen must be boolean"):
        batch.minimize(p, conformers, frozen=np.zeros(3, bool))
    with pytest.raises(InputError, match="restraint must be a number"):
        batch.minimize(p, conformers, restraint=np.zeros(3))
    with pytest.raises(InputError, match="anchors must have shape"):
        batch.minimize(p, conformers, anchors=np.zeros((3, 3)))


def test_constraints_are_refused_by_name():
    rigid = offjax.SystemBatch.from_systems([system("CO", "openff-2.2.1.offxml")])
    with pytest.raises(offjax.UnsupportedError, match="without_constraints"):
        rigid.minimize(rigid.systems[0].parameters, rigid.pack([positions("CO")]))
