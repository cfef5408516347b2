"""A fit to energies and forces in one process on one core, on two devices, and shared by two workers.

    python benchmarks/workers.py [--molecules 600] [--conformers 160] [--repeats 7]

FreeSolv molecules from the OpenFF toolkit's wheel with Gasteiger charges, each with as many displaced conformers, whose
energies and forces by openff_unconstrained-2.2.1 have noise. Timed is what an optimiser waits for: value and gradient
of the objective of ``offjax fit`` in all bond and angle parameters and torsion k that the molecules use, at a new point
each time. The ways take turns; printed are medians, the shortest times, and the factors between the ways.
"""

import argparse
import contextlib
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import jax
import numpy as np
from batch import molecules, processor

WAYS = {
    "one core": {"cores": [0], "devices": 1},
    "two devices": {"cores": [0, 1], "devices": 2},
    "two workers": {"cores": [0, 1], "devices": 1, "workers": {"count": 2}},
}
PARAMETERS = {"Bonds/k": 40.0, "Bonds/length": 0.01, "Angles/k": 20.0, "Angles/angle": 2.0, "ProperTorsions/k": 0.4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", type=int, default=600)
    parser.add_argument("--conformers", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    spawned = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.h5"
        writer = spawned.Process(target=write, args=(data, options.molecules, options.conformers))
        writer.start()
        writer.join()
        served = {}
        for name, way in WAYS.items():
            served[name], theirs = spawned.Pipe()
            spawned.Process(target=serve, args=(theirs, data, Path(folder) / name, way)).start()
            print(f"{name}: {served[name].recv()}", flush=True)
        times: dict[str, list[list[float]]] = {name: [] for name in WAYS}
        for _ in range(options.repeats):
            for name, connection in served.items():
                connection.send(True)
                times[name].append(connection.recv())
        for connection in served.values():
            connection.send(False)
            connection.recv()
    print(f"{processor()}, jax {jax.__version__}, float64: value and gradient of the objective")
    for name, rounds in times.items():
        factor = statistics.median(
            statistics.median(a) / statistics.median(b) for a, b in zip(times["one core"], rounds, strict=True)
        )
        every, best = [t for r in rounds for t in r], min(min(r) for r in times["one core"])
        print(
            f"{name:12s} median {1e3 * statistics.median(every):7.1f} ms, shortest {1e3 * min(every):7.1f} ms: "
            f"{factor:.2f} and {best / min(every):.2f} times as fast as one core"
        )


def write(path: Path, n: int, n_conformers: int) -> None:
    """Energies and forces with noise of 2 kJ/mol and 50 kJ/mol/nm, as SPICE lays them out."""
    import offjax

    jax.config.update("jax_enable_x64", True)
    systems, positions = molecules(n)
    rng = np.random.default_rng(0)
    arrays = [x + rng.normal(scale=0.003, size=(n_conformers, *x.shape)) for x in positions]
    batch = offjax.SystemBatch.from_systems(systems)
    packed = batch.pack(arrays)
    found = batch.energies_and_forces(systems[0].parameters, packed)
    energies, forces = (batch.unpack(v, packed) for v in found)
    with h5py.File(path, "w") as file:
        for k, (system, x, u, f) in enumerate(zip(systems, arrays, energies, forces, strict=True)):
            group = file.create_group(f"molecule-{k}")
            group.create_dataset("smiles", data=[system.topology.molecules[0].smiles], dtype=h5py.string_dtype())
            for name, values, unit in (
                ("conformations", x, "nm"),
                ("dft_total_energy", u + rng.normal(scale=2.0, size=u.shape), "kj/mol"),
                ("dft_total_gradient", -(f + rng.normal(scale=50.0, size=f.shape)), "kj/mol/nm"),
            ):
                group.create_dataset(name, data=values).attrs["units"] = unit


def serve(connection, data: Path, directory: Path, way) -> None:
    """Seconds of five evaluations, whenever it is asked."""
    from offjax.devices import keep_freed_memory
    from offjax.fit import FitConfig, distributed, driver

    keep_freed_memory()  # as the command line does
    os.sched_setaffinity(0, way["cores"])
    jax.config.update("jax_num_cpu_devices", way["devices"])
    jax.config.update("jax_enable_x64", True)
    directory.mkdir()
    config = FitConfig.from_dict(
        {
            "force_field": "openff_unconstrained-2.2.1.offxml",
            "charges": {"method": "gasteiger"},
            "data": [{"path": str(data), "on_error": "report"}],
            "parameters": [{"path": path, "prior": width} for path, width in PARAMETERS.items()],
            "optimizer": {"method": "l-bfgs"},
            "output": {"directory": str(directory)},
        }
        | ({"workers": way["workers"]} if "workers" in way else {})
    )
    prepared = driver.prepare(config)
    with contextlib.ExitStack() as stack:
        shared = "workers" in way
        objective = stack.enter_context(distributed.shared(config, prepared)) if shared else prepared.objective(config)
        rng = np.random.default_rng(1)

        def seconds():
            x = 1e-3 * rng.normal(size=len(objective.free))
            start = time.perf_counter()
            jax.block_until_ready(objective.value_and_gradient(x))
            return time.perf_counter() - start

        first = seconds()
        seconds()
        connection.send(
            f"{prepared.n_conformers} conformers of {len(prepared.records)} molecules, {len(objective.free)} values; "
            f"first evaluation {first:.1f} s"
        )
        while connection.recv():
            connection.send([seconds() for _ in range(5)])
    connection.send(None)


if __name__ == "__main__":
    main()
