"""Boxes of TIP3P water: energies over neighbour lists beside OpenMM's CPU platform and, where installed, jax-md.

    taskset -c 0 python benchmarks/liquids.py [--waters 216 1000 8000] [--repeats 9] [--growth] [--crossover]

Measured are energy, forces and dU/dtheta (every parameter of the force field) in mixed precision (float32 pairs,
float64 sums) and in float64, and rebuilding the list; beside them energy and forces of OpenMM on as many threads as
this process may use, with equal cutoff, splitting parameter and grid. The engines alternate; printed are medians of
wall and CPU time, medians of the paired ratios to OpenMM's, and the errors of mixed precision. 216 waters have a cutoff
of 0.85 nm, larger boxes 0.9 nm. ``--growth`` instead measures float32 with float64 sums for boxes of 1,000 and
8,000 waters, list building included, and the peak memory; ``--crossover`` all pairs beside a list in small periodic
boxes and open clusters, float64. jax-md (pip install 'offjax[bench]') runs its
``mm_forcefields`` PME for 216 waters, energy, forces and gradient in charge, sigma and epsilon of every atom.
"""

import argparse
import os
import resource
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

DENSITY = 33.4  # molecules of water in a cubic nanometre
SKIN = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waters", type=int, nargs="*", default=[216, 1000, 8000])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--crossover", action="store_true")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print(f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, jax {jax.__version__}")
    if options.growth:
        growth(options.repeats)
        return
    if options.crossover:
        crossover(options.repeats)
        return
    for n in options.waters:
        system, x = water_box(n)
        print(f"\n{n} waters, cutoff {cutoff_of(n)} nm, box {system.box[0, 0]:.3f} nm")
        tasks = offjax_tasks(system, x, n) | openmm_task(system, x, n) | (jax_md_task(system, x, n) if n == 216 else {})
        report(alternate(tasks, options.repeats), "OpenMM CPU: energy + forces")


def water_box(n: int):
    """A System of n TIP3P waters and positions (nm): turned at random, on a shaken lattice."""
    from openff.toolkit import Molecule
    from scipy.spatial.transform import Rotation

    import offjax

    rng = np.random.default_rng(0)
    water = Molecule.from_mapped_smiles("[O:1]([H:2])[H:3]")
    water.generate_conformers(n_conformers=1)
    one = water.conformers[0].m_as("nanometer")
    length = (n / DENSITY) ** (1 / 3)
    edge = int(np.ceil(n ** (1 / 3) - 1e-9))
    points = np.array(list(np.ndindex(edge, edge, edge)))[:n] * (length / edge) + rng.normal(scale=0.01, size=(n, 3))
    turned = np.einsum("nij,aj->nai", Rotation.random(n, random_state=0).as_matrix(), one - one.mean(axis=0))
    start = time.perf_counter()
    system = offjax.System.from_smirnoff("tip3p.offxml", [water] * n, box=np.eye(3) * length)
    print(f"System of {n} waters: {time.perf_counter() - start:.1f} s")
    return system, (points[:, None] + turned).reshape(-1, 3)


def cutoff_of(n: int) -> float:
    return 0.85 if n <= 216 else 0.9


def everything(energy):
    """Energy, dU/dtheta and dU/dx in one program."""
    from offjax.nonbonded.blocks import jit

    function = jax.value_and_grad(lambda p, x, box, neighbors: energy(p, x, box, neighbors), (0, 1))
    return jit(function)


def timed(name, function, *arguments):
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    print(f"{name}: first call {time.perf_counter() - start:.1f} s")
    return result


def offjax_tasks(system, x, n: int):
    """Energy + forces + dU/dtheta, mixed and float64, and the rebuilding of the list."""
    tasks, values = {}, []
    for name, dtype, accumulate in (("mixed", "float32", "float64"), ("float64", "float64", None)):
        energy = system.to_jax(cutoff=cutoff_of(n), accumulate=accumulate)
        p = jax.tree.map(lambda v: jnp.asarray(v, dtype), system.parameters)  # noqa: B023
        arguments = p, jnp.asarray(x, dtype), jnp.asarray(system.box, dtype)
        neighbors = timed(f"{name}: list", lambda e, a: e.neighbor_list(a[1], a[2], skin=SKIN), energy, arguments)
        run = everything(energy)
        values.append(timed(f"{name}: energy + forces + dU/dtheta", run, *arguments, neighbors))
        rebuild = jax.jit(lambda neighbors, x, box: neighbors.update(x, box, rebuild=True))
        timed(f"{name}: rebuild", rebuild, neighbors, *arguments[1:])
        tasks[f"offjax {name}: energy + forces + dU/dtheta"] = lambda r=run, a=(*arguments, neighbors): ready(r(*a))
        tasks[f"offjax {name}: rebuild the list"] = lambda r=rebuild, a=(neighbors, *arguments[1:]): ready(r(*a))
    (mixed, (_, f_mixed)), (exact, (_, f_exact)) = values
    rms = float(jnp.sqrt(jnp.mean(f_exact**2)))
    print(
        f"mixed precision: energy off by {abs(float(mixed - exact) / float(exact)):.1e} relative, forces by "
        f"{float(jnp.sqrt(jnp.mean((f_mixed - f_exact) ** 2))) / rms:.1e} of their RMS"
    )
    check_openmm(system, x, n, exact, f_exact)
    return tasks


def ready(values) -> None:
    jax.block_until_ready(values)


def openmm_context(system, n: int, platform: str):
    """A Context whose NonbondedForce has offjax's cutoff, splitting parameter and grid."""
    import openmm

    treatment = system.to_jax(cutoff=cutoff_of(n)).static.treatment
    made = system.to_openmm()
    for force in made.getForces():
        if isinstance(force, openmm.NonbondedForce):
            force.setCutoffDistance(treatment.cutoff)
            force.setUseSwitchingFunction(False)
            force.setPMEParameters(treatment.coulomb.alpha, *treatment.coulomb.grid)
    threads = {"Threads": str(len(os.sched_getaffinity(0)))} if platform == "CPU" else {}
    integrator = openmm.VerletIntegrator(0.001)
    return openmm.Context(made, integrator, openmm.Platform.getPlatformByName(platform), threads)


def check_openmm(system, x, n: int, energy, gradient) -> None:
    """The same number, or the comparison means nothing."""
    context = openmm_context(system, n, "CPU")
    context.setPositions(x)
    state = context.getState(getEnergy=True, getForces=True)
    theirs, forces = state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value
    rms = np.sqrt(np.mean(forces**2))
    print(
        f"offjax float64 and OpenMM CPU: energies differ by {abs(float(energy) / theirs - 1):.1e} relative, "
        f"forces by {np.sqrt(np.mean((np.asarray(gradient) + forces) ** 2)) / rms:.1e} of their RMS"
    )


def openmm_task(system, x, n: int):
    context = openmm_context(system, n, "CPU")

    def run():
        context.setPositions(x)
        context.getState(getEnergy=True, getForces=True)

    run()
    return {"OpenMM CPU: energy + forces": run}


def jax_md_task(system, x, n: int):
    """jax-md's PME with the same cutoff, splitting parameter and (cubic) grid."""
    try:
        from jax_md.mm_forcefields import oplsaa
        from jax_md.mm_forcefields.nonbonded.electrostatics import PMECoulomb
        from jax_md.mm_forcefields.oplsaa.params import create_parameters
        from jax_md.mm_forcefields.oplsaa.topology import create_topology
    except ImportError:
        print("jax-md is not installed: its row is left out (pip install 'offjax[bench]')")
        return {}
    kcal, angstrom = 4.184, 0.1
    treatment = system.to_jax(cutoff=cutoff_of(n)).static.treatment
    cut, alpha, grid = treatment.cutoff / angstrom, treatment.coulomb.alpha * angstrom, treatment.coulomb.grid
    values, atoms = system.instances(), np.arange(3 * n).reshape(n, 3)
    bonds = np.concatenate([atoms[:, [0, 1]], atoms[:, [0, 2]]])
    angles, none = atoms[:, [1, 0, 2]], np.zeros((0, 4), int)
    topology = create_topology(3 * n, *(jnp.asarray(a) for a in (bonds, angles, none, none)))
    zeros = np.zeros(0)
    arrays = [
        *(np.zeros(len(bonds)), np.full(len(bonds), 0.9572)),  # bonds and angles without force constant: rigid water
        *(np.zeros(len(angles)), np.full(len(angles), 1.82)),
        *(zeros, zeros, zeros, zeros, zeros, zeros),
        *(values["Electrostatics"]["charge"], values["vdW"]["sigma"] / angstrom, values["vdW"]["epsilon"] / kcal),
    ]
    y, box = jnp.asarray(x / angstrom), jnp.asarray(np.diag(system.box) / angstrom)
    y = jnp.mod(y, box)
    options = oplsaa.NonbondedOptions(r_cut=cut, dr_threshold=SKIN / angstrom)
    tasks = {}
    for name in ("float32", "float64"):
        y_, box_ = y.astype(name), box.astype(name)
        parameters = create_parameters(*(jnp.asarray(a, name) for a in arrays))
        coulomb = PMECoulomb(grid_size=max(grid), alpha=alpha, r_cut=cut)
        neighbors = oplsaa.energy(topology, parameters, box_, coulomb, options)[1].allocate(y_)

        def energy(parameters, positions, coulomb=coulomb, neighbors=neighbors, box=box_):
            return oplsaa.energy(topology, parameters, box, coulomb, options)[0](positions, neighbors)["total"]

        run = jax.jit(jax.value_and_grad(energy, (0, 1), allow_int=True))
        timed(f"jax-md {name}", run, parameters, y_)
        tasks[f"jax-md {name}: energy + forces + dU/dtheta"] = lambda r=run, a=(parameters, y_): ready(r(*a))
    return tasks


def alternate(tasks, repeats: int):
    """{task: (wall, CPU) seconds of each repeat}; the tasks take turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            start, began = time.perf_counter(), time.process_time()
            task()
            times[name].append((time.perf_counter() - start, time.process_time() - began))
    return times


def report(times, reference: str) -> None:
    print(f"{'ms':52s}{'wall':>9s}{'CPU':>9s}{'wall/OpenMM':>13s}{'CPU/OpenMM':>12s}")
    for name, measured in times.items():
        columns = list(zip(*measured, strict=True))
        against = list(zip(*times[reference], strict=True))
        ratios = [
            statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in zip(columns, against, strict=True)
        ]
        middle = [1e3 * statistics.median(c) for c in columns]
        print(f"{name:52s}{middle[0]:9.2f}{middle[1]:9.2f}{ratios[0]:13.2f}{ratios[1]:12.2f}")


def growth(repeats: int) -> None:
    """Time an atom at 3,000 and 24,000 atoms; a rebuild every 20 energy calls counted in."""
    cost = {}
    for n in (1000, 8000):
        system, x = water_box(n)
        energy = system.to_jax(cutoff=cutoff_of(n), accumulate="float64")
        p = jax.tree.map(lambda v: jnp.asarray(v, "float32"), system.parameters)
        x, box = jnp.asarray(x, "float32"), jnp.asarray(system.box, "float32")
        neighbors = energy.neighbor_list(x, box, skin=SKIN)
        run, rebuild = everything(energy), jax.jit(lambda n, x, box: n.update(x, box, rebuild=True))
        tasks = {"energy": lambda r=run, a=(p, x, box, neighbors): ready(r(*a))}
        tasks["rebuild"] = lambda r=rebuild, a=(neighbors, x, box): ready(r(*a))
        for task in tasks.values():
            task()
        times = {k: statistics.median(c for _, c in v) for k, v in alternate(tasks, repeats).items()}
        cost[n] = (times["energy"] + times["rebuild"] / 20) / (3 * n)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{3 * n} atoms: energy + forces + dU/dtheta {1e3 * times['energy']:.1f} ms of CPU time, rebuild "
            f"{1e3 * times['rebuild']:.1f} ms = {times['rebuild'] / times['energy']:.1f} energy calls, "
            f"{1e6 * cost[n]:.2f} us an atom; peak memory of the process {peak:.2f} GiB"
        )
    print(f"growth of the time an atom from 3,000 to 24,000 atoms: {cost[8000] / cost[1000]:.2f}")


def crossover(repeats: int) -> None:
    """Energy, forces and dU/dtheta over all pairs and over a list, a rebuild every 20 calls counted in."""
    for method in ("PME", "CutoffNonPeriodic"):
        for n in (27, 64, 125, 216):
            system, x = water_box(n)
            cutoff = min(0.9, 0.45 * float(system.box[0, 0]))
            energy = system.to_jax(nonbonded_method=method, cutoff=cutoff)
            x, box = jnp.asarray(x), jnp.asarray(system.box) if method == "PME" else None
            neighbors = energy.neighbor_list(x, box, skin=SKIN)
            run, rebuild = everything(energy), jax.jit(lambda n, x, box: n.update(x, box, rebuild=True))
            tasks = {
                "all pairs": lambda r=run, a=(system.parameters, x, box, None): ready(r(*a)),
                "list": lambda r=run, a=(system.parameters, x, box, neighbors): ready(r(*a)),
                "rebuild": lambda r=rebuild, a=(neighbors, x, box): ready(r(*a)),
            }
            for task in tasks.values():
                task()
            cpu = {name: [c for _, c in found] for name, found in alternate(tasks, repeats).items()}
            ratio = [a / (b + c / 20) for a, b, c in zip(*cpu.values(), strict=True)]
            middle = [1e3 * statistics.median(found) for found in cpu.values()]
            print(
                f"{method}, {3 * n} atoms, cutoff {cutoff:.2f} nm: all pairs {middle[0]:.2f} ms of CPU time, list "
                f"{middle[1]:.2f}, rebuild {middle[2]:.2f}; all pairs / list {statistics.median(ratio):.2f}"
            )


if __name__ == "__main__":
    main()
