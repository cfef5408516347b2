"""offjax on a GPU: every result beside the same one of a CPU in float64, and how long it takes.

    python benchmarks/gpu.py prepare FOLDER            # on a machine with the OpenFF toolkit
    python benchmarks/gpu.py run FOLDER [--only liquids dynamics ...] [--repeats 7]

``prepare`` writes Systems and positions into FOLDER, as a file that cloudpickle reads without the toolkit, and what
its CPU makes of them; where the first is there, only the second, on any machine. ``run`` computes on whatever device
JAX finds (a CPU with JAX_PLATFORMS=cpu). It prints for each task the time of the first call with compilation, the
median time of later ones, and the largest relative error, |a - b| / |b| over the whole of each result, and fails if
an error is beyond the limit of its precision. Where there is no result of a CPU, "not compared" stands in its place.
"""

import argparse
import gzip
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LIMITS = {"float64": 1e-10, "mixed": 1e-4, "float32": 1e-3}
"""Relative errors allowed, unless a task says otherwise."""

SKIN = 0.1


class Task(NamedTuple):
    """``run()`` computes; ``results`` names what of it is compared with the CPU (those of float64, whatever the
    ``precision``). ``steps`` divide the time, ``limit`` is in place of that in LIMITS, ``tell`` makes a remark.
    """

    name: str
    precision: str
    run: Callable[[], Any]
    results: Callable[[Any], dict[str, Any]]
    steps: int = 1
    limit: float | None = None
    tell: Callable[[Any], str] | None = None
    measure: Callable[[Any, Any], float] | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("prepare", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=list(GROUPS), choices=GROUPS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--molecules", type=int, default=600, help="prepare: molecules of the batch")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if options.mode == "prepare":
        prepare(options.folder, options.only, options.molecules)
    elif not run(options.folder, options.only, options.repeats):
        sys.exit("some results are beyond their limits")


# --- both machines ------------------------------------------------------------------------------------------------


def prepare(folder: Path, only: Sequence[str], n_molecules: int) -> None:
    import cloudpickle

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "inputs.pkl.gz"
    if not file.exists():
        file.write_bytes(gzip.compress(cloudpickle.dumps(inputs(n_molecules))))
    made = cloudpickle.loads(gzip.decompress(file.read_bytes()))
    found = dict(np.load(folder / "cpu.npz")) if (folder / "cpu.npz").exists() else {}
    for task in (task for group in only for task in GROUPS[group](made)):
        if task.precision == "float64":
            start = time.perf_counter()
            found |= {f"{task.name}: {k}": np.asarray(v) for k, v in task.results(ready(task.run())).items()}
            print(f"{task.name}: {time.perf_counter() - start:.1f} s", flush=True)
    np.savez_compressed(folder / "cpu.npz", **found)


def run(folder: Path, only: Sequence[str], repeats: int) -> bool:
    import cloudpickle

    made = cloudpickle.loads(gzip.decompress((folder / "inputs.pkl.gz").read_bytes()))
    expected = np.load(folder / "cpu.npz") if (folder / "cpu.npz").exists() else {}
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"{'task':44s}{'precision':11s}{'first/s':>9s}{'ms':>10s}  largest relative error")
    right = True
    for task in (task for group in only for task in GROUPS[group](made)):
        try:
            right &= line(task, expected, repeats)
        except Exception as error:
            right = False
            print(f"{task.name:44s}{task.precision:11s} failed: {type(error).__name__}: {str(error)[:500]}", flush=True)
    return right


def line(task: Task, expected, repeats: int) -> bool:
    start = time.perf_counter()
    value = ready(task.run())
    first = time.perf_counter() - start
    results = {f"{task.name}: {k}": v for k, v in task.results(value).items()}
    measure = task.measure or error
    errors = {k.rpartition(": ")[2]: measure(v, expected[k]) for k, v in results.items() if k in expected}
    remark = task.tell(value) if task.tell else ""
    del value
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        ready(task.run())
        seconds.append(time.perf_counter() - start)
        if sum(seconds) > 15:
            break
    limit = LIMITS[task.precision] if task.limit is None else task.limit
    good = all(e <= limit for e in errors.values())
    compared = "not compared"
    if errors:
        of, worst = max(errors.items(), key=lambda item: item[1] if item[1] == item[1] else np.inf)
        compared = f"{worst:.1e} {of}"
    print(
        f"{task.name:44s}{task.precision:11s}{first:9.1f}{1e3 * statistics.median(seconds) / task.steps:10.3f}  "
        f"{compared}{'' if good else f' BEYOND {limit:.0e}'}{'; ' if remark else ''}{remark}",
        flush=True,
    )
    return good


def error(found, expected) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def elsewhere(found, expected) -> float:
    """The share of energies that are more than 1e-6 kJ/mol apart."""
    return float(np.mean(np.abs(np.asarray(found) - expected) > 1e-6))


def ready(values):
    return jax.block_until_ready(values)


# --- what is computed ---------------------------------------------------------------------------------------------


def inputs(n_molecules: int) -> dict[str, Any]:
    """Systems and positions (nm), by name; needs the toolkit."""
    from batch import molecules
    from liquids import water_box
    from openff.toolkit import Molecule

    import offjax
    from offjax import md

    rng = np.random.default_rng(0)
    systems, positions = molecules(n_molecules)
    systems = [replace(system, offxml=systems[0].offxml) for system in systems]  # one force field, written once
    arrays = [x + rng.normal(scale=0.003, size=(16, *x.shape)) for x in positions]
    solvated, conformers = [], []
    for smiles in ("CCO", "COCCO", "CC(=O)NC", "c1ccccc1O", "CCCCCC"):
        molecule = Molecule.from_smiles(smiles)
        molecule.generate_conformers(n_conformers=1)
        x = molecule.conformers[0].m_as("nanometer")
        files = ["offjax-teaching-1.0.offxml", "offjax-solvent-1.0.offxml"]
        solvated.append(offjax.System.from_smirnoff(files, molecule))
        conformers.append(x + rng.normal(scale=0.003, size=(16, *x.shape)))
    water = Molecule.from_mapped_smiles("[O:1]([H:2])[H:3]")
    four = water_box(216)
    boxes = {n: water_box(n) for n in (1000, 8000)}
    return {
        "batch": (systems, arrays),
        "solvent": (solvated, conformers),
        "four-site water": (offjax.System.from_smirnoff("tip4p_fb.offxml", [water] * 216, box=four[0].box), four[1]),
        "water": boxes,
        "liquid water": settled(*boxes[1000], md),
    }


def settled(system, x, md):
    """Rigid water after 1.3 ps of Langevin dynamics at 300 K, from the shaken lattice: positions and velocities."""
    constraints, masses = rigid(system, md)
    energy = system.to_jax(cutoff=0.9, accumulate="float64")
    x = jnp.asarray(x, jnp.float32)
    x = constraints.positions(x, x, jnp.asarray(masses, x.dtype)[:, None])
    box, p = jnp.asarray(system.box, x.dtype), jax.tree.map(lambda v: jnp.asarray(v, x.dtype), system.parameters)
    kT = md.thermal_energy(300.0)
    state = None
    for dt, friction, steps in ((0.0002, 100.0, 200), (0.001, 20.0, 300), (0.002, 5.0, 500)):
        integrator = md.langevin_middle(partial(energy, p), dt, kT, friction, masses=masses, constraints=constraints)
        listed = energy.neighbor_list(x, box, skin=SKIN)
        start = () if state is None else (state.velocities,)
        state = integrator.init(jax.random.key(0), x, *start, box=box, neighbors=listed)
        state = md.simulate(integrator, state, steps, every=steps).state
        x = state.positions
    return np.asarray(state.positions, float), np.asarray(state.velocities, float)


def rigid(system, md):
    term, masses = system.terms["Constraints"], np.asarray(system.masses)
    distances = np.asarray(system.slots(system.parameters)["Constraints"]["distance"])[term.slot]
    return md.distance_constraints(term.atoms, distances, masses), masses


def of_one_molecule(made) -> Iterator[Task]:
    """``System.to_jax`` of the largest molecule, 1,000 conformers by ``vmap``."""
    systems, arrays = made["batch"]
    n = int(np.argmax([x.shape[1] for x in arrays]))
    system, first = systems[n], arrays[n][0]
    x = first + np.random.default_rng(1).normal(scale=0.003, size=(1000, *first.shape))
    for precision in ("float64", "float32"):
        energy, y = system.to_jax(), jnp.asarray(x, precision)
        function = jax.jit(jax.vmap(jax.value_and_grad(energy, (0, 1)), (None, 0)))
        yield Task(
            f"one molecule of {x.shape[1]} atoms x 1,000",
            precision,
            lambda f=function, y=y: f(system.parameters, y),
            gradients,
        )
    energy = system.to_jax()
    hessian = jax.jit(jax.hessian(energy, 1))
    yield Task(
        f"one molecule of {x.shape[1]} atoms: Hessian",
        "float64",
        lambda: hessian(system.parameters, first),
        lambda v: {"Hessian": v},
    )


def gradients(value) -> dict[str, Any]:
    """What ``value_and_grad(energy, (0, 1))`` gives."""
    energy, (of_parameters, of_positions) = value
    flat = jnp.concatenate([v.reshape(-1) for v in jax.tree.leaves(of_parameters)])
    return {"energies": energy, "dU/dtheta": flat, "forces": of_positions}


def of_four_site_water(made) -> Iterator[Task]:
    """Virtual sites in a periodic box with PME: all pairs, a list, and the derivative in the box."""
    system, x = made["four-site water"]
    energy, p, box = system.to_jax(cutoff=0.85), system.parameters, jnp.asarray(system.box)
    x = jnp.asarray(x)
    listed = energy.neighbor_list(energy.place_sites(p, x), box, skin=0.05)
    every = jax.jit(jax.value_and_grad(energy, (0, 1, 2)))

    def results(value):
        of_box = value[1][2]
        return gradients((value[0], value[1][:2])) | {"dU/dbox": of_box}

    yield Task("216 four-site waters, all pairs", "float64", lambda: every(p, x, box), results)
    yield Task("216 four-site waters, list", "float64", lambda: every(p, x, box, listed), results)


def of_batch(made) -> Iterator[Task]:
    """``SystemBatch`` of FreeSolv with 16 conformers each."""
    import offjax
    from offjax.batch import compiler_options

    systems, arrays = made["batch"]
    p, batch = systems[0].parameters, offjax.SystemBatch.from_systems(systems)
    rng = np.random.default_rng(2)
    for precision in ("float64", "float32"):
        start = time.perf_counter()
        conformers = batch.pack([a.astype(precision) for a in arrays])
        print(f"{'batch: pack':44s}{precision:11s}{time.perf_counter() - start:9.1f}; {batch}")
        e0 = jnp.asarray(rng.normal(size=conformers.n_conformers), precision)
        f0 = jnp.asarray(rng.normal(size=(conformers.n_rows, 3)), precision)

        def loss(p, conformers, e0, f0):
            energies, forces = batch.energies_and_forces(p, conformers)
            return ((energies - e0) ** 2).mean() + 1e-2 * ((forces - f0) ** 2).mean()

        gradient = jax.jit(jax.value_and_grad(loss), compiler_options=compiler_options())
        name = f"batch of {len(systems)} x 16, "
        for what, run, results in (
            ("energies", lambda c=conformers: batch.energies(p, c), lambda v: {"energies": v}),
            (
                "and forces",
                lambda c=conformers: batch.energies_and_forces(p, c),
                lambda v: {"energies": v[0], "forces": v[1]},
            ),
            (
                "loss gradient",
                lambda g=gradient, c=conformers, e0=e0, f0=f0: g(p, c, e0, f0),
                lambda v: {"loss": v[0], "dloss/dtheta": v[1].to_vector()},
            ),
        ):
            yield Task(name + what, precision, run, results)


def of_batch_minima(made) -> Iterator[Task]:
    """``SystemBatch.minimize`` of four conformers each, and derivatives of some minima in the parameters."""
    import offjax
    from offjax.batch import compiler_options

    systems, arrays = made["batch"]
    p, batch = systems[0].parameters, offjax.SystemBatch.from_systems(systems)
    few = batch.pack([a[:4] for a in arrays])
    yield Task(
        f"batch of {len(systems)} x 4, minimize",
        "float64",
        lambda: batch.minimize(p, few),
        lambda v: {"conformers that went to another minimum": v.energies},
        limit=0.02,
        tell=minima,
        measure=elsewhere,
    )

    chosen = list(range(0, len(systems), max(1, len(systems) // 40)))
    small, one = batch.select(chosen), batch.pack([a[:1] for a in arrays]).select(chosen)

    def square(p, conformers):
        found = small.minimize(p, conformers, tolerance=1e-6)
        return jnp.sum((found.positions - conformers.positions) ** 2)

    slope = jax.jit(jax.value_and_grad(square), compiler_options=compiler_options())
    yield Task(
        "implicit derivatives of 40 minima",
        "float64",
        lambda: slope(p, one),
        lambda v: {"value": v[0], "gradient": v[1].to_vector()},
        limit=1e-4,
    )


def minima(found) -> str:
    return (
        f"{float(jnp.mean(found.converged)):.1%} converged, mean energy {float(jnp.mean(found.energies)):.4f} kJ/mol, "
        f"{float(jnp.mean(found.steps)):.0f} steps on average, at most {int(jnp.max(found.steps))}"
    )


def of_solvent(made) -> Iterator[Task]:
    """Implicit solvent in a batch, and of one molecule."""
    import offjax

    systems, arrays = made["solvent"]
    p, batch = systems[0].parameters, offjax.SystemBatch.from_systems(systems)
    conformers = batch.pack(arrays)

    def loss(p, conformers):
        energies, forces = batch.energies_and_forces(p, conformers)
        return jnp.mean(energies**2) + 1e-2 * jnp.mean(forces**2)

    gradient = jax.jit(jax.value_and_grad(loss))
    yield Task(
        "GBSA: batch, loss gradient",
        "float64",
        lambda: gradient(p, conformers),
        lambda v: {"loss": v[0], "dloss/dtheta": v[1].to_vector()},
    )
    energy = systems[1].to_jax()
    function = jax.jit(jax.vmap(jax.value_and_grad(energy, (0, 1)), (None, 0)))
    yield Task("GBSA: one molecule x 16", "float64", lambda: function(p, arrays[1]), gradients)


def of_liquids(made) -> Iterator[Task]:
    """TIP3P water with PME over neighbour lists: energy, forces and dU/dtheta; and building the list."""
    from offjax.nonbonded.blocks import jit

    for n, (system, x) in made["water"].items():
        for precision, dtype, accumulate in (
            ("float64", "float64", None),
            ("mixed", "float32", "float64"),
            ("float32", "float32", None),
        ):
            energy = system.to_jax(cutoff=0.9, accumulate=accumulate)
            p = jax.tree.map(lambda v: jnp.asarray(v, dtype), system.parameters)  # noqa: B023
            y, box = jnp.asarray(x, dtype), jnp.asarray(system.box, dtype)
            listed = energy.neighbor_list(y, box, skin=SKIN)
            every = jit(lambda p, x, box, n, energy=energy: jax.value_and_grad(energy, (0, 1))(p, x, box, n))
            yield Task(f"{n:,} waters, PME", precision, lambda e=every, a=(p, y, box, listed): e(*a), gradients)
            if precision == "float32":
                continue
            rebuild = jax.jit(lambda listed, x, box: listed.update(x, box, rebuild=True))
            yield Task(
                f"{n:,} waters, the list",
                precision,
                lambda r=rebuild, a=(listed, y, box): r(*a),
                lambda v, e=energy, every=every, p=p, y=y, box=box: gradients(every(p, y, box, v)),
            )


def of_dynamics(made) -> Iterator[Task]:
    """A Lennard-Jones liquid, and rigid water with PME, at constant energy."""
    from dynamics import lennard_jones, start

    from offjax import md

    for n in (8000, 64000):
        x, v, side = start(n)
        for precision, dtype, accumulate in (
            ("float64", "float64", None),
            ("mixed", "float32", "float64"),
            ("float32", "float32", None),
        ):
            if n > 8000 and precision == "float64":
                continue  # no need of a CPU's results
            yield steps(f"{n:,} Lennard-Jones", precision, 200, *lennard_jones(dtype, accumulate, x, v, side))
    system, _ = made["water"][1000]
    x, v = made["liquid water"]
    edge = float(system.box[0, 0])
    for n in (1000, 8000):
        whole = made["water"][n][0]
        times = round((n // 1000) ** (1 / 3))
        cells = np.array(list(np.ndindex(times, times, times))) * edge
        y, w = np.concatenate([x + c for c in cells]), np.concatenate([v] * len(cells))
        constraints, masses = rigid(whole, md)
        for precision, dtype, accumulate in (("float64", "float64", None), ("mixed", "float32", "float64")):
            energy = whole.to_jax(cutoff=0.9, accumulate=accumulate)
            p = jax.tree.map(lambda v: jnp.asarray(v, dtype), whole.parameters)  # noqa: B023
            z, box = jnp.asarray(y, dtype), jnp.asarray(whole.box, dtype)
            z = constraints.positions(z, z, jnp.asarray(masses, dtype)[:, None])
            integrator = md.velocity_verlet(partial(energy, p), 0.002, masses=masses, constraints=constraints)
            listed = energy.neighbor_list(z, box, skin=SKIN)
            state = integrator.init(jax.random.key(0), z, jnp.asarray(w, dtype), box=box, neighbors=listed)
            yield steps(f"{n:,} rigid waters, PME", precision, 100, integrator, state)


def steps(name: str, precision: str, n: int, integrator, state) -> Task:
    """``n`` steps of ``md.simulate``; positions are compared in float64."""
    from offjax import md

    return Task(
        f"{name}, a step of {n}",
        precision,
        lambda: md.simulate(integrator, state, n, every=n),
        lambda v: {"positions": v.state.positions} if precision == "float64" else {},
        steps=n,
        limit=1e-6,
        tell=lambda v: drift(integrator, state, v),
    )


def drift(integrator, state, value) -> str:
    """Of the conserved energy, in parts of the kinetic energy; and how often the list was built."""
    first = float(integrator.step(state)[1].conserved_energy)
    last = float(value.info.conserved_energy)
    old, new = state.neighbors, value.state.neighbors
    rebuilt = bool(jnp.any(old.positions != new.positions)) if old.positions.shape == new.positions.shape else True
    return (
        f"conserved energy {first:.4f} -> {last:.4f}, kinetic {float(value.info.kinetic_energy):.1f}, "
        f"list {'rebuilt' if rebuilt else 'as it was'}"
    )


def of_minima(made) -> Iterator[Task]:
    """``md.minimize`` by L-BFGS and FIRE, with implicit derivatives: soft spheres, over all pairs."""
    from offjax import md

    rng = np.random.default_rng(3)
    n, side = 300, 12.0
    displacement, _ = md.periodic(side)
    energy = md.pair_energy(md.soft_sphere, displacement, combine={"sigma": lambda a, b: 0.5 * (a + b)})
    x, diameters = jnp.asarray(rng.uniform(0, side, (n, 2))), jnp.asarray(rng.uniform(0.8, 1.0, n))

    def packed(x, sigma):
        return energy(x, sigma=sigma)

    for name, method in (("L-BFGS", md.lbfgs()), ("FIRE", md.fire())):

        def least(sigma, method=method):
            found = md.minimize(packed, x, sigma, method=method, tolerance=1e-9)
            return found.energy, found

        function = jax.jit(jax.value_and_grad(least, has_aux=True))
        yield Task(
            f"300 soft disks: {name}, implicit gradient",
            "float64",
            lambda f=function: f(diameters),
            lambda v: {},
            tell=lambda v: (
                f"energy {float(v[0][0]):.6e}, {int(v[0][1].steps)} steps, largest force "
                f"{float(v[0][1].largest_force):.1e}, |gradient| {float(jnp.linalg.norm(v[1])):.6e}"
            ),
        )


GROUPS = {
    "molecule": of_one_molecule,
    "sites": of_four_site_water,
    "batch": of_batch,
    "batch minima": of_batch_minima,
    "solvent": of_solvent,
    "liquids": of_liquids,
    "dynamics": of_dynamics,
    "minima": of_minima,
}


if __name__ == "__main__":
    main()
