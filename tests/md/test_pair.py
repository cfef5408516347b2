"""Pair potentials: exact values, parameters of every shape, and derivatives where others have NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offjax.errors import InputError
from offjax.md import free, lennard_jones, morse, pair_energy, periodic, smooth_cutoff, soft_sphere

POTENTIALS = {"soft sphere": soft_sphere, "Lennard-Jones": lennard_jones, "Morse": morse}


def test_exact_values():
    assert lennard_jones(2.0 ** (1 / 6), 1.0, 3.0) == pytest.approx(-3.0, rel=1e-15)
    assert lennard_jones(0.4, 0.4, 3.0) == 0.0
    assert morse(1.5, sigma=1.5, epsilon=2.0) == -2.0
    assert morse(1.0 + np.log(2.0), sigma=1.0, epsilon=1.0, alpha=1.0) == pytest.approx(-0.75, rel=1e-15)
    assert soft_sphere(0.5) == 0.125
    assert soft_sphere(0.5, sigma=1.0, epsilon=3.0, alpha=3.0) == 0.125
    assert soft_sphere(1.0) == soft_sphere(2.0) == soft_sphere(1.0, sigma=0.0) == 0.0


@pytest.mark.parametrize("potential", POTENTIALS.values(), ids=POTENTIALS)
@pytest.mark.parametrize("dimension", [1, 2, 3, 5])
def test_the_energy_is_the_sum_over_pairs(potential, dimension, rng):
    x = rng.uniform(0, 3, size=(9, dimension))
    expected = sum(float(potential(np.linalg.norm(x[i] - x[j]))) for i in range(9) for j in range(i))
    energy = pair_energy(potential, free().displacement)
    assert energy(jnp.asarray(x)) == pytest.approx(expected, rel=1e-12)


def test_parameters_by_species_particle_and_pair_agree(rng):
    x = jnp.asarray(rng.uniform(0, 2, size=(6, 2)))
    species = np.array([0, 1, 1, 0, 1, 0])
    radius = jnp.array([0.8, 1.3])
    table = 0.5 * (radius[:, None] + radius[None, :])
    displacement = periodic(2.0).displacement
    by_species = pair_energy(soft_sphere, displacement, species=species)(x, sigma=table)
    by_particle = pair_energy(soft_sphere, displacement, combine={"sigma": lambda a, b: (a + b) / 2})
    by_pair = pair_energy(soft_sphere, displacement)(x, sigma=table[species[:, None], species])
    assert by_species > 0
    assert by_particle(x, sigma=radius[species]) == pytest.approx(float(by_species), rel=1e-14)
    assert by_pair == pytest.approx(float(by_species), rel=1e-14)


def test_an_asymmetric_matrix_counts_both_elements():
    x = jnp.array([[0.0, 0.0], [0.5, 0.0]])
    sigma = jnp.array([[0.0, 1.0], [0.8, 0.0]])
    expected = 0.5 * (soft_sphere(0.5, 1.0) + soft_sphere(0.5, 0.8))
    assert pair_energy(soft_sphere, free().displacement)(x, sigma=sigma) == pytest.approx(float(expected), rel=1e-15)


@pytest.mark.parametrize("potential", POTENTIALS.values(), ids=POTENTIALS)
@pytest.mark.parametrize("diagonal", [0.0, 1.0])
def test_derivatives_are_finite_with_full_matrices(potential, diagonal, rng):
    """Zero distances on the diagonal, and sigma = 0 or not there, in every mode and to second order."""
    x = jnp.asarray(rng.uniform(0, 3, size=(5, 3)))
    sigma = jnp.full((5, 5), 1.2).at[np.diag_indices(5)].set(diagonal)
    energy = pair_energy(potential, free().displacement)

    def of(sigma, x):
        return energy(x, sigma=sigma)

    @jax.jit
    def derivatives(sigma, x):
        forward, reverse = jax.jacfwd(of, argnums=(0, 1))(sigma, x), jax.grad(of, argnums=(0, 1))(sigma, x)
        return reverse, forward, jax.hessian(of, argnums=1)(sigma, x), jax.jacrev(jax.grad(of, argnums=1))(sigma, x)

    found = derivatives(sigma, x)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
    gradient = found[0][0]
    assert np.all(np.diagonal(gradient) == 0)
    h = 1e-6
    difference = (of(sigma.at[0, 1].add(h), x) - of(sigma.at[0, 1].add(-h), x)) / (2 * h)
    assert gradient[0, 1] == pytest.approx(float(difference), rel=1e-6, abs=1e-9)


def test_replicas_and_derivatives_in_every_mode_are_those_of_the_plain_sum(rng):
    """The first derivatives come from a pass of their own."""
    n = 5
    i, j = np.nonzero(~np.eye(n, dtype=bool))
    x, box = jnp.asarray(rng.uniform(0, 2, size=(3, n, 2))), jnp.array([2.0, 2.5])
    arguments = x, box, jnp.asarray(rng.uniform(1.0, 1.5, size=(n, n)))
    displacement = periodic().displacement
    model = pair_energy(soft_sphere, displacement)

    def plain(x, box, sigma):
        r = jnp.linalg.norm(displacement(x[i], x[j], box=box), axis=1)
        return 0.5 * jnp.sum(soft_sphere(r, sigma=sigma[i, j], alpha=2.5))

    def fast(x, box, sigma):
        return model(x, box=box, sigma=sigma, alpha=2.5)

    def derivatives(energy):
        def together(*arguments):
            return jnp.sum(jax.vmap(energy, (0, None, None))(*arguments) ** 2)

        def each(*arguments):
            gradient = jax.grad(energy)
            along = jax.jvp(gradient, arguments, arguments)
            return jax.value_and_grad(energy, (0, 1, 2))(*arguments), along, jax.jacrev(gradient, (0, 1))(*arguments)

        return jax.jit(lambda *a: (jax.grad(together, (0, 1, 2))(*a), jax.vmap(each, (0, None, None))(*a)))(*arguments)

    for a, b in zip(*(jax.tree.leaves(derivatives(energy)) for energy in (fast, plain)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_coincident_soft_spheres_have_finite_derivatives():
    x = jnp.zeros((3, 2))
    energy = pair_energy(soft_sphere, free().displacement)
    assert energy(x) == pytest.approx(3 * 0.5)
    assert np.all(jax.grad(energy)(x) == 0)
    assert np.all(np.isfinite(jax.jit(jax.hessian(energy))(x)))


def test_a_potential_of_the_user_s_and_a_single_particle():
    energy = pair_energy(lambda r, k=1.0: 0.5 * k * r**2, free().displacement)
    x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    assert energy(x, k=2.0) == 25.0
    assert energy(x[:1], k=2.0) == 0.0
    assert np.all(jax.grad(energy)(x[:1]) == 0)


def test_smooth_cutoff_has_a_continuous_derivative():
    cut = smooth_cutoff(lennard_jones, 2.0, 2.5)
    assert cut(1.9, sigma=1.0) == lennard_jones(1.9)
    assert cut(2.5) == cut(3.0) == 0.0
    slope = jax.grad(cut)
    assert slope(2.0 - 1e-9) == pytest.approx(float(slope(2.0 + 1e-9)), rel=1e-6)
    assert slope(2.5 - 1e-9) == pytest.approx(0.0, abs=1e-8)
    assert np.isfinite(jax.grad(slope)(0.0 + 3.0))


def test_float32_positions_with_float64_sums(rng):
    x = jnp.asarray(rng.uniform(0, 20, size=(400, 3)), jnp.float32)
    displacement = periodic(20.0).displacement
    exact = pair_energy(soft_sphere, displacement)
    mixed = pair_energy(soft_sphere, displacement, accumulate="float64")
    reference = exact(x.astype(jnp.float64), sigma=3.0)
    assert mixed(x, sigma=jnp.float32(3.0)).dtype == jnp.float64
    forces = jax.grad(mixed)(x, sigma=jnp.float32(3.0))
    assert forces.dtype == jnp.float32
    assert mixed(x, sigma=jnp.float32(3.0)) == pytest.approx(float(reference), rel=1e-7)
    np.testing.assert_allclose(forces, jax.grad(exact)(x.astype(jnp.float64), sigma=3.0), atol=2e-6)


LISTED = {
    "numbers": {"sigma": 1.02, "epsilon": 0.9},
    "species": {"sigma": np.array([[1.0, 0.9], [0.9, 0.8]]), "epsilon": np.array([[1.0, 1.5], [1.5, 0.5]])},
    "species, not symmetric": {
        "sigma": np.array([[1.0, 0.95], [0.8, 0.9]]),
        "epsilon": np.array([[1.0, 1.5], [1.2, 0.5]]),
    },
    "particles": {"sigma": np.linspace(0.8, 1.0, 216), "epsilon": 1.0},
    "pairs, not symmetric": {"sigma": 0.8 + 0.2 * np.sin(np.arange(216**2)).reshape(216, 216), "epsilon": 0.9},
}


@pytest.mark.parametrize("parameters", LISTED.values(), ids=LISTED)
def test_a_neighbour_list_gives_the_sum_over_all_pairs(parameters, rng):
    from offjax.nonbonded.neighbors import neighbor_list

    grid = np.stack(np.meshgrid(*[np.arange(6)] * 3), -1).reshape(-1, 3) * 1.1
    x = jnp.asarray(grid + rng.normal(scale=0.05, size=grid.shape))
    box = jnp.full(3, 6.6)
    energy = pair_energy(
        smooth_cutoff(lennard_jones, 2.0, 2.5),
        periodic().displacement,
        species=rng.integers(0, 2, 216),
        combine={"sigma": lambda a, b: (a + b) / 2},
    )
    listed = neighbor_list(x, box, cutoff=2.5, skin=0.3)
    p = {name: jnp.asarray(value) for name, value in parameters.items()}

    def of(p, x, box, neighbors):
        return energy(x, box=box, neighbors=neighbors, **p)

    derivative = jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2)))
    dense, sparse = derivative(p, x, box, None), derivative(p, x, box, listed)
    for a, b in zip(jax.tree.leaves(dense), jax.tree.leaves(sparse), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(a).max())


def test_matrices_with_a_list_never_use_their_diagonal(rng):
    """Not even where a particle with itself would divide by zero; in forward mode and to second order."""
    from offjax.nonbonded.neighbors import neighbor_list

    x = jnp.asarray(rng.uniform(0, 3, size=(12, 3)))
    energy = pair_energy(lambda r, sigma: jnp.where(r < 1.5, (1.5 - r) ** 2, 0.0) / sigma, free().displacement)
    listed = neighbor_list(x, cutoff=1.5, skin=0.2)
    sigma = jnp.asarray(rng.uniform(1, 2, size=(12, 12))).at[np.diag_indices(12)].set(0.0)

    def closed(diameter, neighbors):  # the same where the potential closes over what is differentiated
        some = diameter > 0  # no number with a derivative
        of = pair_energy(lambda r: jnp.where(some, soft_sphere(r, sigma=diameter), 0.0), free().displacement)
        return of(x, neighbors=neighbors)

    slopes = [jax.grad(jax.jit(closed))(1.2, n) for n in (None, listed)]
    assert slopes[0] > 1 and slopes[1] == pytest.approx(float(slopes[0]), rel=1e-12)

    @jax.jit
    def derivatives(x, sigma, neighbors):
        of = lambda x, sigma: energy(x, neighbors=neighbors, sigma=sigma)  # noqa: E731
        return jax.jacfwd(of, (0, 1))(x, sigma), jax.hessian(of)(x, sigma)

    for a, b in zip(*(jax.tree.leaves(derivatives(x, sigma, n)) for n in (None, listed)), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-12)
    with pytest.raises(InputError, match="combine"):
        energy(x, neighbors=listed, sigma=jnp.ones(12))
    kinds, table = (
        pair_energy(soft_sphere, free().displacement, species=[0, 1] * 6),
        jnp.array([[1.0, 0.9], [0.7, 1.0]]),
    )
    assert kinds(x, neighbors=listed, sigma=table) == pytest.approx(float(kinds(x, sigma=table)), rel=1e-12)


def test_a_minimum_with_a_neighbour_list_is_that_of_all_pairs(rng):
    from offjax.md import minimize
    from offjax.nonbonded.neighbors import neighbor_list

    x = jnp.asarray(rng.uniform(0, 4, size=(64, 3)))
    box = jnp.full(3, 4.0)
    energy = pair_energy(soft_sphere, periodic().displacement)
    listed = neighbor_list(x, box, cutoff=1.3, skin=0.4, headroom=2.0)

    def at_minimum(sigma, lists):
        def of(x):
            return energy(x, box=box, neighbors=listed.update(x, box) if lists else None, sigma=sigma)

        found = minimize(of, x, tolerance=1e-9)
        return found.energy, found

    run = jax.jit(jax.value_and_grad(at_minimum, has_aux=True), static_argnums=1)
    (value, found), slope = run(1.2, False)
    (listed_value, listed_found), listed_slope = run(1.2, True)
    assert found.converged and listed_found.converged
    assert listed_value == pytest.approx(float(value), rel=1e-9)
    assert listed_slope == pytest.approx(float(slope), rel=1e-8)


def test_wrong_parameters_are_refused():
    energy = pair_energy(soft_sphere, free().displacement)
    x = jnp.zeros((4, 2))
    with pytest.raises(InputError, match="combine"):
        energy(x, sigma=jnp.ones(4))
    with pytest.raises(InputError, match=r"shape \(3, 3\)"):
        energy(x, sigma=jnp.ones((3, 3)))
    with pytest.raises(InputError, match="2 species for 4"):
        pair_energy(soft_sphere, free().displacement, species=[0, 1])(x, sigma=jnp.ones((2, 2)))
    with pytest.raises(InputError, match="integers"):
        pair_energy(soft_sphere, free().displacement, species=[0.5, 1])
    with pytest.raises(InputError, match="order of the two"):
        pair_energy(soft_sphere, free().displacement, combine={"sigma": lambda a, b: a})
    with pytest.raises(InputError, match="onset"):
        smooth_cutoff(lennard_jones, 2.5, 2.0)


def test_a_list_that_is_shorter_than_the_cutoff_of_the_potential_is_refused(rng):
    from offjax.nonbonded.neighbors import neighbor_list

    x, box = jnp.asarray(rng.uniform(0, 6, size=(20, 3))), jnp.full(3, 6.0)
    energy = pair_energy(smooth_cutoff(soft_sphere, 2.0, 2.5), periodic().displacement)
    with pytest.raises(InputError, match="the list's cutoff 2.0 is shorter than the 2.5"):
        energy(x, box=box, neighbors=neighbor_list(x, box, cutoff=2.0, skin=0.3))
    assert energy(x, box=box, neighbors=neighbor_list(x, box, cutoff=2.5, skin=0.3)) > 0


@pytest.mark.parametrize(
    ("dimension", "rows"),
    [
        (1, 40.0),
        (2, [6.0, 7.0]),
        (2, [[6.0, 0.0], [1.5, 7.0]]),
        (4, [3.0, 3.2, 3.4, 3.6]),
        (4, np.diag([3.6, 3.0, 3.2, 3.4])),
        (4, None),
        (5, 3.1),
    ],
)
def test_lists_in_any_number_of_dimensions_are_the_sum_over_all_pairs(rng, dimension, rows):
    from offjax.nonbonded.neighbors import neighbor_list

    space = free() if rows is None else periodic()
    rows = None if rows is None else jnp.asarray(rows)
    x = jnp.asarray(rng.uniform(-1, 2, size=(60, dimension)) * (40.0 if dimension == 1 else 3.0) ** (dimension != 2))
    x = x * (2.0 if dimension == 2 else 0.5)
    soft = pair_energy(soft_sphere, space.displacement)
    listed = neighbor_list(x, rows, cutoff=1.2, skin=0.3)
    x = x + jnp.asarray(rng.uniform(-1, 1, size=x.shape)) * 0.1 / dimension**0.5
    v = jnp.asarray(rng.normal(size=x.shape))

    def of(neighbors):
        def energy(x, box):
            return soft(x, neighbors=neighbors, sigma=1.2, **({} if box is None else {"box": box}))

        arguments = 0 if rows is None else (0, 1)
        first = jax.value_and_grad(energy, arguments)(x, rows)
        if dimension != 4:
            return first, ()
        return first, jax.grad(lambda x, box: jnp.sum(jax.grad(energy)(x, box) * v), arguments)(x, rows)

    dense, lists = jax.jit(lambda: of(None))(), jax.jit(lambda: of(listed))()
    assert dense[0][0] > 0.1 and not listed.unusable(x, rows)
    for a, b in zip(jax.tree.leaves(dense), jax.tree.leaves(lists), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(b, a, atol=1e-11)


def test_a_list_in_four_dimensions_follows_the_particles_and_holds_no_distant_pairs(rng):
    from offjax.nonbonded.neighbors import LANES, neighbor_list

    x, box = jnp.asarray(rng.uniform(size=(300, 4)) * 4.0), jnp.full(4, 4.0)
    listed = neighbor_list(x, box, cutoff=0.5, skin=0.1)
    in_three = neighbor_list(x[:, :3], box[:3], cutoff=0.5, skin=0.1)
    entries, entries_in_three = (int(jnp.sum(v.mask != 2**LANES - 1)) for v in (listed, in_three))
    assert entries < 0.6 * entries_in_three
    moved = x + jnp.asarray(rng.normal(size=x.shape)) * jnp.array([0.0, 0.0, 0.0, 2.0])
    assert listed.stale(moved, box) and not listed.stale(x + jnp.array([0.0, 0.0, 0.0, 8.0]), box)
    soft = pair_energy(soft_sphere, periodic().displacement)
    again = jax.jit(lambda x: soft(x, box=box, neighbors=listed.update(x, box), sigma=0.5))(moved)
    assert again > 0
    np.testing.assert_allclose(again, soft(moved, box=box, sigma=0.5), rtol=1e-12)
    with pytest.raises(InputError, match="orthorhombic"):
        neighbor_list(x, jnp.diag(box).at[3, 0].set(0.5), cutoff=0.5, skin=0.1)
    with pytest.raises(InputError, match="half"):
        neighbor_list(x, box.at[3].set(0.9), cutoff=0.5, skin=0.1)
    assert jax.jit(listed.update)(moved, jnp.diag(box).at[3, 0].set(0.5)).overflow
