"""One small molecule, many conformers: offjax beside OpenMM and, where installed, jax-md's ``mm_forcefields``.

    python benchmarks/ethanol.py [--conformers 1000] [--repeats 7]

Energy, energy + forces, energy + forces + dU/dtheta and the gradient of a force-matching loss for conformers of
ethanol, float64, in microseconds a conformer: medians of repeats that alternate between the engines, in one process.
jax-md (pip install 'offjax[bench]') evaluates its OPLS-AA energy function with the same terms and force constants; its
mixing rule for sigma is geometric, which costs the same. OpenMM's time is set positions + get state.
"""

import argparse
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conformers", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()

    from openff.toolkit import Molecule

    import offjax

    molecule = Molecule.from_smiles("CCO")
    molecule.generate_conformers(n_conformers=1)
    molecule.assign_partial_charges("gasteiger")
    system = offjax.System.from_smirnoff(
        "openff_unconstrained-2.2.1.offxml", molecule, charge_from_molecules=[molecule]
    )
    x0 = molecule.conformers[0].m_as("nanometer")
    x = x0 + np.random.default_rng(0).normal(scale=0.003, size=(options.conformers, *x0.shape))
    print(f"{platform.machine()}, jax {jax.__version__}, float64, ethanol x {len(x)}, {options.repeats} repeats")
    tasks = {**offjax_tasks(system, x), **jax_md_tasks(system, x), **openmm_tasks(system, x)}
    first = {}
    for name, task in tasks.items():
        start = time.perf_counter()
        task()
        first[name] = time.perf_counter() - start
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(options.repeats):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    reference = statistics.median(seconds["OpenMM Reference: energy + forces"])
    print(f"{'':56s}{'us/conformer':>13s}{'/ Reference':>13s}{'first call, s':>15s}")
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(f"{name:56s}{1e6 * middle / len(x):13.2f}{middle / reference:13.3f}{first[name]:15.2f}")


def vmapped(name, energy, p, x):
    """An energy function of parameters and positions over all conformers, with more and more derivatives."""
    functions = {
        "energy": energy,
        "energy + forces": jax.value_and_grad(energy, 1),
        "energy + forces + dU/dtheta": jax.value_and_grad(energy, (0, 1)),
    }

    def task(function):
        program = jax.jit(jax.vmap(function, (None, 0)))
        return lambda: jax.block_until_ready(program(p, x))

    return {f"{name}: {what}": task(function) for what, function in functions.items()}


def offjax_tasks(system, x):
    """The plain energy under vmap, and a SystemBatch of one molecule."""
    import offjax

    energy, p = system.to_jax(), system.parameters
    batch = offjax.SystemBatch.from_systems([system])
    conformers = batch.pack([x])

    def loss(p, conformers):
        energies, forces = batch.energies_and_forces(p, conformers)
        return 1e-3 * jnp.sum(energies) + jnp.sum(forces**2)

    gradient = jax.jit(jax.value_and_grad(loss))
    run = jax.block_until_ready
    return {
        **vmapped("offjax plain", energy, p, x),
        "offjax batch: energy": lambda: run(batch.energies(p, conformers)),
        "offjax batch: energy + forces": lambda: run(batch.energies_and_forces(p, conformers)),
        "offjax batch: energy + force loss, gradient": lambda: run(gradient(p, conformers)),
    }


def openmm_tasks(system, x):
    """Set positions, get energy and forces, one conformer after the other."""
    import openmm

    tasks = {}
    for platform_name in ("Reference", "CPU"):
        chosen = openmm.Platform.getPlatformByName(platform_name)
        context = openmm.Context(system.to_openmm(), openmm.VerletIntegrator(0.001), chosen)

        def run(context=context):
            for positions in x:
                context.setPositions(positions)
                context.getState(getEnergy=True, getForces=True).getForces(asNumpy=True)

        tasks[f"OpenMM {platform_name}: energy + forces"] = run
    return tasks


def jax_md_tasks(system, x):
    """The same terms in jax-md's OPLS-AA energy function, vmapped over conformers with one neighbour list."""
    try:
        from jax_md.mm_forcefields import oplsaa
        from jax_md.mm_forcefields.nonbonded.electrostatics import CutoffCoulomb
        from jax_md.mm_forcefields.oplsaa.params import create_parameters
        from jax_md.mm_forcefields.oplsaa.topology import create_topology
    except ImportError:
        print("jax-md is not installed: its rows are left out (pip install 'offjax[bench]')")
        return {}
    kcal, angstrom = 4.184, 0.1
    values, terms = system.instances(), system.terms
    torsions = ("ProperTorsions", "ImproperTorsions")
    atoms = [jnp.asarray(terms[s].atoms) for s in ("Bonds", "Angles", *torsions)]
    topology = create_topology(system.n_particles, *atoms)
    arrays = [
        values["Bonds"]["k"] * angstrom**2 / kcal / 2,
        values["Bonds"]["length"] / angstrom,
        values["Angles"]["k"] / kcal / 2,
        values["Angles"]["angle"],
    ]
    for s in torsions:
        periodicity = terms[s].periodicity[terms[s].slot].astype(float)
        arrays += [values[s]["k"] / kcal, periodicity, values[s]["phase"]]
    arrays += [values["Electrostatics"]["charge"], values["vdW"]["sigma"] / angstrom, values["vdW"]["epsilon"] / kcal]
    parameters = create_parameters(*(jnp.asarray(a) for a in arrays))
    options = oplsaa.NonbondedOptions(r_cut=12.0, dr_threshold=1.0, scale_14_lj=0.5, scale_14_coul=0.8333333333)
    box, y = jnp.full(3, 50.0), jnp.asarray(x / angstrom) + 25.0
    _, neighbor_fn, _ = oplsaa.energy(topology, parameters, box, CutoffCoulomb(r_cut=12.0), options)
    neighbors = neighbor_fn.allocate(y[0])

    def energy(parameters, positions):
        energy_fn, _, _ = oplsaa.energy(topology, parameters, box, CutoffCoulomb(r_cut=12.0), options)
        return energy_fn(positions, neighbors)["total"]

    def loss(parameters):
        energies, gradients = jax.vmap(jax.value_and_grad(energy, 1), (None, 0))(parameters, y)
        return 1e-3 * jnp.sum(energies) + jnp.sum(gradients**2)

    gradient = jax.jit(jax.value_and_grad(loss))
    return {
        **vmapped("jax-md mm_forcefields", energy, parameters, y),
        "jax-md mm_forcefields: energy + force loss, gradient": lambda: jax.block_until_ready(gradient(parameters)),
    }


if __name__ == "__main__":
    main()
