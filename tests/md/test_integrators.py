"""Integrators against exact trajectories, exact distributions and OpenMM's Reference platform."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offjax import md
from offjax.constants import BAR
from offjax.errors import InputError, UnsupportedError
from offjax.md.integrators import rescaling_factor
from offjax.nonbonded.neighbors import neighbor_list

KEY = jax.random.key(1)


def harmonic(x, k=1.0):
    return 0.5 * k * jnp.sum(x**2)


def run(integrator, state, steps, every=1):
    """The last State, and States and Infos of every ``every``-th step."""

    def block(state, _):
        state, infos = jax.lax.scan(lambda s, _: integrator.step(s), state, length=every)
        return state, (state, jax.tree.map(lambda v: v[-1], infos))

    return jax.jit(lambda s: jax.lax.scan(block, s, length=steps // every))(state)


def argon(n=27, side=3.4):
    """A small periodic Lennard-Jones liquid in reduced units, near a lattice."""
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3)[:n] * side / 3
    x = jnp.asarray(grid + np.random.default_rng(0).normal(scale=0.02, size=(n, 3)))
    return x, md.pair_energy(md.smooth_cutoff(md.lennard_jones, 1.3, 1.65), md.periodic(side).displacement)


def test_velocity_verlet_has_its_exact_harmonic_trajectory():
    """x_n = x_0 cos(n theta) with cos(theta) = 1 - k dt^2/(2 m), from rest."""
    dt, k, m = 0.3, 2.0, 1.7
    integrator = md.velocity_verlet(partial(harmonic, k=k), dt, masses=m)
    state = integrator.init(KEY, jnp.array([[1.0], [-0.4]]))
    _, (states, infos) = run(integrator, state, 50)
    theta = np.arccos(1 - k * dt**2 / (2 * m))
    exact = np.cos(theta * np.arange(1, 51))[:, None, None] * np.array([[1.0], [-0.4]])
    np.testing.assert_allclose(states.positions, exact, atol=1e-13)
    np.testing.assert_allclose(infos.potential_energy, 0.5 * k * (exact**2).sum((1, 2)), atol=1e-13)


def test_the_energy_error_is_of_second_order_and_the_motion_reversible():
    x, energy = argon()
    errors = []
    for dt in (0.004, 0.002):
        integrator = md.velocity_verlet(energy, dt)
        state = integrator.init(KEY, x, kT=1.0)
        np.testing.assert_allclose(jnp.sum(state.velocities, 0), 0, atol=1e-13)
        last, (_, infos) = run(integrator, state, round(0.8 / dt))
        errors.append(float(jnp.std(infos.conserved_energy)))
    assert errors[0] < 2e-2
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.3)
    back, _ = run(integrator, last._replace(velocities=-last.velocities), 400)
    np.testing.assert_allclose(back.positions, x, atol=1e-9)


def sampled(integrator, masses, steps=400, n=4000):
    """Positions and velocities of n independent harmonic particles after many relaxation times."""
    state = integrator.init(KEY, jnp.zeros((n, 1)))
    last, _ = run(integrator, state, steps, steps)
    return last


def variance_agrees(values, expected):
    """The sample variance within five standard errors of a normal distribution's."""
    values = np.asarray(values).ravel()
    error = expected * np.sqrt(2 / len(values))
    assert abs(np.mean(values**2) - expected) < 5 * error, (np.mean(values**2), expected, error)


@pytest.mark.parametrize("make", [md.langevin, md.langevin_middle])
def test_langevin_samples_the_exact_harmonic_distribution(make):
    """BAOAB and LangevinMiddle have no error in the positions of a harmonic particle, however long the step."""
    k, m, kT, dt = 2.0, 0.5, 1.3, 0.6
    last = sampled(make(partial(harmonic, k=k), dt, kT, 1.0, masses=m), m)
    variance_agrees(last.positions, kT / k)
    exact = kT / m * (1 - k / m * dt**2 / 4) if make is md.langevin else kT / m
    variance_agrees(last.velocities, exact)


def test_brownian_dynamics_samples_its_exact_stationary_variance():
    """Euler's steps of a harmonic particle: kT/k / (1 - k dt/(2 m friction))."""
    k, m, kT, dt, friction = 2.0, 0.5, 1.3, 0.1, 1.5
    last = sampled(md.brownian(partial(harmonic, k=k), dt, kT, friction, masses=m), m)
    variance_agrees(last.positions, kT / k / (1 - k * dt / (2 * m * friction)))


@pytest.mark.parametrize("c", [1e-9, 0.5])
def test_stochastic_rescaling_draws_the_kinetic_energy_from_its_distribution(c):
    dof, kT, kinetic, n = 9, 1.3, 2.0, 20000
    factor = jax.vmap(lambda key: rescaling_factor(key, jnp.asarray(kinetic), dof, kT, -np.log(c)))
    energies = np.asarray(factor(jax.random.split(KEY, n)) ** 2 * kinetic)
    mean = c * kinetic + (1 - c) * dof * kT / 2
    # K' is the sum of the squares of dof normals, one of which is shifted
    variance = (1 - c) ** 2 * dof * kT**2 / 2 + 2 * c * (1 - c) * kT * kinetic
    assert abs(energies.mean() - mean) < 5 * np.sqrt(variance / n)
    assert energies.var() == pytest.approx(variance, rel=0.08)


def test_stochastic_rescaling_leaves_what_is_at_rest_without_forces():
    integrator = md.stochastic_velocity_rescaling(lambda x: 0.0 * jnp.sum(x), 0.1, 1.0, 1.0)
    state, info = integrator.step(integrator.init(KEY, jnp.ones((3, 2)), jnp.zeros((3, 2))))
    assert info.kinetic_energy == 0.0 and np.array_equal(state.positions, np.ones((3, 2)))


THERMOSTATS = {
    "Nose-Hoover chains": lambda e, dt: md.nose_hoover(e, dt, 1.0, 0.5),
    "stochastic velocity rescaling": lambda e, dt: md.stochastic_velocity_rescaling(e, dt, 1.0, 0.1),
    "Langevin": lambda e, dt: md.langevin(e, dt, 1.0, 2.0),
    "Langevin middle": lambda e, dt: md.langevin_middle(e, dt, 1.0, 2.0),
}


@pytest.mark.parametrize("make", THERMOSTATS.values(), ids=THERMOSTATS)
def test_equipartition_and_conserved_energy_of_a_liquid(make):
    x, energy = argon()
    integrator = make(energy, 0.004)
    state, _ = run(integrator, integrator.init(KEY, x), 1500, 100)
    _, (_, infos) = run(integrator, state, 12000, 40)
    kT = np.asarray(infos.kT)
    blocks = kT.reshape(15, -1).mean(1)
    error = blocks.std(ddof=1) / np.sqrt(15)
    assert error < 0.03
    assert abs(kT.mean() - 1.0) < 5 * error + 0.005  # the time step's own error
    # the instantaneous kinetic energy fluctuates as it must: var(K) = dof kT^2/2
    dof = 78 if make in list(THERMOSTATS.values())[:2] else 81
    assert np.var(kT) == pytest.approx(2 / dof, rel=0.35)
    assert np.std(infos.conserved_energy) < 0.35 and np.ptp(infos.potential_energy) > 5


def test_replicas_at_different_temperatures_by_vmap():
    x, energy = argon(8)

    def final(key, kT):
        integrator = md.langevin(energy, 0.004, kT, 1.0)
        return jax.lax.scan(lambda s, _: integrator.step(s), integrator.init(key, x), length=20)[0].positions

    kT = jnp.array([0.5, 1.0, 2.0])
    keys = jax.random.split(KEY, 3)
    many = jax.jit(jax.vmap(final))(keys, kT)
    np.testing.assert_allclose(many[1], jax.jit(final)(keys[1], kT[1]), atol=1e-12)


def test_the_volume_of_an_ideal_gas_under_the_monte_carlo_barostat():
    """p(V) ~ V^N exp(-P V/kT): a gamma distribution of N + 1."""
    n, kT, pressure = 8, 1.2, 0.7

    def energy(x, box):
        return 0.0 * jnp.sum(x) + 0.0 * jnp.sum(box)

    free = md.velocity_verlet(energy, 0.01)
    integrator = md.monte_carlo_barostat(free, energy, pressure, kT, frequency=1)
    side = (n * kT / pressure) ** (1 / 3)

    def volumes(key):
        start, mine = jax.random.split(key)
        x = jax.random.uniform(start, (n, 3), maxval=side)
        state = integrator.init(mine, x, box=jnp.full(3, side))

        def step(state, _):
            state, _ = integrator.step(state)
            return state, md.volume(state.box)

        return jax.lax.scan(step, state, length=2400)[1][1200:]

    found = np.asarray(jax.jit(jax.vmap(volumes))(jax.random.split(KEY, 200)))
    scale = kT / pressure
    mean, error = found.mean(), found.mean(1).std(ddof=1) / np.sqrt(200)
    assert error < 0.03 * mean
    assert abs(mean - (n + 1) * scale) < 5 * error
    assert found.var() == pytest.approx((n + 1) * scale**2, rel=0.1)


def test_the_barostat_scales_molecules_as_wholes():
    x = jnp.array([[0.0, 0, 0], [0.1, 0, 0], [2.0, 1, 0], [2.0, 1.1, 0]])

    def energy(x, box):
        return 0.0 * jnp.sum(x) + 0.0 * jnp.sum(box)

    free = md.velocity_verlet(energy, 0.01)
    integrator = md.monte_carlo_barostat(free, energy, 1.0, 1.0, groups=[0, 0, 1, 1], frequency=1)
    state, (states, _) = run(integrator, integrator.init(KEY, x, box=jnp.full(3, 3.0)), 20)
    assert len(np.unique(states.box[:, 0])) > 3
    for i, j in ((0, 1), (2, 3)):
        np.testing.assert_allclose(jnp.linalg.norm(state.positions[i] - state.positions[j]), 0.1, atol=1e-14)


def test_molecules_that_are_not_numbered_from_0_without_a_gap_are_refused():
    """Their number weighs the volume: molecules that are not there would press the box apart."""
    x, box = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3))), jnp.full(3, 3.0)

    def energy(x, box):
        return jnp.sum(x**2) / md.volume(box)

    def both(groups, masses=1.0):
        langevin = md.langevin(energy, 0.01, 1.0, 1.0)
        barostat = md.monte_carlo_barostat(langevin, energy, 1.0, 1.0, groups=groups, masses=masses, frequency=1)
        return barostat, md.nose_hoover_npt(energy, 0.01, 1.0, 1.0, 1.0, 1.0, groups=groups, masses=masses)

    for groups, masses, message in (
        ([0, 0, 2, 2], 1.0, "without a gap"),
        ([-1, -1, 0, 0], 1.0, "without a gap"),
        ([0, 0, 1, 1], np.ones(3), "masses must"),
    ):
        for integrator in both(groups, masses):
            with pytest.raises(InputError, match=message):
                integrator.step(integrator.init(KEY, x, box=box))
    for integrator in both([0, 0, 1, 1]):
        with pytest.raises(InputError, match="give init one, box="):
            integrator.init(KEY, x, box=None)


def test_the_extended_system_conserves_its_energy_and_keeps_the_pressure():
    x, _ = argon()
    displacement = md.periodic().displacement
    pair = md.pair_energy(md.smooth_cutoff(md.lennard_jones, 1.3, 1.6), displacement)
    box = jnp.full(3, 3.6)
    drift = []
    for dt in (0.004, 0.002):
        integrator = md.nose_hoover_npt(pair, dt, 1.0, 1.5, 0.5, 1.0)
        state = integrator.init(KEY, x, box=box)
        state, (states, infos) = run(integrator, state, round(2 / dt))
        drift.append(float(jnp.std(infos.conserved_energy)))
    assert drift[0] / drift[1] == pytest.approx(4.0, rel=0.4)
    assert np.ptp(states.box[:, 0]) > 0.05
    np.testing.assert_allclose(states.box[:, 0], states.box[:, 1], rtol=1e-14)


def test_rigid_molecules_at_constant_pressure_by_the_extended_system():
    """Dumbbells of two masses: energy conserved to second order, lengths kept, no momentum, and the box moves."""
    n, masses = 27, np.tile([1.0, 2.0], 27)
    centres = np.array(list(np.ndindex(3, 3, 3))) * 1.9
    axes = np.random.default_rng(0).normal(size=(n, 3))
    axes *= 0.5 / np.linalg.norm(axes, axis=1)[:, None]
    x, groups = np.stack([centres, centres + axes], 1).reshape(-1, 3), np.repeat(np.arange(n), 2)
    same = groups[:, None] == groups
    pair = md.pair_energy(md.smooth_cutoff(md.lennard_jones, 1.2, 1.6), md.periodic().displacement)
    between = {"sigma": np.where(same, 1e-3, 1.0), "epsilon": np.where(same, 0.0, 1.0)}
    constraints = md.distance_constraints(np.arange(2 * n).reshape(-1, 2), 0.5, masses)

    @jax.jit
    def simulated(dt, steps):
        integrator = md.nose_hoover_npt(
            lambda x, box: pair(x, box=box, **between),
            *(dt, 1.0, 1.0, 0.5, 1.0),
            groups=groups,
            masses=masses,
            constraints=constraints,
        )

        def step(_, carry):
            state, total, squares = carry
            state, info = integrator.step(state)
            return state, total + info.conserved_energy, squares + info.conserved_energy**2

        state = integrator.init(KEY, x, box=jnp.full(3, 5.7))
        state, total, squares = jax.lax.fori_loop(0, steps, step, (state, 0.0, 0.0))
        return state, jnp.sqrt(squares / steps - (total / steps) ** 2)

    (state, coarse), (_, fine) = simulated(0.004, 150), simulated(0.002, 300)
    assert coarse / fine == pytest.approx(4.0, rel=0.3)
    assert constraints.deviation(state.positions) < 1e-12
    np.testing.assert_allclose(masses @ state.velocities, 0.0, atol=1e-11)
    assert abs(state.box[0] - 5.7) > 0.05


@pytest.mark.parametrize("kind", ["Monte Carlo", "extended system"])
def test_constant_pressure_with_a_neighbour_list_is_that_of_all_pairs(kind):
    x = np.array(list(np.ndindex(3, 3, 3))) * 1.7 + np.random.default_rng(2).normal(scale=0.05, size=(27, 3))
    pair = md.pair_energy(md.smooth_cutoff(md.lennard_jones, 1.2, 1.6), md.periodic().displacement)
    if kind == "Monte Carlo":
        langevin = md.langevin_middle(pair, 0.004, 1.0, 1.0)
        integrator = md.monte_carlo_barostat(langevin, pair, 1.0, 1.0, frequency=1)
    else:
        integrator = md.nose_hoover_npt(pair, 0.004, 1.0, 1.0, 0.5, 1.0)
    box = jnp.full(3, 5.1)
    listed = neighbor_list(x, box, cutoff=1.6, skin=0.2)
    plain, lists = (md.simulate(integrator, integrator.init(KEY, x, box=box, neighbors=n), 60) for n in (None, listed))
    np.testing.assert_allclose(lists.state.positions, plain.state.positions, atol=1e-9)
    np.testing.assert_allclose(lists.state.box, plain.state.box, atol=1e-10)
    assert abs(plain.state.box[0] - 5.1) > 0.02
    assert not np.array_equal(lists.state.neighbors.positions, listed.positions)


def test_constrained_brownian_dynamics_turns_a_dumbbell_as_it_must():
    """With forces f and -f on its ends: p(cos) ~ exp(f l cos/kT), whose mean is coth(a) - 1/a."""
    a, n = 2.0, 1500
    constraints = md.distance_constraints([[0, 1]], 0.5)

    def energy(x):
        return -a / 0.5 * (x[1, 2] - x[0, 2])

    integrator = md.brownian(energy, 0.002, 1.0, 1.0, constraints=constraints, masses=[1.0, 2.0])

    def last(key):
        state = integrator.init(key, jnp.array([[0.0, 0, 0], [0.5, 0, 0]]))
        return jax.lax.fori_loop(0, 400, lambda _, s: integrator.step(s)[0], state).positions

    x = np.asarray(jax.jit(jax.vmap(last))(jax.random.split(KEY, n)))
    axis = x[:, 1] - x[:, 0]
    np.testing.assert_allclose(np.linalg.norm(axis, axis=1), 0.5, atol=1e-12)
    cosine = axis[:, 2] / 0.5
    assert abs(cosine.mean() - (1 / np.tanh(a) - 1 / a)) < 5 * cosine.std() / np.sqrt(n)
    assert abs(axis[:, 0].mean() / 0.5) < 5 * 0.6 / np.sqrt(n)


def test_unsupported_combinations_and_wrong_input_are_refused():
    constraints = md.distance_constraints([[0, 1]], 1.0)
    for groups in (None, [0, 1]):
        with pytest.raises(InputError, match="one molecule"):
            md.nose_hoover_npt(harmonic, 0.1, 1.0, 1.0, 1.0, 1.0, constraints=constraints, groups=groups)
        with pytest.raises(InputError, match="one molecule"):
            rigid = md.langevin(harmonic, 0.1, 1.0, 1.0, constraints=constraints)
            md.monte_carlo_barostat(rigid, harmonic, 1.0, 1.0, groups=groups)
    with pytest.raises(UnsupportedError, match="nose_hoover_npt"):
        md.nose_hoover_npt(harmonic, 0.1, 1.0, 1.0, 1.0, 1.0, shift=md.free().shift)
    integrator = md.velocity_verlet(harmonic, 0.1, masses=np.ones(3))
    with pytest.raises(InputError, match="masses"):
        integrator.step(integrator.init(KEY, jnp.zeros((2, 3))))
    with pytest.raises(InputError, match="replicas"):
        integrator.init(KEY, jnp.zeros((2, 3, 3)))
    with pytest.raises(InputError, match="velocities"):
        integrator.init(KEY, jnp.zeros((3, 3)), jnp.zeros((2, 3)))


def test_float32_positions_with_float64_kinetic_energy():
    integrator = md.velocity_verlet(harmonic, 0.1, accumulate="float64")
    state = integrator.init(KEY, jnp.ones((4, 2), jnp.float32), kT=1.0)
    state, info = integrator.step(state)
    assert state.positions.dtype == state.velocities.dtype == jnp.float32
    assert info.kinetic_energy.dtype == jnp.float64


def test_mixed_precision_rounds_forces_and_not_positions():
    """Beside all in double precision, with a list in single: forces differ by rounding, and positions keep theirs."""
    x, _ = argon()
    box = jnp.full(3, 3.6)
    pair = md.pair_energy(md.smooth_cutoff(md.lennard_jones, 1.3, 1.6), md.periodic().displacement)
    listed = neighbor_list(x.astype(jnp.float32), box, cutoff=1.6, skin=0.1)
    runs = []
    for energy, neighbors in ((pair, None), (md.mixed_precision(pair), listed)):
        integrator = md.velocity_verlet(energy, 0.004)
        state = integrator.init(KEY, x, kT=1.0, box=box, neighbors=neighbors)
        runs.append(md.simulate(integrator, state, 20, every=20).state)
    double, mixed = runs
    assert mixed.positions.dtype == mixed.forces.dtype == jnp.float64 and mixed.energy.dtype == jnp.float32
    assert mixed.neighbors.positions.dtype == jnp.float32
    assert 0 < jnp.max(jnp.abs(mixed.forces - double.forces)) < 1e-4 * jnp.max(jnp.abs(double.forces))
    assert 0 < jnp.max(jnp.abs(mixed.positions - double.positions)) < 1e-6


# --- beside OpenMM ----------------------------------------------------------------------------------------------------


def openmm_run(made, integrator, x, v, steps):
    """Positions after each step in OpenMM's Reference platform."""
    import openmm

    context = openmm.Context(made.to_openmm(), integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(x)
    context.setVelocities(v)
    found = []
    for _ in range(steps):
        integrator.step(1)
        found.append(context.getState(getPositions=True).getPositions(asNumpy=True)._value)
    return np.array(found)


def parameterized(kind):
    """A flexible molecule, a constrained one, and rigid waters: System, positions, constraints."""
    from openff.toolkit import Molecule

    import offjax
    from tests.samples import molecule

    if kind == "water":
        one = Molecule.from_smiles("O")
        made = offjax.System.from_smirnoff("offjax-water3-1.0.offxml", [one] * 4)
        term = made.terms["Constraints"]
        lengths = np.asarray(made.slots(made.parameters)["Constraints"]["distance"])[term.slot]
        one = dict(zip(map(tuple, np.sort(term.atoms[:3], 1).tolist()), lengths, strict=False))
        oh, hh = one[0, 1], one[1, 2]
        shape = np.array([[0, 0, 0], [hh / 2, np.sqrt(oh**2 - hh**2 / 4), 0], [-hh / 2, np.sqrt(oh**2 - hh**2 / 4), 0]])
        x = np.concatenate([shape + 0.32 * np.array(c) for c in ((0, 0, 0), (1, 0, 0.1), (0, 1, -0.1), (0.1, 0.2, 1))])
    else:
        name = "openff_unconstrained-2.2.1.offxml" if kind == "flexible" else "openff-2.2.1.offxml"
        one = molecule("CCO")
        made = offjax.System.from_smirnoff(name, [one], charge_from_molecules=[one])
        x = one.conformers[0].m_as("nanometer")
    if "Constraints" not in made.terms or not len(made.terms["Constraints"].atoms):
        return made, jnp.asarray(x), None
    term = made.terms["Constraints"]
    lengths = np.asarray(made.slots(made.parameters)["Constraints"]["distance"])[term.slot]
    constraints = md.distance_constraints(term.atoms, lengths, np.asarray(made.masses))
    return made, constraints.positions(jnp.asarray(x), jnp.asarray(x), np.asarray(made.masses)[:, None]), constraints


def test_velocity_verlet_of_a_flexible_molecule_is_openmm_s():
    import openmm

    made, x, _ = parameterized("flexible")
    energy, masses = partial(made.to_jax(), made.parameters), np.asarray(made.masses)
    integrator = md.velocity_verlet(energy, 0.0005, masses=masses)
    state = integrator.init(KEY, x, kT=md.thermal_energy(300.0))
    # OpenMM's Verlet velocities lag half a step
    lagging = state.velocities - 0.5 * 0.0005 * state.forces / masses[:, None]
    expected = openmm_run(made, openmm.VerletIntegrator(0.0005), np.asarray(x), np.asarray(lagging), 100)
    _, (states, _) = run(integrator, state, 100)
    np.testing.assert_allclose(states.positions, expected, atol=1e-9)


@pytest.mark.parametrize("kind", ["flexible", "constrained", "water"])
def test_langevin_middle_without_noise_is_openmm_s(kind):
    """At 0 K the friction acts and the noise does not: constraints, friction and forces in one trajectory."""
    import openmm

    made, x, constraints = parameterized(kind)
    assert (constraints is None) == (kind == "flexible")
    if kind == "water":
        assert len(constraints.triangles) == 4
    energy, masses = partial(made.to_jax(), made.parameters), np.asarray(made.masses)
    integrator = md.langevin_middle(energy, 0.001, 0.0, 3.0, masses=masses, constraints=constraints)
    v = md.maxwell_boltzmann(KEY, md.thermal_energy(300.0), masses, x.shape)
    state = integrator.init(KEY, x, v)
    reference = openmm.LangevinMiddleIntegrator(0.0, 3.0, 0.001)
    reference.setConstraintTolerance(1e-12)
    expected = openmm_run(made, reference, np.asarray(x), np.asarray(state.velocities), 100)
    _, (states, infos) = run(integrator, state, 100)
    np.testing.assert_allclose(states.positions, expected, atol=2e-7 if kind == "water" else 2e-8)
    if constraints is not None:
        assert constraints.deviation(states.positions[-1]) < 1e-12
        assert infos.kT.shape == (100,)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (md.velocity_verlet, "water"),
        (lambda e, dt, **o: md.langevin(e, dt, 2.5, 5.0, **o), "constrained"),
        (lambda e, dt, **o: md.nose_hoover(e, dt, 2.5, 0.05, **o), "water"),
        (lambda e, dt, **o: md.stochastic_velocity_rescaling(e, dt, 2.5, 0.05, **o), "water"),
    ],
    ids=["velocity Verlet", "Langevin", "Nose-Hoover", "rescaling"],
)
def test_constraints_hold_in_every_integrator(make, kind):
    made, x, constraints = parameterized(kind)
    energy, masses = partial(made.to_jax(), made.parameters), np.asarray(made.masses)
    integrator = make(energy, 0.0005, masses=masses, constraints=constraints)
    v = md.maxwell_boltzmann(KEY, md.thermal_energy(300.0), masses, x.shape, drift_free=True)
    state, (_, infos) = run(integrator, integrator.init(KEY, x, v), 200)
    assert constraints.deviation(state.positions) < 1e-12
    projected = constraints.velocities(state.velocities, state.positions, masses[:, None])
    np.testing.assert_allclose(state.velocities, projected, atol=1e-10)
    assert np.std(infos.conserved_energy) < 0.05 * np.std(infos.potential_energy)


# --- derivatives through trajectories ---------------------------------------------------------------------------------


def final_distance(sigma, steps=37, levels=2, make=md.velocity_verlet):
    """How far particles 0 and 1 are apart after some steps, as a function of the potential."""
    x = jnp.array([[0.0, 0.0], [1.1, 0.1], [0.2, 1.2], [1.3, 1.4]])
    energy = md.pair_energy(md.lennard_jones, md.free().displacement)
    integrator = make(lambda x: energy(x, sigma=sigma), 0.01)
    state = integrator.init(KEY, x, jnp.zeros_like(x))
    last = md.advance(integrator, state, steps, levels=levels).positions
    return jnp.sqrt(jnp.sum((last[0] - last[1]) ** 2))


def canonical(make):
    return lambda e, constraints: make(e, 0.01, 0.5, 1.0)


MAKERS = {
    "Verlet with constraints": lambda e, constraints: md.velocity_verlet(e, 0.01, constraints=constraints),
    "Langevin": canonical(md.langevin),
    "Langevin middle with constraints": lambda e, constraints: md.langevin_middle(
        e, 0.01, 0.5, 1.0, constraints=constraints
    ),
    "Brownian": lambda e, constraints: md.brownian(e, 0.001, 0.5, 1.0),
    "Nose-Hoover": lambda e, constraints: md.nose_hoover(e, 0.01, 0.5, 0.1, chain=2),
    "rescaling": lambda e, constraints: md.stochastic_velocity_rescaling(e, 0.01, 0.5, 0.1),
    "Monte Carlo barostat": lambda e, constraints: md.monte_carlo_barostat(
        md.velocity_verlet(e, 0.01), e, 1.0, 0.5, frequency=3
    ),
    "extended system": lambda e, constraints: md.nose_hoover_npt(e, 0.01, 0.5, 1.0, 0.2, 0.5),
}


def observables(energy, x, v, box, paths, speeds):
    """Every observable of a run: of its end, and of its paths."""
    displacement = md.periodic().displacement
    area = md.volume(box)
    return jnp.stack(
        [
            jnp.linalg.norm(displacement(x[0], x[5], box=box)),
            md.smooth_pair_correlation(x, displacement, [1.15], 0.1, area, box=box)[0],
            jnp.mean(md.bond_orientational_order(x, displacement, 1.5, box=box)),
            md.stress(energy, x, box, velocities=v)[0, 1],
            md.pressure(energy, x, box, velocities=v),
            md.kinetic_temperature(v),
            md.mean_squared_displacement(paths)[4],
            md.velocity_autocorrelation(speeds)[2],
            area,
        ]
    )


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_derivatives_of_every_observable_through_a_trajectory(make):
    """Reverse and forward mode against finite differences."""
    box = jnp.array([3.6, 3.7])
    rng = np.random.default_rng(3)
    x = jnp.asarray(np.array(list(np.ndindex(3, 3))) * 1.2 + rng.normal(scale=0.06, size=(9, 2)))
    v = jnp.asarray(rng.normal(scale=0.7, size=(9, 2)))
    pair = md.pair_energy(md.lennard_jones, md.periodic().displacement)
    constraints = md.distance_constraints(
        [[0, 1], [4, 5]], jnp.linalg.norm(x[jnp.array([0, 4])] - x[jnp.array([1, 5])], axis=1)
    )

    def run(sigma):
        energy = partial(pair, sigma=sigma)
        integrator = make(energy, constraints)
        state = integrator.init(KEY, x, v, box=box)

        def step(state, _):
            state, _ = integrator.step(state)
            return state, (state.positions, state.velocities)

        last, paths = jax.lax.scan(step, state, length=10)
        return observables(energy, last.positions, last.velocities, last.box, *paths)

    weights = jnp.asarray(rng.normal(size=9))

    @jax.jit
    def together(sigma):
        value, forward = jax.jvp(run, (sigma,), (jnp.ones(()),))
        return value, forward, jax.grad(lambda s: weights @ run(s))(sigma)

    _, forward, reverse = together(1.0)
    differences = [(together(1.0 + h)[0] - together(1.0 - h)[0]) / (2 * h) for h in (2e-4, 1e-4)]
    difference = (4 * differences[1] - differences[0]) / 3
    scale = np.abs(difference).max()
    assert reverse == pytest.approx(float(weights @ forward), rel=1e-9)
    np.testing.assert_allclose(forward, difference, rtol=1e-6, atol=1e-8 * scale)
    assert np.count_nonzero(difference) >= 5


@pytest.mark.parametrize(("kT", "friction"), [(0.0, 1.0), (0.7, 0.0)])
def test_without_noise_derivatives_in_masses_and_time_steps_are_finite(kT, friction):
    """The noise has a square root of kT and of the friction, whose slope at 0 is infinite."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))

    def energy(x):
        return jnp.sum(x**2)

    def ends(scale):
        masses, dt = jnp.full(3, 2.0 * scale**3), 0.05 * scale
        newton = md.velocity_verlet(energy, dt, masses=masses)
        states = [(newton, newton.init(KEY, x, kT=kT))]
        for make in [md.langevin, md.langevin_middle] + ([md.brownian] if friction else []):
            integrator = make(energy, dt, kT, friction, masses=masses)
            states.append((integrator, integrator.init(KEY, x, 0.3 * x)))
        found = [integrator.step(integrator.step(state)[0])[0].positions for integrator, state in states]
        known = {"steps": 2, "masses": masses, "kT": kT, "friction": friction, "key": KEY}
        found.append(md.reversible_trajectory(energy, x, 0.3 * x, dt=dt, **known)[0])
        return jnp.stack([jnp.sum(jnp.sin(x)) for x in found])

    of, h = jax.jit(ends), 1e-5
    difference = (of(1.0 + h) - of(1.0 - h)) / (2 * h)
    np.testing.assert_allclose(jax.jit(jax.jacrev(ends))(1.0), difference, rtol=1e-7)
    assert np.all(np.abs(difference) > 1e-4)


@pytest.mark.parametrize("levels", [1, 3, 5])
def test_every_depth_of_recomputation_gives_the_same_derivative(levels):
    assert jax.jit(partial(final_distance, levels=levels))(1.0) == pytest.approx(float(final_distance(1.0)), rel=1e-12)
    derivative = jax.jit(jax.grad(partial(final_distance, levels=levels)))(1.0)
    assert derivative == pytest.approx(float(jax.jit(jax.grad(final_distance))(1.0)), rel=1e-9)


def test_recomputation_saves_memory():
    def temporary(levels):
        lowered = jax.jit(jax.grad(partial(final_distance, steps=4096, levels=levels))).lower(1.0)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    plain, root, log = temporary(1), temporary(2), temporary(6)
    assert root < 0.1 * plain
    assert log < 0.5 * root


def test_advance_refuses_no_steps():
    integrator = md.velocity_verlet(harmonic, 0.1)
    with pytest.raises(InputError, match="at least one"):
        md.advance(integrator, integrator.init(KEY, jnp.ones((1, 1))), 0)
    assert BAR == pytest.approx(0.06022140857, rel=1e-7)
