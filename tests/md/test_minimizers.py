"""Minimisers on problems with known answers, and the derivative of the minimum against finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import offjax
from offjax.errors import InputError
from offjax.md import (
    descend,
    fire,
    lbfgs,
    lennard_jones,
    pair_energy,
    periodic,
    soft_sphere,
    steepest_descent,
)
from offjax.md.minimizers import minimize
from offjax.nonbonded.neighbors import neighbor_list
from tests.samples import positions, system

METHODS = {"fire": fire(), "lbfgs": lbfgs(), "steepest descent": steepest_descent()}


def quadratic(x, centre, stiffness):
    return 0.5 * jnp.sum(stiffness * (x - centre) ** 2)


@pytest.fixture
def start(rng):
    return jnp.asarray(rng.normal(size=(3, 2)))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_quadratic_minimum_is_found(method, start):
    stiffness = jnp.array([[1.0, 3.0], [2.0, 9.0], [0.5, 4.0]])
    found = minimize(quadratic, start, jnp.ones((3, 2)), stiffness, method=method, tolerance=1e-6)
    assert found.converged
    np.testing.assert_allclose(found.positions, 1.0, atol=2e-6)
    assert found.largest_force <= 1e-6
    assert found.steps > 1


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_lennard_jones_triangle_has_its_known_energy(method):
    energy = pair_energy(lennard_jones, offjax.md.free().displacement)
    found = jax.jit(lambda x: minimize(energy, x, method=method, tolerance=1e-4))(
        jnp.array([[0.0, 0.0], [1.3, 0.1], [0.4, 1.2]])
    )
    assert found.energy == pytest.approx(-3.0, abs=1e-8)
    assert found.converged


def test_steepest_descent_goes_on_where_rounding_hides_the_energy(start):
    stiffness = jnp.array([[1.0], [10.0], [30.0]])
    found = minimize(lambda x: 1e3 + 0.5 * jnp.sum(stiffness * x**2), start, method=steepest_descent(), tolerance=1e-9)
    assert found.converged and found.steps < 2000


def test_not_a_number_and_too_few_steps_do_not_converge(start):
    found = minimize(lambda x: jnp.sum(jnp.log(x)), -jnp.ones((2, 2)))
    assert not found.converged
    for energy in (lambda x: jnp.nan * jnp.sum(x), lambda x: jnp.sum(x**2) + jnp.nan):
        found = minimize(energy, start)
        assert not found.converged and found.steps == 0
    found = minimize(quadratic, start, 0.0, 1.0, max_steps=2)
    assert not found.converged and found.steps == 2


def test_other_parameters_of_the_same_energy_are_not_compiled_anew(start):
    traced = []

    def pulled(x, centre, stiffness):
        traced.append(1)
        return quadratic(x, centre, stiffness)

    uses = []
    for k, centre in enumerate((1.0, 2.0, jnp.asarray(3.0))):
        before = len(traced)
        found = minimize(pulled, start + k, centre, 1.0)
        np.testing.assert_allclose(found.positions, centre, atol=1e-6)
        slope = jax.grad(lambda c, k=k: minimize(partial(pulled, centre=c, stiffness=1.0), start).positions[0, k % 2])
        assert slope(centre) == pytest.approx(1.0, abs=1e-9)
        uses.append(len(traced) - before)
    assert uses[1] == uses[2] < uses[0]  # traced to look for values that it closes over, and compiled at the first


def test_numbers_that_an_energy_compares_or_counts_with_stay_numbers(start):
    def inside(x, cutoff, species):
        assert cutoff > 0 and len(np.unique(species)) == 2
        return jnp.sum((x - cutoff) ** 2)

    found = minimize(partial(inside, cutoff=1.5, species=np.array([0, 1])), jnp.zeros((2, 2)))
    np.testing.assert_allclose(found.positions, 1.5, atol=1e-6)
    for c in (4.0, 5.0):  # nothing is remembered of an energy that closes over its parameters
        np.testing.assert_allclose(minimize(lambda x, c=c: quadratic(x, c, 1.0), start).positions, c, atol=1e-6)


def test_wrong_arguments_are_refused():
    with pytest.raises(InputError, match="vmap"):
        minimize(jnp.sum, jnp.zeros((4, 3, 2)))
    with pytest.raises(InputError, match="hessian"):
        minimize(jnp.sum, jnp.zeros((3, 2)), hessian="exact")
    with pytest.raises(InputError, match="x0 of particle 1 is not finite"):
        minimize(jnp.sum, jnp.zeros((3, 2)).at[1, 0].set(jnp.nan))


@pytest.mark.parametrize("hessian", ["dense", "iterative"])
@pytest.mark.parametrize("differentiate", [jax.jacrev, jax.jacfwd])
def test_the_exact_derivative_of_a_quadratic_minimum(hessian, differentiate, start):
    """x* = K^-1 c exactly; the energy's derivative is -x*."""
    k = jnp.array([[2.0, 0.3], [0.3, 1.0]])

    def energy(x, c):
        return 0.5 * jnp.sum(x @ k * x) - jnp.sum(c * x)

    def of(c):
        found = minimize(energy, start, c, tolerance=1e-10, hessian=hessian)
        return found.positions, found.energy

    c = jnp.arange(6.0).reshape(3, 2)
    derivative, slope = differentiate(of)(c)
    expected = np.einsum("ij,ab->iajb", np.eye(3), np.linalg.inv(k))
    np.testing.assert_allclose(derivative, expected, atol=1e-10)
    np.testing.assert_allclose(slope, -of(c)[0], atol=1e-12)
    np.testing.assert_allclose(jax.hessian(lambda c: of(c)[1])(c), -expected, atol=1e-9)


def spheres(n: int, density: float):
    """Soft spheres at random in a periodic square, as the jax-md cookbook on implicit differentiation draws them."""
    side = (n / density) ** 0.5
    with jax.threefry_partitionable(False):
        key, _ = jax.random.split(jax.random.PRNGKey(5))
        x0 = jax.random.uniform(key, (n, 2), maxval=side, dtype=jnp.float64)
    displacement = periodic(side).displacement
    return x0, displacement, pair_energy(soft_sphere, displacement)


@pytest.mark.parametrize("listed", [False, True], ids=["all pairs", "neighbour list"])
def test_seven_soft_spheres_give_the_published_numbers(listed):
    """With full matrices of pairs: each element has half of its pair, with and without a list."""
    x0, _, energy = spheres(7, 0.3)
    box = (7 / 0.3) ** 0.5
    neighbors = neighbor_list(x0, box, cutoff=2.0, skin=0.3, headroom=3.0) if listed else None

    def at_minimum(sigma, alpha):
        def of(x):
            near = neighbors.update(x, box) if listed else None
            return energy(x, box=box, neighbors=near, sigma=sigma, alpha=alpha)

        return minimize(of, x0, method=fire(), tolerance=1e-12).energy

    two = jnp.full((7, 7), 2.0)
    value, (d_sigma, d_alpha) = jax.jit(jax.value_and_grad(at_minimum, argnums=(0, 1)))(two, two)
    assert value == pytest.approx(0.0615943027340254, abs=1e-15)
    expected = [0, 0.00297984, 0.00736627, 0.015354, 0, 0.015354, 0.00297984]
    np.testing.assert_allclose(d_sigma[0], expected, atol=5e-9)
    np.testing.assert_allclose(d_sigma, d_sigma.T, atol=1e-12)
    expected = [0, -0.00017895, -0.00092201, -0.00348099, 0, -0.00348099, -0.00017895]
    np.testing.assert_allclose(d_alpha[0], expected, atol=5e-9)


@pytest.mark.parametrize("hessian", ["dense", "iterative"])
def test_an_observable_of_the_minimum_responds_to_a_value_that_the_energy_closes_over(hessian):
    x0, displacement, energy = spheres(7, 0.3)

    def distance(sigma):
        found = minimize(lambda x: energy(x, sigma=sigma), x0, method=fire(), tolerance=1e-12, hessian=hessian)
        vector = displacement(found.positions[0], found.positions[3])
        return jnp.sqrt(jnp.sum(vector**2))

    distance = jax.jit(distance)
    h = 1e-5
    difference = (distance(2.0 + h) - distance(2.0 - h)) / (2 * h)
    for differentiate in (jax.grad, jax.jacfwd):
        derivative = differentiate(distance)(2.0)
        assert derivative == pytest.approx(-0.29586, abs=1e-5)
        assert derivative == pytest.approx(float(difference), rel=1e-7)
    curvature = (jax.grad(distance)(2.0 + h) - jax.grad(distance)(2.0 - h)) / (2 * h)
    assert jax.grad(jax.grad(distance))(2.0) == pytest.approx(float(curvature), rel=1e-6)


def bidisperse(diameter, fraction=0.98, n=32):
    """A packing whose box, pair diameters and start all depend on one diameter."""
    side = jnp.sqrt(n / 2 * jnp.pi * (diameter**2 + 1) / 4 / fraction)
    x0 = side * jax.random.uniform(jax.random.PRNGKey(0), (n, 2))
    displacement = periodic(side).displacement
    mixed = 0.5 * (diameter + 1)
    sigma = jnp.array([[diameter, mixed], [mixed, 1.0]])
    energy = pair_energy(soft_sphere, displacement, species=np.repeat([0, 1], n // 2))
    found = minimize(lambda x: energy(x, sigma=sigma), x0, method=fire(), tolerance=1e-11)
    vector = displacement(found.positions[0], found.positions[3])
    return jnp.array([found.energy, jnp.sqrt(jnp.sum(vector**2))]), found.converged


def test_a_box_that_depends_on_the_diameter_is_differentiated():
    function = jax.jit(bidisperse)
    forward = jax.jit(jax.jacfwd(lambda d: bidisperse(d)[0]))(1.3)
    reverse = jax.jit(jax.jacrev(lambda d: bidisperse(d)[0]))(1.3)
    (above, one), (below, two) = function(1.3 + 1e-5), function(1.3 - 1e-5)
    assert one and two
    np.testing.assert_allclose(forward, reverse, rtol=1e-9)
    np.testing.assert_allclose(forward, (above - below) / 2e-5, rtol=1e-6)


@pytest.mark.slow
def test_every_observable_of_a_minimum_has_its_derivative(rng):
    """Structure, stress, moduli and modes of nine disks in contact, in their diameter."""
    box = jnp.array([3.3, 3.4])
    x = jnp.asarray(np.array(list(np.ndindex(3, 3))) * 1.1 + rng.normal(scale=0.06, size=(9, 2)))
    displacement = periodic().displacement
    pair = pair_energy(soft_sphere, displacement)

    def run(sigma):
        energy = partial(pair, sigma=sigma)
        y = minimize(lambda x: energy(x, box=box), x, tolerance=1e-11).positions
        return jnp.stack(
            [
                jnp.linalg.norm(displacement(y[0], y[4], box=box)),
                offjax.md.smooth_pair_correlation(y, displacement, [1.1], 0.1, offjax.md.volume(box), box=box)[0],
                jnp.mean(offjax.md.bond_orientational_order(y, displacement, 1.5, box=box)),
                offjax.md.stress(energy, y, box)[0, 0],
                offjax.md.pressure(energy, y, box),
                offjax.md.elastic_moduli(energy, y, box)[0, 0, 0, 0],
                offjax.md.normal_modes(partial(energy, box=box), y).frequencies[-1],
            ]
        )

    weights = jnp.asarray(rng.normal(size=7))

    @jax.jit
    def together(sigma):
        value, forward = jax.jvp(run, (sigma,), (jnp.ones(()),))
        return value, forward, jax.grad(lambda s: weights @ run(s))(sigma)

    _, forward, reverse = together(1.5)
    difference = (together(1.5 + 1e-4)[0] - together(1.5 - 1e-4)[0]) / 2e-4
    assert reverse == pytest.approx(float(weights @ forward), rel=1e-7)
    np.testing.assert_allclose(forward, difference, rtol=1e-5, atol=1e-5)


def test_many_starts_and_parameters_by_vmap(rng):
    starts = jnp.asarray(rng.normal(size=(4, 3, 2)))
    centres = jnp.arange(4.0)
    found = jax.vmap(lambda x, c: minimize(quadratic, x, c, 1.0))(starts, centres)
    assert found.steps.shape == (4,) and jnp.all(found.converged)
    np.testing.assert_allclose(found.positions, jnp.broadcast_to(centres[:, None, None], (4, 3, 2)), atol=1e-6)
    one = jax.vmap(jax.grad(lambda c, x: jnp.sum(minimize(quadratic, x, c, 1.0).positions)), (0, 0))(centres, starts)
    np.testing.assert_allclose(one, 6.0, atol=1e-9)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_unrolled_steps_give_the_derivative_of_the_minimal_energy(method, start):
    def pulled(x, c):
        return 0.5 * jnp.sum(x**2) - c * jnp.sum(x)

    def unrolled(c):
        return descend(pulled, start, c, method=method, steps=400).energy

    value, slope = jax.jit(jax.value_and_grad(unrolled))(0.7)
    assert value == pytest.approx(-0.5 * 6 * 0.7**2, abs=1e-6)
    assert slope == pytest.approx(-6 * 0.7, abs=1e-4)


def test_the_minimum_of_a_molecule_responds_to_the_force_field():
    """Free in space: six zero modes, and a spectrum over several orders of magnitude."""
    assert offjax.minimize is minimize
    made, x = system("CCO"), positions("CCO", displacement=0.01)
    energy, p = made.to_jax(), made.parameters
    chosen = p.select("Bonds/length")
    v = jnp.asarray(chosen.to_vector())

    def distance(v, hessian):
        found = minimize(lambda x: energy(chosen.insert(v), x), x, tolerance=1e-7, hessian=hessian)
        y = found.positions
        return jnp.sqrt(jnp.sum((y[0] - y[2]) ** 2)), found

    @jax.jit
    def derivatives(v):
        dense, found = jax.grad(lambda v: distance(v, "dense"), has_aux=True)(v)
        return dense, jax.grad(lambda v: distance(v, "iterative")[0])(v), found

    dense, iterative, found = derivatives(v)
    assert found.converged and found.energy < energy(p, x)
    np.testing.assert_allclose(dense, iterative, atol=1e-6 * np.abs(dense).max())
    k = int(np.argmax(np.abs(dense)))
    assert abs(dense[k]) > 0.1
    h = 1e-5
    value = jax.jit(lambda v: distance(v, "dense")[0])
    difference = (value(v.at[k].add(h)) - value(v.at[k].add(-h))) / (2 * h)
    assert dense[k] == pytest.approx(float(difference), rel=1e-5)
