"""A SystemBatch of molecules with virtual sites has the energies and derivatives of the single systems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import offjax
from tests import sites

SMILES = ("CCCl", "CC=O", "C")
"""Two sites on one parent, one of them with Lennard-Jones parameters; a site out of the plane; no site."""


@pytest.fixture(scope="module")
def systems():
    made = [sites.molecule(smiles) for smiles in SMILES]
    return [offjax.System.from_smirnoff(sites.force_field(), m, charge_from_molecules=[m]) for m in made]


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(4)
    return [
        sites.arranged([sites.molecule(s)]) + rng.normal(0, 0.003, (n, sites.molecule(s).n_atoms, 3))
        for s, n in zip(SMILES, (2, 1, 1), strict=True)
    ]


@pytest.fixture(scope="module")
def batch(systems):
    return offjax.SystemBatch.from_systems(systems)


def assert_close(got, expected, tolerance=1e-9):
    expected = np.asarray(expected)
    scale = np.sqrt(np.mean(expected**2)) if expected.size else 0.0
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(scale, 1e-3))


def assert_same_parameters(got, expected):
    for section, attribute in expected.schema.slices:
        assert_close(got[section][attribute], expected[section][attribute])


@pytest.fixture(scope="module")
def single(systems, arrays):
    """(energy, forces of all particles, gradient of energy^2 + |forces|^2) of each conformer by ``to_jax``."""
    p, found = systems[0].parameters, []
    for system, x in zip(systems, arrays, strict=True):
        energy = system.to_jax()
        n_sites = system.n_particles - system.topology.n_atoms

        def value(p, x, energy=energy, n_sites=n_sites):
            u, gradient = jax.value_and_grad(energy, 1)(p, x)
            forces = jnp.concatenate([-gradient, jnp.zeros((n_sites, 3))])
            return u**2 + jnp.sum(forces**2), (u, forces)

        one = jax.jit(jax.value_and_grad(value, has_aux=True))
        found.extend((*aux, g) for (_, aux), g in (one(p, conformer) for conformer in x))
    return found


def test_energies_forces_and_their_gradients_are_those_of_the_single_systems(batch, systems, arrays, single):
    p, conformers = systems[0].parameters, batch.pack(arrays)

    def value(p, conformers):
        energies, forces = batch.energies_and_forces(p, conformers)
        return jnp.sum(energies**2) + jnp.sum(forces**2), (energies, forces)

    (_, (energies, forces)), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(p, conformers)
    assert_close(energies, [u for u, _, _ in single])
    assert_close(forces, np.concatenate([f for _, f, _ in single]))
    total = p.from_vector(sum(np.asarray(g.to_vector()) for _, _, g in single))
    assert_same_parameters(gradient, total)
    assert all(np.any(gradient["VirtualSites"][a]) for a in ("distance", "charge_increment", "inPlaneAngle", "sigma"))
    assert_close(batch.energies(p, conformers), energies)


def test_rows_of_sites_are_ignored(batch, systems, arrays):
    p = systems[0].parameters
    atoms = batch.pack(arrays)
    full = [np.asarray(np.pad(x, ((0, 0), (0, s.n_particles - x.shape[1]), (0, 0)), constant_values=0.7))
            for s, x in zip(systems, arrays, strict=True)]  # fmt: skip
    assert_close(batch.energies(p, batch.pack(full)), batch.energies(p, atoms), 1e-12)
    shapes = [x.shape for x in batch.unpack(batch.energies_and_forces(p, atoms)[1], atoms)]
    assert shapes == [(len(x), s.n_particles, 3) for s, x in zip(systems, arrays, strict=True)]


def test_the_plain_path_agrees_and_forward_mode_too(batch, systems, arrays, single):
    p, conformers = systems[0].parameters, batch.pack(arrays)
    plain, x = batch.plain(conformers), conformers.positions
    u, forces = np.array([u for u, _, _ in single]), np.concatenate([f for _, f, _ in single])
    v = forces / u[np.asarray(conformers.conformer)][:, None]  # U + v . F has then half the gradient of (U^2 + F^2)/U
    columns = np.arange(p.schema.size)
    rows = jax.jit(lambda v: (*plain.energies_and_forces(p, x), plain.gradients(p, x, v, columns)))
    energies, plain_forces, gradients = rows(v)
    assert_close(energies, u)
    assert_close(plain_forces, forces)
    for c, (_, _, expected) in enumerate(single):
        assert_close(2 * u[c] * gradients[c], expected.to_vector(), 1e-8)
    direction = jax.tree.map(lambda v: np.cos(np.arange(v.size)) * 1e-2, p)
    slopes = jax.jvp(lambda p: batch.energies(p, conformers), (p,), (direction,))[1]
    assert_close(slopes, rows(jnp.zeros_like(v))[2] @ direction.to_vector(), 1e-8)


def test_minibatches_share_their_shapes(batch, systems, arrays):
    p, conformers = systems[0].parameters, batch.pack(arrays)
    energies = batch.unpack(batch.energies(p, conformers), conformers)
    shapes = set()
    for chosen in ([0, 2], [1, 2]):
        part = conformers.select(chosen)
        shapes.add(tuple(leaf.shape for leaf in jax.tree.leaves(part)))
        got = batch.select(chosen).unpack(batch.energies(p, part), part)
        for one, n in zip(got, chosen, strict=True):
            assert_close(one, energies[n])
    assert len(shapes) == 1


def test_what_sites_do_not_have_yet_is_refused_by_name(batch, systems, arrays):
    with pytest.raises(offjax.UnsupportedError, match="<VirtualSites>: the minima"):
        batch.minimize(systems[0].parameters, batch.pack(arrays))
    with pytest.raises(offjax.InputError, match=r"expected positions \(n_conformers, 7, 3\)"):
        batch.pack([arrays[0], arrays[1][:, :3], arrays[2]])
