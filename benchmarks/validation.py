"""Physical validation of dynamics: ratios of distributions in a Lennard-Jones fluid, beside OpenMM.

    python benchmarks/validation.py [--steps 20000] [--replicas 16] [--water 0]

64 particles in reduced units (cutoff 2 with a smooth end), ``--replicas`` independent runs by ``vmap``, a tenth of each
left out. Whatever the density of states, an ensemble that is canonical obeys

    ln P(U; kT_2)/P(U; kT_1) = (1/kT_1 - 1/kT_2) U + constant          (constant volume, kT = 1.2 and 1.3)
    ln P(V; P_2)/P(V; P_1)   = -(P_2 - P_1) V/kT + constant            (constant pressure, P = 0.3 and 0.4)

(M. R. Shirts, J. Chem. Theory Comput. 9, 909 (2013)). The slope is found by maximum likelihood; printed are the mean
and standard error over the replicas in units of the exact slope (so 1 is right), and the kinetic energy a degree of
freedom in units of kT/2. (Velocities of BAOAB are those of full steps, colder by dt^2 <f^2>/(4 m kT), here 0.0004 of
the exact value; the others have 1.) Each integrator has its own random numbers. OpenMM's (Reference platform, one run
of ``--replicas`` times as many steps, in as many blocks) sample the same fluid with a switching function of their own.
The script fails where one of ours is more than four standard errors from 1.

``--water 40`` does something else: 40 ps of 100 rigid waters under Nose-Hoover chains with steps of 2 and 1 fs, ours
and OpenMM's (CPU platform). Printed is the kinetic energy a degree of freedom, in units of kT/2, of translation and of
rotation, from velocities of full steps, and how much those of half steps have more. For a vibration of angular
frequency w velocity Verlet keeps, to second order in dt, p^2/(2 m) (1 + w^2 dt^2/6) + m w^2 x^2/2 (1 - w^2 dt^2/12)
with p of full steps, and with p of half steps p^2/(2 m) (1 - w^2 dt^2/12) + ...: librations of water look colder than
they are by the one, and warmer by the other. The difference, w^2 dt^2/4, hardly fluctuates. Errors are those of the
means of ten blocks.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from dynamics import openmm_lennard_jones
from scipy.optimize import brentq

from offjax import md

N, SIDE, CUTOFF, ONSET, DT, EVERY = 64, 5.2, 2.0, 1.6, 0.004, 20
KTS, PRESSURES = (1.2, 1.3), (0.3, 0.4)
BOX = np.full(3, SIDE)
PAIR = md.pair_energy(md.smooth_cutoff(md.lennard_jones, ONSET, CUTOFF), md.periodic().displacement)
LATTICE = np.array(list(np.ndindex(4, 4, 4))) * SIDE / 4
LIMIT = 4.0
"""Standard errors by which an integrator may miss what is exact before the script fails."""


def thermostats(kT, pressure):
    """Ours by name, at constant volume (the first four) and constant pressure."""
    langevin = md.langevin_middle(PAIR, DT, kT, 1.0)
    return {
        "langevin": md.langevin(PAIR, DT, kT, 1.0),
        "langevin_middle": langevin,
        "nose_hoover": md.nose_hoover(PAIR, DT, kT, 0.5),
        "stochastic_velocity_rescaling": md.stochastic_velocity_rescaling(PAIR, DT, kT, 0.2),
        "monte_carlo_barostat": md.monte_carlo_barostat(langevin, PAIR, pressure, kT, frequency=10),
        "nose_hoover_npt": md.nose_hoover_npt(PAIR, DT, kT, pressure, 0.5, 1.0),
    }


def ours(name, steps, replicas, kT, pressure):
    """(replica, sample) potential energies, volumes and kinetic temperatures."""

    def run(key, kT, pressure):
        integrator = thermostats(kT, pressure)[name]
        state = integrator.init(key, jnp.asarray(LATTICE), box=BOX)

        def block(state, _):
            state = jax.lax.fori_loop(0, EVERY - 1, lambda _, s: integrator.step(s)[0], state)
            state, info = integrator.step(state)
            return state, (state.energy, md.volume(state.box), info.kT)

        return jax.lax.scan(block, state, length=steps // EVERY)[1]

    number = list(thermostats(kT, pressure)).index(name)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), number), replicas)
    found = jax.jit(jax.vmap(run, in_axes=(0, None, None)))(keys, kT, pressure)
    return [np.asarray(v)[:, v.shape[1] // 10 :] for v in found]


def openmm_samples(name, steps, replicas, kT, pressure):
    """The same from OpenMM; kT and pressures in kJ/mol and kJ/mol/nm^3."""
    import openmm

    from offjax.constants import BAR, GAS_CONSTANT

    system = openmm_lennard_jones(N, SIDE, ONSET, CUTOFF)
    kelvin = kT / GAS_CONSTANT
    integrator = {
        "OpenMM LangevinMiddle": lambda: openmm.LangevinMiddleIntegrator(kelvin, 1.0, DT),
        "OpenMM MonteCarloBarostat": lambda: openmm.LangevinMiddleIntegrator(kelvin, 1.0, DT),
    }[name]()
    if "Barostat" in name:
        system.addForce(openmm.MonteCarloBarostat(pressure / BAR, kelvin, 10))
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(LATTICE)
    context.setVelocitiesToTemperature(kelvin, 1)
    integrator.step(steps // 10)
    rows = []
    for _ in range(replicas * steps // EVERY * 9 // 10):
        integrator.step(EVERY)
        state = context.getState(energy=True)
        sides = [state.getPeriodicBoxVectors()[k][k]._value for k in range(3)]
        kinetic = state.getKineticEnergy()._value
        rows.append((state.getPotentialEnergy()._value, np.prod(sides), 2.0 * kinetic / (3 * N)))
    return [column.reshape(replicas, -1) for column in np.array(rows).T]


def slope(first, second):
    """The maximum-likelihood slope of ln P_second/P_first from equally many samples of a quantity in either."""
    middle, width = np.mean([first, second]), np.std(np.concatenate([first, second]))
    a, b = (first - middle) / width, (second - middle) / width

    def at(s):
        """Derivative of the likelihood in the slope, at the best constant."""

        def surplus(c):
            return np.sum(1 / (1 + np.exp(-(s * np.concatenate([a, b]) + c)))) - len(b)

        c = brentq(surplus, -50, 50)
        return np.sum(b) - np.sum(np.concatenate([a, b]) / (1 + np.exp(-(s * np.concatenate([a, b]) + c))))

    return brentq(at, -20, 20) / width


def compared(name, steps, replicas):
    """(replica,) slopes and kinetic energies of an integrator, either in units of what is exact."""
    sampled = openmm_samples if name.startswith("OpenMM") else ours
    if "arostat" in name or "npt" in name:
        runs = [sampled(name, steps, replicas, KTS[0], p) for p in PRESSURES]
        exact, quantity = -(PRESSURES[1] - PRESSURES[0]) / KTS[0], 1
    else:
        runs = [sampled(name, steps, replicas, kT, PRESSURES[0]) for kT in KTS]
        exact, quantity = 1 / KTS[0] - 1 / KTS[1], 0
    slopes = np.array([slope(a, b) for a, b in zip(runs[0][quantity], runs[1][quantity], strict=True)]) / exact
    return slopes, runs[0][2].mean(axis=1) / KTS[0]


def water(ps) -> None:
    """Translation and rotation of rigid water by time step."""
    from functools import partial

    import openmm
    from openff.toolkit import ForceField, Molecule
    from openff.units import unit

    import offjax

    count, every, cutoff, kT = 100, 0.02, 0.6, md.thermal_energy(300.0)
    force_field = ForceField("tip3p.offxml")
    for section in ("vdW", "Electrostatics"):
        force_field[section].cutoff = cutoff * unit.nanometer
    force_field["vdW"].switch_width = 0.0 * unit.nanometer
    packed = offjax.build_box([Molecule.from_mapped_smiles("[O:1]([H:2])[H:3]")], [count], density=0.97)
    system = offjax.System.from_smirnoff(force_field, packed.topology)
    masses, box = np.asarray(system.masses), jnp.asarray(np.diag(packed.box))
    term = system.terms["Constraints"]
    lengths = np.asarray(system.slots(system.parameters)["Constraints"]["distance"])[term.slot]
    constraints = md.distance_constraints(term.atoms, lengths, masses)
    of_waters = system.to_jax(accumulate="float64")
    energy = md.mixed_precision(partial(of_waters, system.parameters))

    def context(integrator):
        cpu = openmm.Platform.getPlatformByName("CPU")
        made = openmm.Context(system.to_openmm(), integrator, cpu, {"Threads": "1"})
        made.setPeriodicBoxVectors(*packed.box)
        return made

    middle = context(openmm.LangevinMiddleIntegrator(300.0, 5.0, 0.001))
    middle.setPositions(packed.positions)
    openmm.LocalEnergyMinimizer.minimize(middle, 10.0, 300)
    middle.setVelocitiesToTemperature(300.0, 1)
    middle.getIntegrator().step(20000)
    start = middle.getState(positions=True).getPositions(asNumpy=True)._value
    start = constraints.positions(start, start, masses[:, None])
    velocities = md.velocity_verlet(md.Forces(jnp.zeros_like), 1.0, masses=masses, constraints=constraints)
    velocities = velocities.init(jax.random.key(0), start, kT=kT).velocities  # without a total momentum

    def parts(v):
        """Twice the kinetic energy a degree of freedom of translation and rotation, in kT."""
        momenta = (masses[:, None] * v).reshape(count, 3, 3).sum(axis=1)
        moving = (momenta**2).sum() / masses[:3].sum()
        turning = (masses[:, None] * v**2).sum() - moving
        return jnp.stack([moving / (3 * count - 3), turning / (3 * count)]) / kT

    def of_offjax(dt):
        integrator = md.nose_hoover(energy, dt, kT, 0.1, masses=masses, constraints=constraints)
        listed = of_waters.neighbor_list(*(jnp.asarray(v, jnp.float32) for v in (start, box)), skin=0.1, headroom=2.0)

        def sample(state, _):
            state = jax.lax.fori_loop(0, round(every / dt) - 1, lambda _, s: integrator.step(s)[0], state)
            last, _ = integrator.step(state)
            return last, (parts(last.velocities), parts((last.positions - state.positions) / dt))

        state = integrator.init(jax.random.key(1), start, velocities, box=box, neighbors=listed)
        run = jax.jit(lambda state: jax.lax.scan(sample, state, length=round(ps / every)))
        last, found = run(state)
        assert np.isfinite(last.energy)
        return found

    def of_openmm(dt):
        integrator = openmm.NoseHooverIntegrator(300.0, 10.0, dt)
        waters = context(integrator)
        waters.setPositions(np.asarray(start))
        waters.setVelocities(np.asarray(velocities))
        found = []
        for _ in range(round(ps / every)):
            integrator.step(round(every / dt) - 1)
            before = waters.getState(velocities=True).getVelocities(asNumpy=True)._value
            integrator.step(1)
            after = waters.getState(velocities=True).getVelocities(asNumpy=True)._value  # of half steps
            found.append((parts(0.5 * (before + after)), parts(after)))
        return [np.stack(v) for v in zip(*found, strict=True)]

    print(f"{'':20s}{'translation, full step':>26s}{'rotation, full step':>26s}{'rotation, half - full':>26s}")
    for engine, sampled in (("offjax", of_offjax), ("OpenMM", of_openmm)):
        for dt in (0.002, 0.001):
            full, half = (np.asarray(v)[len(v) // 10 :] for v in sampled(dt))
            columns = full[:, 0], full[:, 1], half[:, 1] - full[:, 1]
            blocks = [np.array([b.mean() for b in np.array_split(c, 10)]) for c in columns]
            text = "".join(f"{b.mean():16.4f} +- {b.std(ddof=1) / np.sqrt(10):.4f}" for b in blocks)
            print(f"{engine}, {1e3 * dt:.0f} fs{'':8s}{text}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--replicas", type=int, default=16)
    parser.add_argument("--water", type=float, default=0.0, metavar="PS", help="rigid water for so long, and no more")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if options.water:
        return water(options.water)
    size, wrong = (options.steps, options.replicas), []
    print(f"{'':34s}{'slope/exact':>22s}{'kinetic/exact':>24s}")
    for name in [*thermostats(1.0, 1.0), "OpenMM LangevinMiddle", "OpenMM MonteCarloBarostat"]:
        began = time.perf_counter()
        slopes, kinetic = compared(name, *size)
        columns = [(v.mean(), v.std(ddof=1) / np.sqrt(len(v))) for v in (slopes, kinetic)]
        text = "".join(f"{m:14.4f} +- {e:.4f}" for m, e in columns)
        print(f"{name:34s}{text}{time.perf_counter() - began:10.0f} s", flush=True)
        if not name.startswith("OpenMM") and any(abs(m - 1.0) > LIMIT * e for m, e in columns):
            wrong.append(name)
    if wrong:
        raise SystemExit(f"more than {LIMIT} standard errors from what is exact: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
