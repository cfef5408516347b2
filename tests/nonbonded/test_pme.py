"""Particle-mesh Ewald: exact sums, exact crystals, OpenMM's choice of parameters, derivatives in every mode."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offjax.constants import COULOMB
from offjax.nonbonded import ewald, periodic, pme
from offjax.nonbonded.ewald import Ewald
from offjax.terms import electrostatics, vdw
from tests.nonbonded import ewald_sum

BOXES = {
    "orthorhombic": np.diag([1.4, 1.6, 1.5]),
    "triclinic": np.array([[1.5, 0, 0], [0.5, 1.45, 0], [-0.6, 0.65, 1.4]]),
}


def particles(box, n=24, charge=0.0, seed=1):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=n)
    return rng.uniform(-0.5, 1.5, (n, 3)) @ box, q - q.mean() + charge / n


@jax.jit
def whole(x, q, box, cutoff=0.7):
    """The Coulomb energy by the pieces of the package: pairs within the cutoff, waves, self, background."""
    i, j = np.triu_indices(len(x), 1)
    d = periodic.minimum_image(x[j] - x[i], box)
    r2 = jnp.sum(d * d, axis=-1)
    pairs = electrostatics.ewald_direct_potential(r2, q[i] * q[j], FINE.alpha)
    return (
        jnp.sum(jnp.where(r2 < cutoff**2, pairs, 0.0))
        + jnp.sum(pme.reciprocal_energies(x, q, box, FINE))
        + jnp.sum(ewald.self_energies(q, FINE.alpha))
        + ewald.background_energy(q, FINE.alpha, periodic.volume(box))
    )


FINE = Ewald(8.0, (100, 96, 99))
"""erfc(8 * 0.7) is 2e-15; the grid is fine enough for 1e-7."""


@pytest.mark.parametrize("charge", [0.0, 2.0])
@pytest.mark.parametrize("name", BOXES)
def test_the_energy_is_that_of_an_exact_sum(name, charge):
    box = BOXES[name]
    x, q = particles(box, charge=charge)
    exact = ewald_sum.coulomb(x, q, box, alpha=4.0)
    assert exact == pytest.approx(ewald_sum.coulomb(x, q, box, alpha=5.5), rel=1e-11)
    assert whole(x, q, box) == pytest.approx(exact, rel=1e-6)


def test_rock_salt_has_madelung_s_constant():
    points = np.array(list(np.ndindex(4, 4, 4)))
    q = 1.0 - 2.0 * (points.sum(axis=1) % 2)
    spacing = 0.36
    per_pair = float(whole(points * spacing, q, np.eye(3) * 4 * spacing)) / 32
    assert per_pair == pytest.approx(-1.747564594633 * COULOMB / spacing, rel=1e-6)


def test_one_charge_in_its_background_has_wigner_s_energy():
    edge = 1.5
    energy = whole(np.full((1, 3), 0.1), np.ones(1), np.eye(3) * edge)
    assert energy == pytest.approx(-0.5 * 2.837297479 * COULOMB / edge, rel=1e-6)


@pytest.mark.parametrize("grid", [(20, 21, 24), (25, 22, 27)])
def test_the_error_falls_as_the_grid_becomes_finer(grid):
    box = BOXES["triclinic"]
    x, q = particles(box)
    exact = ewald_sum.reciprocal(x, q, box, 3.0)
    compiled = jax.jit(pme.reciprocal_energies, static_argnums=3)
    errors = [abs(float(jnp.sum(compiled(x, q, box, Ewald(3.0, tuple(k * n for n in grid))))) - exact) for k in (1, 2)]
    assert errors[0] < 1e-3 * abs(exact)
    assert errors[1] < errors[0] / 15  # order 5: at least the fourth power


def test_dispersion_does_not_depend_on_the_splitting():
    """Direct images, waves and self energy of -c_i c_j / r^6 add up to the same lattice sum."""
    box = BOXES["triclinic"]
    x, c = particles(box, n=10)
    x, c = 0.5 * x, np.abs(c)  # no pair closer than about 0.1 nm

    def total(alpha, grid):
        waves = jax.jit(pme.dispersion_energies, static_argnums=3)(x, c, box, Ewald(alpha, grid))
        energy = float(jnp.sum(waves))
        energy += float(jnp.sum(ewald.dispersion_self_energies(c, alpha)))
        for shift in ewald_sum.images(box, 8.0 / alpha + 3.0):
            r2 = np.sum((x[None] - x[:, None] + shift) ** 2, axis=-1)
            if not shift.any():
                np.fill_diagonal(r2, np.inf)
            y = np.minimum(alpha**2 * r2, 700.0)
            energy -= 0.5 * np.sum(np.outer(c, c) * np.exp(-y) * (1.0 + y + 0.5 * y * y) / r2**3)
        return energy

    assert total(3.0, (60, 60, 60)) == pytest.approx(total(4.5, (90, 90, 90)), rel=1e-7)


@pytest.mark.parametrize("n", [6, 7, 24, 25])
def test_splines_interpolate(n):
    w = np.linspace(0, 1, 7)[:-1]
    weights = np.asarray(pme.bspline(w))
    assert np.allclose(weights.sum(axis=1), 1.0, atol=1e-15)
    assert np.allclose(weights @ np.arange(5), 1.5 + w, atol=1e-14)  # the mean of M_5 is at 5/2
    assert np.all(pme.moduli(n) > 1e-7) and pme.moduli(n)[0] == pytest.approx(1.0)


def test_spreading_conserves_charge_and_wraps():
    box = BOXES["triclinic"]
    x, q = particles(box, charge=1.0)
    grid = pme.spread(x, q, box, (11, 6, 12))
    assert grid.shape == (11, 6, 12)
    assert jnp.sum(grid) == pytest.approx(1.0)
    moved = pme.spread(x + np.array([3, -2, 5])[None] @ box, q, box, (11, 6, 12))
    assert np.allclose(grid, moved, atol=1e-12)


def test_parameters_are_those_of_openmm():
    """alpha and grid against the CPU platform's, whose grid has the sizes that Fourier transforms like."""
    import openmm

    for tolerance, edges in [(5e-4, (2.0, 2.1, 2.2)), (1e-4, (3.1, 3.0, 2.9)), (1e-6, (1.9, 5.3, 4.7))]:
        made, force = openmm.System(), openmm.NonbondedForce()
        made.setDefaultPeriodicBoxVectors(*np.diag(edges).tolist())
        made.addParticle(1.0)
        force.addParticle(1.0, 0.3, 0.1)
        force.setNonbondedMethod(openmm.NonbondedForce.PME)
        force.setCutoffDistance(0.9)
        force.setEwaldErrorTolerance(tolerance)
        made.addForce(force)
        context = openmm.Context(made, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("CPU"))
        context.setPositions([[0.0, 0.0, 0.0]])
        context.getState(getEnergy=True)
        alpha, *grid = force.getPMEParametersInContext(context)
        mine = ewald.splitting(tolerance, 0.9)
        assert mine == pytest.approx(alpha, rel=1e-14)
        assert list(ewald.grid_size(mine, edges, tolerance)) == grid


def test_dispersion_parameters_are_those_of_openmm_but_for_the_rounding():
    alpha = ewald.splitting(1e-4, 0.9)
    # the Reference platform says 14 x 15 x 16, from an alpha of 3.2427/nm
    assert ewald.grid_size(alpha, (2.0, 2.1, 2.2), 1e-4, dispersion=True) == (14, 15, 16)
    assert ewald.grid_size(alpha, (0.3, 0.3, 0.3), 1e-4, dispersion=True) == (6, 6, 6)


SMALL = Ewald(4.0, (16, 15, 18))


def waves(x, q, box):
    return jnp.sum(pme.reciprocal_energies(x, q, box, SMALL))


def dispersion(x, q, box):
    return jnp.sum(pme.dispersion_energies(x, q, box, SMALL))


def richardson(f, v, i, h):
    def central(h):
        d = np.zeros(v.size)
        d[i] = h
        d = d.reshape(v.shape)
        return (f(v + d) - f(v - d)) / (2 * h)

    return (4 * central(h / 2) - central(h)) / 3


@pytest.mark.parametrize("energy", [waves, dispersion])
def test_gradients_agree_with_differences(energy):
    box = BOXES["triclinic"]
    arguments = [*particles(box, n=6, charge=1.0), box]
    gradients = jax.jit(jax.grad(energy, (0, 1, 2)))(*arguments)
    compiled = jax.jit(energy)
    for n, g in enumerate(gradients):

        def along(v, n=n):
            return float(compiled(*arguments[:n], v, *arguments[n + 1 :]))

        g = np.asarray(g).ravel()
        fd = np.array([richardson(along, arguments[n], i, 2e-4) for i in range(g.size)])
        assert np.allclose(g, fd, rtol=0, atol=1e-8 * np.sqrt(np.mean(g * g))), n


@pytest.mark.parametrize("energy", [waves, pytest.param(dispersion, marks=pytest.mark.slow)])
def test_second_derivatives_in_all_modes_agree(energy):
    box = BOXES["triclinic"]
    x, q = particles(box, n=4, charge=1.0)
    v = np.concatenate([x.ravel(), q, box.ravel()])
    t = np.random.default_rng(5).normal(size=v.size)

    def flat(v):
        return energy(v[:12].reshape(4, 3), v[12:16], v[16:].reshape(3, 3))

    @jax.jit
    def products(v, t):
        slope = jax.grad(flat)
        return slope(v), jax.jvp(slope, (v,), (t,))[1], jax.grad(lambda u: jnp.vdot(slope(u), t))(v)

    _, forward, reverse = products(v, t)
    assert np.allclose(forward, reverse, rtol=0, atol=1e-10 * np.abs(forward).max())
    outer, inner = (
        (np.asarray(products(v + h * t, t)[0]) - np.asarray(products(v - h * t, t)[0])) / (2 * h) for h in (1e-4, 5e-5)
    )
    fd = (4 * inner - outer) / 3
    assert np.allclose(forward, fd, rtol=0, atol=1e-6 * np.abs(fd).max())


def test_float32_stays_float32():
    box = BOXES["triclinic"]
    x, q = particles(box)
    single = [v.astype(np.float32) for v in (x, q, box)]
    for energy in (waves, dispersion):
        value, slopes = jax.jit(jax.value_and_grad(energy, (0, 1, 2)))(*single)
        assert value.dtype == jnp.float32 and all(s.dtype == jnp.float32 for s in slopes)
        assert value == pytest.approx(float(energy(x, q, box)), rel=1e-4)


@pytest.mark.parametrize("r", [0.0, 1e-9, 0.1, 0.2, 0.499, 0.501, 1.0, 3.0])
def test_excluded_pairs_are_exact_and_smooth(r):
    alpha = 1.7
    coulomb = float(electrostatics.ewald_excluded_potential(jnp.float64(r * r), 1.0, alpha))
    limit = 2.0 * alpha / math.sqrt(math.pi)
    expected = math.erf(alpha * r) / r if r > 1e-6 else limit
    assert coulomb == pytest.approx(-COULOMB * expected, rel=1e-14)
    x = (alpha * r) ** 2
    series = math.exp(-x) * sum(x**n / math.factorial(n + 3) for n in range(60))
    damped = float(vdw.ewald_excluded_potential(jnp.float64(r * r), 1.0, alpha))
    assert damped == pytest.approx(alpha**6 * series, rel=1e-12)
    for f in (electrostatics.ewald_excluded_potential, vdw.ewald_excluded_potential):
        for mode in (jax.grad, jax.jacfwd):
            assert np.isfinite(mode(mode(lambda s, f=f: f(s, 1.0, alpha)))(r * r))


def test_many_particles_are_spread_in_groups_with_the_same_energy_and_derivatives(monkeypatch):
    box, mesh = BOXES["triclinic"], Ewald(5.0, (20, 18, 21))
    x, q = particles(box, n=150)

    def energy(x, q, box):
        return jnp.sum(pme.reciprocal_energies(x, q, box, mesh))

    def values():
        tangents = tuple(np.random.default_rng(2).normal(size=np.shape(v)) for v in (x, q, box))
        reverse = jax.jit(lambda *v: jax.value_and_grad(energy, (0, 1, 2))(*v))(x, q, box)
        return reverse, jax.jit(lambda *v: jax.jvp(energy, v, tangents)[1])(x, q, box), tangents

    (at_once, gradient), slope, tangents = values()
    monkeypatch.setattr(pme, "_TOGETHER", 64)  # three groups, the last of them not full
    (in_groups, of_groups), slope_of_groups, _ = values()
    assert float(in_groups) == pytest.approx(float(at_once), rel=1e-13)
    for one, other in zip(of_groups, gradient, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)
    assert float(slope_of_groups) == pytest.approx(float(slope), rel=1e-11)
    along = sum(float(np.sum(g * t)) for g, t in zip(gradient, tangents, strict=True))
    assert float(slope) == pytest.approx(along, rel=1e-11)
