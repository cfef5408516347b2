"""Many different molecules: SystemBatch beside OpenMM, in one process.

    python benchmarks/batch.py [--molecules 600] [--conformers 16] [--repeats 7] [--devices 2] [--precision float64]

FreeSolv molecules from the OpenFF toolkit's wheel with Gasteiger charges and openff_unconstrained-2.2.1, each with as
many displaced conformers. Measured are the energies, energies and forces, and the value and gradient in all force-field
parameters of an energy + force loss over the whole data set ("plain jit": without the compiler options that
offjax.batch recommends), on as many CPU devices as there are cores unless told otherwise, and beside them one
energy + forces call of OpenMM a conformer: "call" is setPositions + getState, "read" also takes energy and forces out
as NumPy arrays. The engines alternate; printed are medians of wall and of CPU time a conformer, and the medians
of the paired ratios.

    python benchmarks/batch.py --scaling

measures instead what a second core brings to the loss gradient: one process on one core, a process on each of two cores
at the same time (what the machine can give: they share nothing but its caches, memory and power), and one process with
two devices. They take turns; printed are the medians, and the factors in conformers a second.
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import tarfile
import time
from pathlib import Path

import jax
import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", type=int, default=600)
    parser.add_argument("--conformers", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--precision", choices=("float64", "float32"), default="float64")
    parser.add_argument("--devices", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--scaling", action="store_true")
    options = parser.parse_args()
    if options.scaling:
        scaling(options)
        return
    jax.config.update("jax_num_cpu_devices", options.devices)
    jax.config.update("jax_enable_x64", options.precision == "float64")
    compiled: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(seconds) if name.endswith("backend_compile_duration") else None
    )
    systems, positions = molecules(options.molecules)
    n = options.conformers * len(systems)
    size = statistics.mean(len(x) for x in positions)
    print(
        f"{processor()}, {len(os.sched_getaffinity(0))} cores, {options.devices} devices, jax {jax.__version__}, "
        f"{options.precision}; {len(systems)} molecules "
        f"of {size:.1f} atoms on average x {options.conformers} conformers"
    )
    tasks = offjax_tasks(systems, positions, options.conformers, options.precision)
    for name, task in tasks.items():
        before, start = len(compiled), time.perf_counter()
        task()
        seconds, count = time.perf_counter() - start, len(compiled) - before
        print(f"{name}: first call {seconds:.1f} s, {count} programs compiled in {sum(compiled[before:]):.1f} s")
    print(f"compilations in all: {len(compiled)}")
    tasks |= openmm_tasks(systems, positions, options.conformers)
    wall: dict[str, list[float]] = {name: [] for name in tasks}
    cpu: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(options.repeats):
        for name, task in tasks.items():
            start, began = time.perf_counter(), time.process_time()
            count = task() or n
            wall[name].append(1e6 * (time.perf_counter() - start) / count)
            cpu[name].append(1e6 * (time.process_time() - began) / count)
    report(wall, cpu)


def report(wall, cpu) -> None:
    """The table: microseconds a conformer and ratios to OpenMM's Reference platform."""
    call, read = "OpenMM Reference, call", "OpenMM Reference, read"
    print(f"{'us a conformer':28s}{'wall':>8s}{'CPU':>8s}{'wall / call':>13s}{'wall / read':>13s}", end="")
    print(f"{'CPU / call':>13s}{'CPU / read':>13s}")
    for name in wall:
        ratios = [
            statistics.median(a / b for a, b in zip(times[name], times[reference], strict=True))
            for times in (wall, cpu)
            for reference in (call, read)
        ]
        middle = f"{statistics.median(wall[name]):8.2f}{statistics.median(cpu[name]):8.2f}"
        print(f"{name:28s}{middle}" + "".join(f"{r:13.3f}" for r in ratios))


def molecules(n: int):
    """Systems and positions (nm) of the first n FreeSolv molecules that RDKit reads."""
    import openff.toolkit
    from openff.toolkit import ForceField, Molecule
    from rdkit import Chem, RDLogger

    import offjax

    RDLogger.DisableLog("rdApp.*")
    force_field = ForceField("openff_unconstrained-2.2.1.offxml")
    archive = tarfile.open(Path(openff.toolkit.__file__).parent / "data" / "molecules" / "FreeSolv.tar.gz")
    names = sorted(m for m in archive.getnames() if m.endswith(".mol2") and "/._" not in m)
    systems, positions = [], []
    for name in names:
        if len(systems) == n:
            break
        read = Chem.MolFromMol2Block(archive.extractfile(name).read().decode(), removeHs=False)
        if read is None:
            continue
        molecule = Molecule.from_rdkit(read, allow_undefined_stereo=True)
        positions.append(molecule.conformers[0].m_as("nanometer"))
        molecule.assign_partial_charges("gasteiger")
        systems.append(offjax.System.from_smirnoff(force_field, molecule, charge_from_molecules=[molecule]))
    while len(systems) < n:  # more than FreeSolv has: the same molecules again, as Systems of their own
        copies = min(n - len(systems), len(systems))
        systems, positions = systems + systems[:copies], positions + positions[:copies]
    return systems, positions


def offjax_tasks(systems, positions, n_conformers, precision):
    """What is measured of offjax; each runs to the end of the computation."""
    import offjax
    from offjax.batch import compiler_options
    from offjax.devices import keep_freed_memory

    keep_freed_memory()
    rng = np.random.default_rng(0)
    arrays = [(x + rng.normal(scale=0.003, size=(n_conformers, *x.shape))).astype(precision) for x in positions]
    start = time.perf_counter()
    batch = offjax.SystemBatch.from_systems(systems)
    made = time.perf_counter()
    conformers = batch.pack(arrays)
    print(f"from_systems {made - start:.1f} s, pack {time.perf_counter() - made:.1f} s; {batch}")
    p = systems[0].parameters
    e0 = batch.flatten([rng.normal(size=len(x)) for x in arrays], conformers)
    f0 = batch.flatten([rng.normal(size=x.shape) for x in arrays], conformers)

    def loss(p, conformers, e0, f0):
        energies, forces = batch.energies_and_forces(p, conformers)
        return ((energies - e0) ** 2).sum() + 1e-2 * ((forces - f0) ** 2).sum()

    gradient = jax.jit(jax.value_and_grad(loss), compiler_options=compiler_options())
    plain = jax.jit(jax.value_and_grad(loss))
    return {
        "energies": lambda: ready(batch.energies(p, conformers)),
        "energies and forces": lambda: ready(batch.energies_and_forces(p, conformers)),
        "loss gradient": lambda: ready(gradient(p, conformers, e0, f0)),
        "loss gradient, plain jit": lambda: ready(plain(p, conformers, e0, f0)),
    }


def ready(values) -> None:
    """Wait for a computation."""
    jax.block_until_ready(values)


def openmm_tasks(systems, positions, n_conformers):
    """One energy + forces call a conformer: all molecules on Reference, every tenth on the CPU platform."""
    import openmm

    def task(contexts, read):
        def run():
            for context, x in contexts:
                for _ in range(n_conformers):
                    context.setPositions(x)
                    state = context.getState(energy=True, forces=True)
                    if read:
                        state.getPotentialEnergy(), state.getForces(asNumpy=True)
            return len(contexts) * n_conformers

        return run

    tasks = {}
    for name, step in (("Reference", 1), ("CPU", 10)):
        chosen = openmm.Platform.getPlatformByName(name)
        contexts = [
            (openmm.Context(s.to_openmm(), openmm.VerletIntegrator(0.001), chosen), x)
            for s, x in list(zip(systems, positions, strict=True))[::step][:600]
        ]
        tasks[f"OpenMM {name}, call"] = task(contexts, False)
        tasks[f"OpenMM {name}, read"] = task(contexts, True)
    return tasks


def scaling(options) -> None:
    """The loss gradient on one core, on two cores in two processes, and on two devices of one process."""
    spawned = multiprocessing.get_context("spawn")
    workers = []
    for cores in ([0], [1], [0, 1]):
        ours, theirs = spawned.Pipe()
        worker = spawned.Process(target=serve, args=(theirs, cores, options), daemon=True)
        worker.start()
        ours.recv()  # it has compiled
        workers.append(ours)
    ways = {"one core": workers[:1], "two processes": workers[:2], "two devices": workers[2:]}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, chosen in ways.items():
            for worker in chosen:
                worker.send(True)
            rates[name].append(sum(1.0 / worker.recv() for worker in chosen))
    for worker in workers:
        worker.send(False)
    print(f"{processor()}, jax {jax.__version__}, {options.precision}: loss gradient")
    for name, found in rates.items():
        factor = statistics.median(a / b for a, b in zip(found, rates["one core"], strict=True))
        print(f"{name:16s}{1e6 / statistics.median(found):8.2f} us a conformer, {factor:.2f} times one core")


def serve(connection, cores, options) -> None:
    """A worker of :func:`scaling`: seconds a conformer of ten loss gradients, whenever it is asked."""
    os.sched_setaffinity(0, cores)
    jax.config.update("jax_num_cpu_devices", len(cores))
    jax.config.update("jax_enable_x64", options.precision == "float64")
    systems, positions = molecules(options.molecules)
    task = offjax_tasks(systems, positions, options.conformers, options.precision)["loss gradient"]
    task()
    connection.send(None)
    while connection.recv():
        start = time.perf_counter()
        for _ in range(10):
            task()
        connection.send((time.perf_counter() - start) / (10 * options.conformers * len(systems)))


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
