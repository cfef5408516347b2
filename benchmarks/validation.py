"""Physical validation of dynamics: ratios of distributions in a Lennard-Jones fluid, beside OpenMM.

    python benchmarks/validation.py [--steps 20000] [--replicas 16]

64 particles in reduced units (cutoff 2 with a smooth end), ``--replicas`` independent runs by ``vmap``, a tenth of each
left out. Whatever the density of states, an ensemble that is canonical obeys

    ln P(U; kT_2)/P(U; kT_1) = (1/kT_1 - 1/kT_2) U + constant          (constant volume, kT = 1.2 and 1.3)
    ln P(V; P_2)/P(V; P_1)   = -(P_2 - P_1) V/kT + constant            (constant pressure, P = 0.3 and 0.4)

(M. R. Shirts, J. Chem. Theory Comput. 9, 909 (2013)). The slope is found by maximum likelihood; printed are the mean
and standard error over the replicas in units of the exact slope (so 1 is right), and the kinetic energy a degree of
freedom in units of kT/2. (Velocities of BAOAB are those of full steps, colder by dt^2 <f^2>/(4 m kT), here 0.0004 of
the exact value; the others have 1.) Each integrator has its own random numbers. OpenMM's (Reference platform, one run
of ``--replicas`` times as many steps, in as many blocks) sample the same fluid with a switching function of their own.
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--replicas", type=int, default=16)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    size = options.steps, options.replicas
    print(f"{'':34s}{'slope/exact':>22s}{'kinetic/exact':>24s}")
    for name in [*thermostats(1.0, 1.0), "OpenMM LangevinMiddle", "OpenMM MonteCarloBarostat"]:
        began = time.perf_counter()
        sampled = openmm_samples if name.startswith("OpenMM") else ours
        of_volume = "arostat" in name or "npt" in name
        if of_volume:
            runs = [sampled(name, *size, KTS[0], p) for p in PRESSURES]
            exact, quantity = -(PRESSURES[1] - PRESSURES[0]) / KTS[0], 1
        else:
            runs = [sampled(name, *size, kT, PRESSURES[0]) for kT in KTS]
            exact, quantity = 1 / KTS[0] - 1 / KTS[1], 0
        slopes = np.array([slope(a, b) for a, b in zip(runs[0][quantity], runs[1][quantity], strict=True)]) / exact
        kinetic = runs[0][2].mean(axis=1) / KTS[0]
        columns = [(v.mean(), v.std(ddof=1) / np.sqrt(len(v))) for v in (slopes, kinetic)]
        text = "".join(f"{m:14.4f} +- {e:.4f}" for m, e in columns)
        print(f"{name:34s}{text}{time.perf_counter() - began:10.0f} s", flush=True)


if __name__ == "__main__":
    main()
