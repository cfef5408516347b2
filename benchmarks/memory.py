"""Memory and time of a fit to energies and forces: all molecules at once, and in parts that take turns.

    python benchmarks/memory.py [--molecules 100] [--conformers 2000] [--parts 10] [--iterations 3]

The data are those of workers.py. Each way is a whole fit with L-BFGS in a process of its own, from reading the file to
writing the results. Printed are the seconds of the iterations and the memory that the process took beyond what it had
before the fit, at most and of its own (without pages of files, which the operating system takes back when it needs
them).
"""

import argparse
import multiprocessing
import tempfile
import threading
import time
from pathlib import Path

import jax
from batch import processor
from workers import PARAMETERS, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", type=int, default=100)
    parser.add_argument("--conformers", type=int, default=2000)
    parser.add_argument("--parts", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=3)
    options = parser.parse_args()
    spawned = multiprocessing.get_context("spawn")
    print(f"{processor()}, jax {jax.__version__}, {options.molecules} molecules x {options.conformers} conformers")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.h5"
        ways = [(write, (data, options.molecules, options.conformers))]
        for parts in (None, options.parts):
            ways.append((fit, (data, Path(folder) / f"fit-{parts}", parts, options.iterations)))
        for function, arguments in ways:
            process = spawned.Process(target=function, args=arguments)
            process.start()
            process.join()


def fit(data: Path, directory: Path, parts: int | None, iterations: int) -> None:
    """A fit; prints what it took."""
    from offjax.fit import FitConfig, run

    jax.config.update("jax_num_cpu_devices", 1)
    config = FitConfig.from_dict(
        {
            "force_field": "openff_unconstrained-2.2.1.offxml",
            "charges": {"method": "gasteiger"},
            "data": [{"path": str(data), "on_error": "report"}],
            "parameters": [{"path": path, "prior": width} for path, width in PARAMETERS.items()],
            "objective": {} if parts is None else {"parts": parts},
            "optimizer": {"method": "l-bfgs", "max_iterations": iterations, "objective_tolerance": 0.0},
            "output": {"directory": str(directory)},
        }
    )
    jax.numpy.zeros(1).block_until_ready()
    before, most, done = own_memory(), 0, threading.Event()

    def watch():
        nonlocal most
        while not done.wait(0.01):
            most = max(most, own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    result = run(config)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    times = [entry["seconds"] for entry in result.history]
    steps = ", ".join(f"{b - a:.1f}" for a, b in zip(times, times[1:], strict=False))
    print(
        f"{'at once' if parts is None else f'{parts} parts'}: {most - before} MB, {seconds:.0f} s in all, "
        f"iterations {steps} s; objective {result.history[-1]['objective']:.10g}",
        flush=True,
    )


def own_memory() -> int:
    """Resident memory of this process that belongs to no file, MB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) // 1024
    raise OSError("no RssAnon in /proc/self/status")


if __name__ == "__main__":
    main()
