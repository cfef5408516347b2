"""The driver: reports, exact resume, loud failure, files that other programs read."""

from functools import partial

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offjax import md
from offjax.errors import InputError, NeighborListError, SimulationError, UnsupportedError
from offjax.md.reporters import DCDReporter, HDF5Reporter, XYZReporter
from offjax.nonbonded.neighbors import neighbor_list
from tests.samples import positions, system

KEY = jax.random.key(3)


def springs(x):
    """A chain of three particles."""
    return 0.5 * jnp.sum((jnp.linalg.norm(x[1:] - x[:-1], axis=-1) - 1.0) ** 2)


X = jnp.array([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0], [1.1, 0.9, 0.0]])


@pytest.fixture
def chain():
    integrator = md.langevin(springs, 0.05, 0.2, 1.0)
    return integrator, integrator.init(KEY, X)


def test_simulate_takes_the_integrator_s_steps(chain):
    integrator, state = chain
    frames = []
    found = md.simulate(integrator, state, 25, every=10, reporters=[frames.append])
    plain = state
    for _ in range(25):
        plain, info = jax.jit(integrator.step)(plain)
    np.testing.assert_allclose(found.state.positions, plain.positions, atol=1e-13)
    np.testing.assert_allclose(found.info.kinetic_energy, info.kinetic_energy, atol=1e-13)
    assert [f.step for f in frames] == [10, 20] and found.step == 25


def test_a_resumed_simulation_is_the_same_bit_for_bit(chain, tmp_path):
    integrator, state = chain
    whole = md.simulate(integrator, state, 60, every=10)
    file = tmp_path / "run.npz"
    seen = []

    def interrupt(frame):
        seen.append(frame.step)
        if frame.step == 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        md.simulate(integrator, state, 60, every=10, reporters=[interrupt], checkpoint=file, checkpoint_every=20)
    restored, step = md.load_checkpoint(file, like=integrator.init(jax.random.key(0), X))
    assert step == 40
    rest = md.simulate(integrator, restored, 60, start=step, every=10)
    assert rest.step == 60
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(rest.state), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.array_equal(a, b)


def test_a_checkpoint_of_something_else_is_refused(chain, tmp_path):
    integrator, state = chain
    file = tmp_path / "run.npz"
    md.save_checkpoint(file, state, 3)
    other = md.velocity_verlet(springs, 0.1)
    with pytest.raises(InputError, match="another simulation"):
        md.load_checkpoint(file, like=other.init(KEY, X))
    (tmp_path / "text").write_text("no")
    with pytest.raises(InputError, match="no checkpoint"):
        md.load_checkpoint(tmp_path / "text", like=state)


def test_a_step_that_is_not_finite_stops_with_its_number_and_particle():
    """Two particles fall onto each other: 1/r^3 attraction, and a square root of a negative number at the end."""

    def energy(x):
        return jnp.sum(jnp.sqrt(x[1, 0] - x[0, 0])) + 0.5 * jnp.sum(x[2:] ** 2)

    integrator = md.velocity_verlet(energy, 0.1)
    state = integrator.init(KEY, X)
    bad, plain = 0, state
    while np.all(np.isfinite(plain.positions)) and np.isfinite(plain.energy):
        plain, _ = jax.jit(integrator.step)(plain)
        bad += 1
    assert 5 < bad < 100
    with pytest.raises(
        SimulationError, match=rf"step {bad} is not finite: .* of particle 0 and 1 others; .*smaller time"
    ):
        md.simulate(integrator, state, 200, every=50, by_term=lambda x: {"well": jnp.sum(x), "root": jnp.nan})
    with pytest.raises(SimulationError, match="terms that are not finite: root"):
        md.simulate(integrator, state, 200, every=50, by_term=lambda x: {"well": 0.0, "root": jnp.nan})
    with pytest.raises(SimulationError, match="step 0, the start"):
        md.simulate(integrator, state._replace(positions=X.at[1].set(jnp.nan)), 10)


def test_a_molecule_under_langevin_dynamics_writes_files_that_others_read(tmp_path, capsys):

    made, x = system("CCO"), positions("CCO")
    energy, p = made.to_jax(), made.parameters
    integrator = md.langevin_middle(
        partial(energy, p), 0.0005, md.thermal_energy(300.0), 5.0, masses=np.asarray(made.masses)
    )
    symbols = [a.element.symbol for a in made.to_openmm_topology().atoms()]
    with (
        XYZReporter(tmp_path / "a.xyz", symbols) as xyz,
        DCDReporter(tmp_path / "a.dcd", 9, 0.0005, 20) as dcd,
        HDF5Reporter(tmp_path / "a.h5", velocities=True) as h5,
    ):
        frames = []
        found = md.simulate(
            integrator,
            integrator.init(KEY, x),
            60,
            every=20,
            reporters=[xyz, dcd, h5, frames.append],
            progress=True,
            time_step=0.0005,
            by_term=partial(energy.by_term, p),
        )
    assert "ns/day" in capsys.readouterr().err
    expected = np.array([f.state.positions for f in frames])
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["positions"], expected)
        np.testing.assert_array_equal(file["step"], [20, 40, 60])
        assert file["kT"][-1] == found.info.kT and file["velocities"].shape == (3, 9, 3)
    lines = (tmp_path / "a.xyz").read_text().splitlines()
    assert len(lines) == 3 * 11 and lines[0] == "9" and lines[2].split()[0] == "C"
    last = np.array([line.split()[1:] for line in lines[-9:]], dtype=float)
    np.testing.assert_allclose(last, 10 * expected[-1], atol=1e-6)
    raw = (tmp_path / "a.dcd").read_bytes()
    assert raw[4:8] == b"CORD" and int.from_bytes(raw[8:12], "little") == 3
    coordinates = np.frombuffer(raw[-3 * (8 + 4 * 9) :], "<f4").reshape(3, 11)[:, 1:-1].T
    np.testing.assert_allclose(coordinates, 10 * expected[-1], atol=1e-5)
    with pytest.raises(InputError, match="exists"):
        XYZReporter(tmp_path / "a.xyz")
    with pytest.raises(InputError, match="does not exist"):
        HDF5Reporter(tmp_path / "none" / "a.h5")


def test_dcd_files_have_the_box(tmp_path):
    rows = np.array([[3.0, 0, 0], [0.5, 2.9, 0], [-0.4, 0.3, 2.8]])
    for name, box in (("free", None), ("cube", jnp.asarray(3.0)), ("triclinic", jnp.asarray(rows))):
        state = md.velocity_verlet(lambda x, box=None: jnp.sum(x), 0.1).init(KEY, X, box=box)
        with DCDReporter(tmp_path / name, 3, 0.1, 10) as reporter:
            reporter(md.Frame(10, state, None))
        data = (tmp_path / name).read_bytes()
        assert np.frombuffer(data, np.int32, 1, 48)[0] == (box is not None)
        block = np.frombuffer(data, np.int32, 1, 276)[0]  # behind the header: a unit cell of 48 bytes, or the first x
        assert block == (12 if box is None else 48)
        if name == "triclinic":
            a, gamma, b, beta, alpha, c = np.frombuffer(data, np.float64, 6, 280)
            lengths = np.linalg.norm(rows, axis=1)
            np.testing.assert_allclose([a, b, c], 10 * lengths, rtol=1e-12)
            u = rows / lengths[:, None]
            np.testing.assert_allclose([alpha, beta, gamma], [u[1] @ u[2], u[0] @ u[2], u[0] @ u[1]], atol=1e-12)


def test_wrong_intervals_are_refused(chain):
    integrator, state = chain
    for options in ({"every": 0}, {"start": 20}, {"checkpoint_every": 10}, {"checkpoint": "x", "checkpoint_every": 15}):
        with pytest.raises(InputError):
            md.simulate(integrator, state, 10, **{"every": 10, **options})
    with pytest.raises(InputError, match="whole steps"):
        md.simulate(integrator, state, 1e4)


def fluid():
    """A periodic Lennard-Jones fluid with a list."""
    grid = np.stack(np.meshgrid(*[np.arange(6)] * 3), -1).reshape(-1, 3) * 1.15
    box = jnp.full(3, 6.9)
    listed = neighbor_list(grid, box, cutoff=1.6, skin=0.3, headroom=1.0)
    x = jnp.asarray(grid)
    energy = md.pair_energy(md.smooth_cutoff(md.lennard_jones, 1.3, 1.6), md.periodic().displacement)
    return md.velocity_verlet(energy, 0.002), x, box, listed


def test_a_simulation_with_a_neighbour_list_is_that_of_all_pairs(tmp_path):
    integrator, x, box, listed = fluid()
    plain = md.simulate(integrator, integrator.init(KEY, x, kT=2.0, box=box), 120, every=60)
    state = integrator.init(KEY, x, kT=2.0, box=box, neighbors=listed)
    found = md.simulate(integrator, state, 120, every=60, checkpoint=tmp_path / "a.npz", checkpoint_every=60)
    np.testing.assert_allclose(plain.state.positions, found.state.positions, atol=1e-9)
    again, step = md.load_checkpoint(tmp_path / "a.npz", like=state)
    assert step == 120 and np.array_equal(again.positions, found.state.positions)
    assert not again.neighbors.stale(again.positions, box)
    ends = [md.simulate(integrator, s, 160, start=120, every=40).state.positions for s in (again, found.state)]
    assert np.array_equal(*ends)


def weak_repulsion(x, box, neighbors):
    """Through the list, too weak to move anything far."""
    return 1e-6 * md.pair_energy(md.soft_sphere, md.periodic().displacement)(x, box=box, neighbors=neighbors)


def test_a_list_that_is_too_short_is_replaced():
    """The particles gather in a rod: the list made for the lattice overflows on the way."""
    _, x, box, listed = fluid()
    v = jnp.zeros_like(x).at[:, :2].set(-0.3 * (x[:, :2] - 2.9))
    integrator = md.velocity_verlet(weak_repulsion, 0.05)
    state = integrator.init(KEY, x, v, box=box, neighbors=listed)
    found = md.simulate(integrator, state, 60, every=30)
    assert found.state.neighbors.capacity != listed.capacity
    np.testing.assert_allclose(found.state.positions, x + 60 * 0.05 * v, atol=1e-2)


# --- forces in place of an energy -------------------------------------------------------------------------------------


def wells(x):
    return 0.5 * jnp.sum(x**2) + 0.1 * jnp.sum(x**4)


def test_forces_in_place_of_an_energy_give_the_same_trajectory_and_no_energies():
    x = jnp.linspace(-1.0, 1.0, 6).reshape(3, 2)
    runs = []
    for given in (wells, md.Forces(lambda x: -jax.grad(wells)(x))):
        integrator = md.velocity_verlet(given, 0.05)
        runs.append(md.simulate(integrator, integrator.init(jax.random.key(0), x), 20, every=10))
    np.testing.assert_allclose(runs[1].state.positions, runs[0].state.positions, atol=1e-13)
    assert np.isnan(runs[1].info.potential_energy) and runs[1].info.kinetic_energy == runs[0].info.kinetic_energy


def test_forces_of_the_wrong_sign_end_the_run_at_the_first_step_that_is_not_finite():
    integrator = md.velocity_verlet(md.Forces(jax.grad(wells)), 0.05)
    state = integrator.init(jax.random.key(0), jnp.ones((3, 2)))
    step = jax.jit(integrator.step)
    count, last = 0, state
    while (np.abs([last.positions, last.velocities]) < md.simulation._too_large(float)).all() and np.isfinite(
        last.forces
    ).all():
        count, last = count + 1, step(last)[0]
    with pytest.raises(SimulationError, match=f"step {count} is not finite"):
        md.simulate(integrator, state, 5000, every=50)


def test_an_explosion_names_the_replica_and_a_box_that_shrinks_too_far_its_step():
    grid = jnp.asarray(np.array(list(np.ndindex(3, 3, 3))) * 1.2)
    pair = md.pair_energy(md.smooth_cutoff(md.lennard_jones, 1.2, 1.6), md.periodic().displacement)
    box = jnp.full(3, 3.6)
    newton = md.velocity_verlet(pair, 0.005)
    starts = jnp.stack([grid, grid.at[4].set(grid[3] + 1e-3)])
    replicas = jax.vmap(lambda key, x: newton.init(key, x, box=box))(jax.random.split(jax.random.key(0), 2), starts)
    with pytest.raises(
        SimulationError,
        match="step 1 is not finite: .*particle 3 of replica 1 and 1 others .*exploded.*not finite: pairs",
    ):
        by_term = lambda x, box: {"pairs": pair(x, box=box)}  # noqa: E731
        md.simulate(newton._replace(step=jax.vmap(newton.step)), replicas, 100, by_term=by_term)
    listed = neighbor_list(starts[1], box, cutoff=1.6, skin=0.1)
    state = newton.init(jax.random.key(0), starts[1], box=box, neighbors=listed)

    def named(x, box, neighbors):
        if np.max(np.abs(x)) > 1e3:
            raise NeighborListError("out of date")
        return {"pairs": pair(x, box=box, neighbors=neighbors)}

    with pytest.raises(
        SimulationError, match=r"step 1 is not finite.*exploded.*in the step before; energies .*'pairs': \d"
    ):
        md.simulate(newton, state, 100, by_term=named)
    pressed = md.nose_hoover_npt(pair, 0.004, 1.0, 50.0, 0.5, 0.5)
    for listed, message in ((neighbor_list(grid, box, cutoff=1.6, skin=0.1), "half of the smallest"), (None, "twice")):
        state = pressed.init(jax.random.key(0), grid, box=box, neighbors=listed)
        with pytest.raises(SimulationError, match=f"step [1-9].*{message}"):
            md.simulate(pressed, state, 100)
    with pytest.raises(InputError, match="half of the smallest box edge 3"):
        pair(grid, box=3.0)


WRONG = {
    "scalar, not an array": lambda x: jnp.sum(x**2, axis=1),
    "scalar, not a tuple": lambda x: (jnp.sum(x**2), 0.0),
    "scalar, not a NoneType": lambda x: None,
    "scalar, not an array int": lambda x: 3,
    "scalar, not a str": lambda x: "energy",
}


def test_a_wrong_energy_start_or_number_is_named():
    key, x = jax.random.key(0), jnp.ones((3, 2))
    for message, energy in WRONG.items():
        for use in (
            md.velocity_verlet(energy, 0.1).init,
            lambda _, x, energy=energy: md.minimize(energy, x),
            lambda _, x, energy=energy: md.descend(energy, x, steps=2),
        ):
            with pytest.raises(InputError, match=message):
                use(key, x)
    good = md.velocity_verlet(wells, 0.1)
    with pytest.raises(InputError, match="floating-point"):
        good.init(key, np.ones((3, 2), int))
    with pytest.raises(InputError, match="random key"):
        good.init(0, x)
    with pytest.raises(InputError, match="kT must"):
        good.init(key, x, kT=-1.0)
    with pytest.raises(InputError, match="masses must be positive"):
        md.velocity_verlet(wells, 0.1, masses=[1.0, 0.0, 1.0]).init(key, x)
    for wrong, make in (
        ("friction must not", lambda: md.langevin(wells, 0.1, 1.0, -1.0)),
        ("dt must be positive", lambda: md.langevin_middle(wells, -0.1, 1.0, 1.0)),
        ("time must be positive", lambda: md.nose_hoover(wells, 0.1, 1.0, 0.0)),
        ("frequency must be positive", lambda: md.monte_carlo_barostat(good, wells, 1.0, 1.0, frequency=0)),
        ("whole number of steps", lambda: md.monte_carlo_barostat(good, wells, 1.0, 1.0, frequency=2.5)),
        ("pressure must be finite", lambda: md.monte_carlo_barostat(good, wells, np.nan, 1.0)),
        ("pressure must be finite", lambda: md.nose_hoover_npt(wells, 0.1, 1.0, np.nan, 1.0, 1.0)),
        ("dt must be finite", lambda: md.velocity_verlet(wells, np.nan)),
    ):
        with pytest.raises(InputError, match=wrong):
            make()
    with pytest.raises(InputError, match="State"):
        md.simulate(good, x, 10)
    with pytest.raises(InputError, match="outside jit"):
        jax.jit(lambda x: md.simulate(good, good.init(key, x), 10).state)(x)
    with pytest.raises(InputError, match="points in 2 dimensions"):
        md.periodic(np.ones(3)).displacement(x, x)


def test_an_energy_that_cannot_be_called_is_told_how_it_is():
    key, x, box = jax.random.key(0), jnp.ones((3, 2)), jnp.ones(2)
    for message, energy, given in (
        (r"energy\(positions, box=box\): got an unexpected keyword argument 'box'", wells, {"box": box}),
        (r"energy\(positions\): missing a required argument: 'box'", lambda x, box: jnp.sum(x) / box[0], {}),
        (r"missing a required argument: 'x'. Bind parameters before", lambda p, x: p * jnp.sum(x), {}),
        ("a function of positions, not a float", 3.0, {}),
    ):
        with pytest.raises(InputError, match=message):
            md.velocity_verlet(energy, 0.1).init(key, x, **given)
    with pytest.raises(TypeError, match="mine"):  # errors inside are the user's own

        def failing(x):
            raise TypeError("mine")

        md.velocity_verlet(failing, 0.1).init(key, x)


def test_a_state_of_another_integrator_or_of_replicas_is_named():
    key, x = jax.random.key(0), jnp.ones((3, 2))
    verlet, langevin = md.velocity_verlet(wells, 0.1), md.langevin(wells, 0.1, 1.0, 1.0)
    hoover, short = (md.nose_hoover(wells, 0.1, 1.0, 1.0, chain=n) for n in (5, 3))
    for to, of in ((hoover, verlet), (langevin, verlet), (short, hoover), (langevin, hoover)):
        with pytest.raises(InputError, match="State is of another integrator"):
            md.simulate(to, of.init(key, x), 2)
    replicas = jax.vmap(lambda key: verlet.init(key, x))(jax.random.split(key, 3))
    with pytest.raises(InputError, match=r"replicas, positions \(3, 3, 2\): .*jax.vmap\(integrator.step\)"):
        md.simulate(verlet, replicas, 2)
    with pytest.raises(InputError, match="runs an Integrator, .* not a function"):
        md.simulate(wells, verlet.init(key, x), 2)

    def branching(x):
        return jnp.sum(x) if jnp.sum(x) > 0 else 0.0

    newton = md.velocity_verlet(branching, 0.1)
    with pytest.raises(jax.errors.TracerBoolConversionError):
        md.simulate(newton, newton.init(key, x), 2)


def test_a_start_without_finite_forces_says_what_to_look_for():
    key, box, x = jax.random.key(0), jnp.full(3, 3.0), jnp.asarray(np.array(list(np.ndindex(2, 2, 2))) * 1.4)
    pair = md.pair_energy(md.smooth_cutoff(md.lennard_jones, 1.2, 1.6), md.periodic().displacement)
    newton = md.velocity_verlet(pair, 0.01)
    with pytest.raises(SimulationError, match="step 0.*forces of particle 0 .*two particles at one place, a box short"):
        md.simulate(newton, jax.jit(newton.init)(key, x, box=box), 2)
    wide, newton = jnp.full(3, 80.0), md.velocity_verlet(wells, 0.01)
    listed = neighbor_list(jnp.asarray(np.array(list(np.ndindex(4, 4, 4))) * 20.0), wide, cutoff=1.6, skin=0.1)
    rod = jnp.zeros((64, 3)).at[:, 0].set(0.01 * jnp.arange(64))
    state = newton.init(key, rod)._replace(energy=jnp.nan, box=wide, neighbors=listed.update(rod, wide))
    with pytest.raises(SimulationError, match="neighbour list overflows"):
        md.simulate(newton, state, 2)
    apart = md.velocity_verlet(lambda x: -jnp.sum(x**4), 0.1)
    with pytest.raises(SimulationError, match=r"is not finite: .*by_term has an error of its own, TypeError"):
        md.simulate(apart, apart.init(key, 9.0 + x), 50, by_term=lambda p, x: {"well": p * jnp.sum(x)})


def test_forces_are_refused_where_an_energy_is_needed_and_an_array_is_no_energy():
    forces = md.Forces(lambda x: -x)
    with pytest.raises(UnsupportedError, match="Forces"):
        md.monte_carlo_barostat(md.velocity_verlet(forces, 0.1), wells, 1.0, 1.0)
    with pytest.raises(UnsupportedError, match="Forces"):
        md.nose_hoover_npt(forces, 0.1, 1.0, 1.0, 1.0, 1.0)
    with pytest.raises(InputError, match="md.Forces"):
        md.velocity_verlet(lambda x: -x, 0.1).init(jax.random.key(0), jnp.ones((3, 2)))
    with pytest.raises(InputError, match="shape of the positions"):
        md.velocity_verlet(md.Forces(jnp.sum), 0.1).init(jax.random.key(0), jnp.ones((3, 2)))
