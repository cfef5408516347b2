"""Memory of implicit derivatives of minima against the number of steps, beside that of unrolled steps.

    python benchmarks/implicit.py [--steps 100 1000 10000 100000] [--unrolled 100 1000 4000]

16 conformers of ethanol are minimised by FIRE for exactly ``--steps`` steps (the tolerance is zero), and the gradient
of the C..O distances of the minima in all parameters of the force field is taken. ``--unrolled`` differentiates
through as many steps of steepest descent instead. Each row runs in a process of its own; printed are the memory that
XLA allots to the program, the time of the second call, the largest difference from the gradient of the longest run
relative to its largest element, and the largest force at the end.
"""

import argparse
import json
import subprocess
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="*", default=[100, 1_000, 10_000, 100_000])
    parser.add_argument("--unrolled", type=int, nargs="*", default=[100, 1_000, 4_000])
    parser.add_argument("--child", nargs=2, metavar=("KIND", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child[0], int(options.child[1]))))
        return
    rows = [("implicit", n) for n in options.steps] + [("unrolled", n) for n in options.unrolled]
    found = {}
    for kind, n in rows:
        command = [sys.executable, __file__, "--child", kind, str(n)]
        found[kind, n] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout.splitlines()[-1])
    reference = found["implicit", max(options.steps)]["gradient"]
    largest = max(abs(g) for g in reference)
    print(f"{'':10s} {'steps':>8s} {'memory/MiB':>11s} {'seconds':>8s} {'difference':>11s} {'largest force':>14s}")
    for (kind, n), row in found.items():
        error = max(abs(a - b) for a, b in zip(row["gradient"], reference, strict=True)) / largest
        print(f"{kind:10s} {n:8d} {row['memory']:11.1f} {row['seconds']:8.2f} {error:11.1e} {row['force']:14.1e}")


def measure(kind: str, steps: int) -> dict:
    import jax
    import jax.numpy as jnp
    import numpy as np

    jax.config.update("jax_enable_x64", True)
    from openff.toolkit import Molecule

    import offjax
    from offjax import md
    from offjax.batch import compiler_options

    molecule = Molecule.from_smiles("CCO")
    molecule.generate_conformers(n_conformers=1)
    molecule.assign_partial_charges("gasteiger")
    system = offjax.System.from_smirnoff(
        "openff_unconstrained-2.2.1.offxml", molecule, charge_from_molecules=[molecule]
    )
    batch = offjax.SystemBatch.from_systems([system])
    x0 = molecule.conformers[0].m_as("nanometer")
    starts = x0 + np.random.default_rng(0).normal(scale=0.002, size=(16, *x0.shape))
    conformers = batch.pack([starts])
    plain = batch.plain(conformers)
    p = system.parameters

    def observable(positions):
        x = positions.reshape(16, -1, 3)
        return jnp.sum(jnp.linalg.norm(x[:, 0] - x[:, 2], axis=-1))  # C..O

    def implicit(theta, conformers):
        fire = md.fire(dt=0.0005, dt_max=0.001, max_step=0.01)
        found = batch.minimize(p.from_vector(theta), conformers, method=fire, tolerance=0.0, max_steps=steps)
        return observable(found.positions), jnp.max(found.largest_force)

    def unrolled(theta, conformers):
        def step(x, _):
            return x + 8e-7 * plain.energies_and_forces(p.from_vector(theta), x)[1], None

        x, _ = jax.lax.scan(step, conformers.positions, length=steps)
        forces = plain.energies_and_forces(p.from_vector(theta), x)[1]
        return observable(x), jnp.max(jnp.linalg.norm(forces, axis=-1))

    function = {"implicit": implicit, "unrolled": unrolled}[kind]
    theta = jnp.asarray(p.to_vector())
    run = (
        jax.jit(jax.value_and_grad(function, has_aux=True), compiler_options=compiler_options())
        .lower(theta, conformers)
        .compile()
    )
    jax.block_until_ready(run(theta, conformers))
    start = time.perf_counter()
    (_, force), gradient = jax.block_until_ready(run(theta, conformers))
    seconds = time.perf_counter() - start
    return {
        "memory": run.memory_analysis().temp_size_in_bytes / 2**20,
        "seconds": seconds,
        "force": float(force),
        "gradient": np.asarray(gradient).tolist(),
    }


if __name__ == "__main__":
    main()
