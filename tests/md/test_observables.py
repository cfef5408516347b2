"""Observables: exact values of lattices, ideal gases and oscillators, and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offjax import md
from offjax.errors import InputError


def hexagonal(n=6, spacing=1.0):
    """A hexagonal lattice and its box."""
    i, j = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    height = np.sqrt(3) / 2
    x = spacing * np.stack([(i + 0.5 * (j % 2)).ravel(), (height * j).ravel()], 1)
    return jnp.asarray(x), jnp.array([n * spacing, n * spacing * height])


def test_the_order_of_lattices():
    x, box = hexagonal()
    displacement = md.periodic(box).displacement
    np.testing.assert_allclose(md.bond_orientational_order(x, displacement, 1.2), 1.0, atol=1e-12)
    np.testing.assert_allclose(md.bond_orientational_order(x, displacement, 0.5), 0.0, atol=1e-12)
    square = jnp.asarray(np.stack(np.meshgrid(*[np.arange(4.0)] * 2), -1).reshape(-1, 2))
    displacement = md.periodic(4.0).displacement
    np.testing.assert_allclose(md.bond_orientational_order(square, displacement, 1.2, fold=4), 1.0, atol=1e-12)
    np.testing.assert_allclose(md.bond_orientational_order(square, displacement, 1.2), 0.0, atol=1e-12)
    with pytest.raises(InputError, match="2"):
        md.bond_orientational_order(jnp.zeros((3, 3)), displacement, 1.0)


@pytest.mark.parametrize("dimension", [2, 3])
def test_the_pair_correlation_of_an_ideal_gas_is_one(dimension, rng):
    n, side = 1500, 10.0
    x = jnp.asarray(rng.uniform(0, side, size=(n, dimension)))
    displacement = md.periodic(side).displacement
    edges = np.linspace(1.0, 5.0, 5)
    counted = md.pair_correlation(x, displacement, edges, side**dimension)
    pairs = n * (n - 1) / 2 * np.diff(edges**dimension) * (np.pi if dimension == 2 else 4 / 3 * np.pi)
    error = 1 / np.sqrt(pairs / side**dimension)
    assert np.all(np.abs(counted - 1) < 5 * error)
    smooth = md.smooth_pair_correlation(x, displacement, np.linspace(2.0, 4.0, 5), 0.1, side**dimension)
    np.testing.assert_allclose(smooth, 1.0, atol=0.1)


def test_the_smooth_pair_correlation_is_differentiable(rng):
    x = jnp.asarray(rng.uniform(0, 4, size=(12, 3)))
    displacement = md.periodic(4.0).displacement

    def of(x):
        return jnp.sum(md.smooth_pair_correlation(x, displacement, jnp.array([0.8, 1.2]), 0.1, 64.0) ** 2)

    gradient, direction, h = jax.grad(of)(x), rng.normal(size=x.shape), 1e-6
    difference = (of(x + h * direction) - of(x - h * direction)) / (2 * h)
    assert jnp.sum(gradient * direction) == pytest.approx(float(difference), rel=1e-6)


def fluid(rng, box):
    rows = np.diag(box) if np.ndim(box) == 1 else np.array(box)
    grid = np.stack(np.meshgrid(*[np.arange(4) / 4] * 3), -1).reshape(-1, 3)
    x = jnp.asarray(grid @ rows + rng.normal(scale=0.05, size=(64, 3)))
    return x, md.pair_energy(md.smooth_cutoff(md.lennard_jones, 1.4, 1.9), md.periodic().displacement)


@pytest.mark.parametrize(
    "box", [[4.4, 4.6, 4.8], [[4.5, 0, 0], [0.6, 4.4, 0], [-0.4, 0.5, 4.6]]], ids=["box", "tilted"]
)
def test_the_stress_is_the_virial_of_pair_forces(box, rng):
    """sigma V = sum over pairs of r f, and -sum m v v; the pressure is -trace/3."""
    x, energy = fluid(rng, box)
    box = jnp.asarray(box, float)
    v = jnp.asarray(rng.normal(size=x.shape))
    i, j = np.triu_indices(64, 1)
    r = md.periodic(box).displacement(x[i], x[j])
    potential = md.smooth_cutoff(md.lennard_jones, 1.4, 1.9)
    length = jnp.linalg.norm(r, axis=1)
    slope = jax.vmap(jax.grad(potential))(length)
    virial = (r * (slope / length)[:, None]).T @ r - 2.0 * v.T @ v
    found = md.stress(energy, x, box, velocities=v, masses=2.0)
    np.testing.assert_allclose(found, virial / md.volume(box), atol=1e-10)
    value = md.pressure(energy, x, box, velocities=v, masses=2.0)
    assert value == pytest.approx(-float(jnp.trace(found)) / 3, rel=1e-10)


def test_the_pressure_of_molecules_is_that_of_their_centres(rng):
    box = jnp.array([4.4, 4.6, 4.8])
    x, energy = fluid(rng, box)
    v, masses, groups = jnp.asarray(rng.normal(size=x.shape)), rng.uniform(1, 3, 64), np.arange(64) // 2

    def centre(y):
        sums = np.stack([np.bincount(groups, masses * c) for c in np.asarray(y).T], 1)
        return sums / np.bincount(groups, masses)[:, None]

    h = 1e-5
    up, down = (energy(x + s * centre(x)[groups], (1 + s) * box) for s in (h, -h))
    kinetic = np.sum(np.bincount(groups, masses)[:, None] * centre(v) ** 2)
    value = md.pressure(energy, x, box, velocities=v, masses=masses, groups=groups)
    assert value == pytest.approx(float((kinetic - (up - down) / (2 * h)) / (3 * md.volume(box))), rel=1e-6)
    alone = md.pressure(energy, x, box, velocities=v, masses=masses, groups=np.arange(64))
    assert alone == pytest.approx(float(md.pressure(energy, x, box, velocities=v, masses=masses)), rel=1e-12)
    with pytest.raises(InputError, match="molecule of each particle"):
        md.pressure(energy, x, box, groups=groups[:5])


def test_the_elastic_constants_of_a_hexagonal_crystal_of_springs():
    """Nearest-neighbour springs: lambda = mu = sqrt(3)/4 k, in two dimensions (Cauchy relation, isotropy)."""
    k = 3.0
    x, box = hexagonal(4)

    def moduli(k):
        energy = md.pair_energy(lambda r: jnp.where(r < 1.3, 0.5 * k * (r - 1.0) ** 2, 0.0), md.periodic().displacement)
        return md.elastic_moduli(energy, x, box)

    c, slope = jax.jit(lambda k: jax.jvp(moduli, (k,), (1.0,)))(k)
    np.testing.assert_allclose(slope, c / k, atol=1e-9)  # the crystal's equal modes do no harm
    lame = np.sqrt(3) / 4 * k
    assert c[0, 0, 0, 0] == pytest.approx(3 * lame, rel=1e-9)
    assert c[1, 1, 1, 1] == pytest.approx(3 * lame, rel=1e-9)
    assert c[0, 0, 1, 1] == pytest.approx(lame, rel=1e-9)
    assert c[0, 1, 0, 1] == pytest.approx(lame, rel=1e-9)


def test_elastic_constants_let_particles_relax():
    """A chain of two different springs in series: C = L k1 k2/(k1 + k2), not the mean."""

    def energy(x, box):
        long = box[0, 0] if jnp.ndim(box) == 2 else box[0]
        first, second = x[1, 0] - x[0, 0], x[0, 0] + long - x[1, 0]
        return 0.5 * 2.0 * (first - 1.0) ** 2 + 0.5 * 6.0 * (second - 1.0) ** 2

    c = md.elastic_moduli(energy, jnp.array([[0.0], [1.0]]), jnp.array([2.0]))
    assert c[0, 0, 0, 0] == pytest.approx(2.0 * (2.0 * 6.0 / 8.0), rel=1e-12)


def test_derivatives_are_finite_where_observables_vanish():
    displacement = md.free().displacement
    lonely = jnp.array([[0.0, 0.0], [5.0, 5.0], [5.0, 5.0]])

    def vanishing(x):
        order = md.bond_orientational_order(x, displacement, 1.2)
        smooth = md.smooth_pair_correlation(x, displacement, jnp.linspace(0.1, 2, 3), 0.1, 10.0)
        modes = md.normal_modes(lambda x: jnp.sum(x**4), 0.0 * x)
        return jnp.sum(order) + jnp.sum(smooth) + jnp.sum(modes.frequencies)

    both = jax.jit(lambda x: (jax.grad(vanishing)(x), jax.jacfwd(vanishing)(x)))(lonely)
    assert np.all(np.isfinite(both))


def test_a_box_that_is_too_small_for_the_energy_is_refused():
    energy = md.pair_energy(md.smooth_cutoff(md.lennard_jones, 1.5, 2.0), md.periodic().displacement)
    x, box = jnp.array([[0.0, 0, 0], [1.1, 0, 0]]), jnp.full(3, 3.0)
    for use in (md.stress, md.pressure, md.elastic_moduli, lambda *a: md.minimize(lambda x: energy(x, box=box), x)):
        with pytest.raises(InputError, match="half of the smallest box edge 3"):
            use(energy, x, box)


def test_what_is_no_energy_is_refused():
    x, box = jnp.array([[0.0, 0, 0], [1.1, 0, 0]]), jnp.full(3, 3.0)
    for use in (md.stress, md.pressure, md.elastic_moduli, lambda energy, x, box: md.normal_modes(energy, x)):
        with pytest.raises(InputError, match=r"scalar, not an array float64 \(2,\)"):
            use(lambda x, box=None: jnp.sum(x**2, axis=1), x, box)
        with pytest.raises(InputError, match="floating-point numbers, got int"):
            use(lambda x, box=None: jnp.sum(x**2), x.astype(int), box)


def test_normal_modes_of_a_diatomic():
    """Five zero modes and omega = sqrt(k/mu)."""
    masses, k = np.array([1.0, 3.0]), 5.0
    modes = md.normal_modes(
        lambda x: 0.5 * k * (jnp.linalg.norm(x[1] - x[0]) - 1.0) ** 2, jnp.array([[0.0, 0, 0], [0, 1, 0]]), masses
    )
    np.testing.assert_allclose(modes.frequencies[:-1], 0.0, atol=1e-6)
    assert modes.frequencies[-1] == pytest.approx(np.sqrt(k * (1 / 1 + 1 / 3)), rel=1e-12)
    stretch = modes.displacements[-1]
    np.testing.assert_allclose(masses @ stretch, 0.0, atol=1e-12)


def test_motion(rng):
    v = jnp.asarray(rng.normal(size=(40, 7, 3)))
    lag, n = 11, 40
    expected = np.mean(np.sum(v[: n - lag] * v[lag:], -1))
    assert md.velocity_autocorrelation(v)[lag] == pytest.approx(float(expected), rel=1e-10)
    x = jnp.cumsum(v, 0)
    expected = np.mean(np.sum((x[lag:] - x[: n - lag]) ** 2, -1))
    assert md.mean_squared_displacement(x)[lag] == pytest.approx(float(expected), rel=1e-9)
    assert md.mean_squared_displacement(x)[0] == pytest.approx(0, abs=1e-10)
    masses = rng.uniform(1, 2, size=7)
    expected = np.sum(masses[:, None] * np.asarray(v) ** 2, (1, 2)) / 21
    np.testing.assert_allclose(md.kinetic_temperature(v, masses), expected, rtol=1e-12)
    assert md.kinetic_temperature(v[0], masses, 18) == pytest.approx(float(expected[0] * 21 / 18), rel=1e-12)
