"""Dynamics beside OpenMM's CPU platform and, where installed, jax-md (pip install 'offjax[bench]'), in one process.

    taskset -c 0 python benchmarks/dynamics.py [--particles 8000] [--blocks 5] [--steps 50] [--replicas]

A Lennard-Jones liquid: simple cubic lattice of constant 1.3782, 300 steps of 0.002 at kT = 1.2 from it, cutoff 3
with a smooth end from 2.5, velocity Verlet. Lists of offjax and jax-md have a skin of 1 and are renewed inside the
loop when some particle has moved half of it; OpenMM chooses for itself. The engines take turns, in an order that
changes, with blocks of ``--steps`` steps; printed are the medians of wall and CPU time a step, and of the ratios to
OpenMM's of the same turn. OpenMM's CPU platform computes in single precision.

``--replicas`` instead measures what a replica costs by ``vmap``, alone and in batches: 32 soft disks, Brownian.
"""

import argparse
import os
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from offjax import md

SPACING, ONSET, CUTOFF, SKIN, KT, DT = 1.3782, 2.5, 3.0, 1.0, 1.2, 0.002


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=8000)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--replicas", action="store_true")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print(f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, jax {jax.__version__}")
    if options.replicas:
        replicas()
        return
    x, v, side = start(options.particles)
    tasks = {}
    for name, make in (
        ("offjax float32", partial(offjax_run, np.float32, None)),
        ("offjax float32, float64 sums", partial(offjax_run, np.float32, "float64")),
        ("offjax float64", partial(offjax_run, np.float64, None)),
        ("OpenMM CPU", openmm_run),
        ("jax-md float32", partial(jax_md_run, np.float32)),
        ("jax-md float64", partial(jax_md_run, np.float64)),
    ):
        began = time.perf_counter()
        task = make(x, v, side, options.steps)
        if task is not None:
            tasks[name] = task
            task()
            print(f"{name}: ready after {time.perf_counter() - began:.1f} s")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    shuffled = np.random.default_rng(0)
    for _ in range(options.blocks):
        for name in shuffled.permutation(list(tasks)):  # who follows jax-md pays for the memory that it gives back
            task = tasks[name]
            wall, cpu = time.perf_counter(), time.process_time()
            task()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    print(f"{'ms a step':32s}{'wall':>9s}{'CPU':>9s}{'wall/OpenMM':>13s}{'CPU/OpenMM':>12s}")
    for name, found in times.items():
        columns = list(zip(*found, strict=True))
        middle = [1e3 * statistics.median(c) / options.steps for c in columns]
        against = list(zip(*times["OpenMM CPU"], strict=True))
        ratios = [
            statistics.median(a / b for a, b in zip(*pair, strict=True)) for pair in zip(columns, against, strict=True)
        ]
        print(f"{name:32s}{middle[0]:9.2f}{middle[1]:9.2f}{ratios[0]:13.2f}{ratios[1]:12.2f}")


def start(n: int):
    """The lattice, random velocities without total momentum, and the side of the box."""
    edge = round(n ** (1 / 3))
    x = SPACING * np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), -1).reshape(-1, 3)
    v = np.random.default_rng(0).normal(scale=np.sqrt(KT), size=x.shape)
    return x, v - v.mean(0), SPACING * edge


def lennard_jones(dtype, accumulate, x, v, side):
    """The integrator at constant energy, and its State with a neighbour list."""
    from offjax.nonbonded.neighbors import neighbor_list

    potential = md.smooth_cutoff(md.lennard_jones, ONSET, CUTOFF)
    energy = md.pair_energy(potential, md.periodic().displacement, accumulate=accumulate)
    x, box = jnp.asarray(x, dtype), jnp.full(3, side, dtype)
    integrator = md.velocity_verlet(energy, DT)
    listed = neighbor_list(x, box, cutoff=CUTOFF, skin=SKIN)
    return integrator, integrator.init(jax.random.key(0), x, jnp.asarray(v, dtype), box=box, neighbors=listed)


def offjax_run(dtype, accumulate, x, v, side, steps):
    """``md.simulate`` for ``steps`` steps, again and again."""
    integrator, state = lennard_jones(dtype, accumulate, x, v, side)
    capacity = state.neighbors.capacity
    state = md.simulate(integrator, state, 300, every=steps).state
    if state.neighbors.capacity != capacity:
        print(f"the list was replaced by a longer one: {capacity} {state.neighbors.capacity}")

    def task():
        nonlocal state
        state = md.simulate(integrator, state, steps, every=steps).state
        jax.block_until_ready(state)

    return task


def openmm_lennard_jones(n, side, onset, cutoff):
    """OpenMM's System of n particles of mass, sigma and epsilon 1 in a cubic box."""
    import openmm

    system = openmm.System()
    force = openmm.NonbondedForce()
    force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    force.setCutoffDistance(cutoff)
    force.setUseSwitchingFunction(True)
    force.setSwitchingDistance(onset)
    force.setUseDispersionCorrection(False)
    for _ in range(n):
        system.addParticle(1.0)
        force.addParticle(0.0, 1.0, 1.0)
    system.addForce(force)
    system.setDefaultPeriodicBoxVectors(*np.eye(3) * side)
    return system


def openmm_run(x, v, side, steps):
    import openmm

    system = openmm_lennard_jones(len(x), side, ONSET, CUTOFF)
    threads = {"Threads": str(len(os.sched_getaffinity(0)))}
    integrator = openmm.VerletIntegrator(DT)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("CPU"), threads)
    context.setPositions(x)
    context.setVelocities(v)
    integrator.step(300)
    return lambda: (integrator.step(steps), context.getState(positions=True))


def jax_md_run(dtype, x, v, side, steps):
    try:
        from jax_md import energy, simulate, space
    except ImportError:
        print("jax-md is not installed: its row is left out (pip install 'offjax[bench]')")
        return None
    x, v, side = jnp.asarray(x, dtype), jnp.asarray(v, dtype), jnp.asarray(side, dtype)
    displacement, shift = space.periodic(side)
    allocate, of = energy.lennard_jones_neighbor_list(
        displacement, side, r_onset=ONSET, r_cutoff=CUTOFF, dr_threshold=SKIN
    )
    init, apply = simulate.nve(of, shift, DT)
    neighbors = allocate.allocate(x)
    state = init(jax.random.key(0), x, kT=dtype(KT), neighbor=neighbors)
    state = state.set(momentum=v)

    @jax.jit
    def block(state, neighbors):
        def step(_, carry):
            state, neighbors = carry
            neighbors = neighbors.update(state.position)
            return apply(state, neighbor=neighbors), neighbors

        return jax.lax.fori_loop(0, steps, step, (state, neighbors))

    def advanced(state, neighbors):
        while True:
            new, listed = jax.block_until_ready(block(state, neighbors))
            if not listed.did_buffer_overflow:
                return new, listed
            neighbors = allocate.allocate(state.position)

    for _ in range(300 // steps):
        state, neighbors = advanced(state, neighbors)

    def task():
        nonlocal state, neighbors
        state, neighbors = advanced(state, neighbors)

    return task


def replicas() -> None:
    """Milliseconds of CPU time for 200 steps of one replica, alone and in batches; jax-md where it is installed."""
    n, side, steps = 32, 32**0.5, 200
    displacement, shift = md.periodic(side)
    energy = md.pair_energy(md.soft_sphere, displacement)
    integrator = md.brownian(energy, 0.1, 1e-3, 1.0, shift=shift)

    def ours(key):
        x = jax.random.uniform(key, (n, 2), maxval=side)
        return jax.lax.fori_loop(0, steps, lambda _, s: integrator.step(s)[0], integrator.init(key, x)).positions

    engines = {"offjax": ours}
    try:
        from jax_md import energy as jm_energy
        from jax_md import simulate, space
    except ImportError:
        print("jax-md is not installed: its rows are left out (pip install 'offjax[bench]')")
    else:
        init, apply = simulate.brownian(
            jm_energy.soft_sphere_pair(space.periodic(side)[0]), space.periodic(side)[1], 0.1, 1e-3, 1.0
        )

        def theirs(key):
            x = jax.random.uniform(key, (n, 2), maxval=side)
            return jax.lax.fori_loop(0, steps, lambda _, s: apply(s), init(key, x)).position

        engines["jax-md"] = theirs
    counts = (1, 10, 100, 400)
    print(f"{'ms for 200 steps of a replica':32s}" + "".join(f"{count:>10d}" for count in counts))
    for name, run in engines.items():
        row = []
        for count in counts:
            keys = jax.random.split(jax.random.key(0), count)
            function = jax.jit(jax.vmap(run))
            jax.block_until_ready(function(keys))
            found = []
            for _ in range(5):
                began = time.process_time()
                jax.block_until_ready(function(keys))
                found.append(time.process_time() - began)
            row.append(1e3 * statistics.median(found) / count)
        print(f"{name:32s}" + "".join(f"{t:10.2f}" for t in row))


if __name__ == "__main__":
    main()
