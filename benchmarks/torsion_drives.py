"""Relaxed torsion profiles of a data set: cost of objective, gradient and Jacobian, and a fit with held-out molecules.

    python benchmarks/torsion_drives.py TABLE.arrow [--charges gasteiger] [--fold 0] [--output DIRECTORY]

TABLE.arrow is a table of torsion drives as descent writes them. Every point of every drive is minimised with the atoms
of the driven dihedral frozen and the others restrained by 1 kcal/mol/angstrom^2; free are all bond, angle and torsion
parameters of openff-2.2.1 that the molecules use. Printed are

* wall-clock and CPU seconds of the first (with compilation) and second call of the objective, of the Gauss-Newton
  gradient and matrix of the true Jacobian at its minima, and of objective and gradient by the adjoint method in one
  program, as L-BFGS uses it; and how the minimisations went;
* the gradient along random directions, one a section, against Richardson-extrapolated differences at tight tolerance;
* the RMSE of the profiles before and after a fit to all molecules but one fold, and of that fold.

Priors and stopping are those of CONFIG below. AM1-BCC charges (the default) are computed once and cached.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

CONFIG = {
    "force_field": "openff-2.2.1.offxml",
    "parameters": [
        {"path": "Bonds/k", "prior": 40.0},
        {"path": "Bonds/length", "prior": 0.01},
        {"path": "Angles/k", "prior": 20.0},
        {"path": "Angles/angle", "prior": 2.0},
        {"path": "ProperTorsions/k", "prior": 0.4},
        {"path": "ImproperTorsions/k", "prior": 0.4},
    ],
    "objective": {"energy_scale": 4.184},
    "optimizer": {"method": "levenberg-marquardt", "max_iterations": 8, "objective_tolerance": 3e-2},
}
"""The fit: prior widths in the units of the force field (kcal/mol, angstrom, degree). A drive of 24 points has the
weight 24: every point counts as a measurement that is off by 1 kcal/mol. The fit stops when an iteration gains less
than 3 %: of the four folds, none has better held-out profiles from going on, and two have worse."""

WIDE = (100.0, 0.1, 100.0, 5.0, 5.0, 5.0)
"""Other prior widths, in the order of CONFIG: they show what weak priors do to held-out molecules."""


def timed(name: str, call):
    """Print wall-clock and CPU seconds of the first and the second call; returns the result."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(call())
        seconds += [time.perf_counter() - start[0], time.process_time() - start[1]]
    print("{:34s} first {:6.2f} s ({:6.2f} CPU), again {:6.2f} s ({:6.2f} CPU)".format(name, *seconds), flush=True)
    return result


def differences(objective, rng) -> None:
    """The gradient along a random direction in each section against differences, minima to 1e-5 kJ/mol/nm."""
    data = objective.data
    how = replace(data.targets.relaxation, tolerance=jnp.asarray(1e-5))
    objective.data = replace(data, targets=replace(data.targets, relaxation=how))
    x = jnp.zeros(len(objective.free))
    _, gradient, _ = objective.gauss_newton(x)
    labels = objective.free.selection.labels
    sections = np.array([f"{label.section} {label.attribute.rstrip('0123456789')}" for label in labels])
    for section in dict.fromkeys(sections):
        direction = jnp.asarray(np.where(sections == section, rng.normal(size=len(x)), 0.0))

        def slope(h, direction=direction):
            return (objective.value(x + h * direction) - objective.value(x - h * direction)) / (2 * h)

        for h in (0.02, 0.002):
            one, two = slope(h), slope(h / 2)
            if abs(two - one) < 1e-3 * abs(two):
                break  # otherwise a larger step took some point to another minimum
        exact, found = float((4 * two - one) / 3), float(gradient @ direction)
        error = abs(found / exact - 1)
        print(
            f"  {section:20s} gradient {found:13.7f}, differences {exact:13.7f} (step {h}), relative {error:.1e}",
            flush=True,
        )
    objective.data = data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--charges", default="force-field", help="force-field (AM1-BCC) or a method of the toolkit")
    parser.add_argument("--fold", type=int, default=0, help="the fold of 4 that is held out")
    parser.add_argument("--rows", type=int, default=None, help="only the first rows of the table")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--devices", type=int, default=1, help="CPU devices that share the chunks")
    parser.add_argument("--adjoint", action="store_true", help="also the gradient as L-BFGS uses it")
    parser.add_argument("--wide", action="store_true", help="the prior widths WIDE instead of those of CONFIG")
    parser.add_argument("--no-fit", action="store_true")
    arguments = parser.parse_args()

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", arguments.devices)
    from offjax.fit import FitConfig, for_terminal, run
    from offjax.fit.driver import prepare
    from offjax.fit.objective import compiled, value_and_gradient

    directory = Path(tempfile.mkdtemp()) if arguments.output is None else arguments.output
    include = [] if arguments.rows is None else [f"row-{n}" for n in range(arguments.rows)]
    data = {
        "path": str(arguments.table.resolve()),
        "format": "descent-arrow",
        "kind": "torsion-profiles",
        "weight": 24.0,
        "include": include,
    }
    common = {
        **CONFIG,
        "data": [data],
        "charges": {"method": arguments.charges},
        "output": {"directory": str(directory)},
    }
    if arguments.wide:
        blocks = zip(CONFIG["parameters"], WIDE, strict=True)
        common["parameters"] = [block | {"prior": width} for block, width in blocks]
    config = FitConfig.from_dict(common)

    start = time.perf_counter()
    prepared = prepare(config)
    objective = prepared.objective(config)
    points = sum(r.n_conformers for r in prepared.records)
    print(
        f"{len(prepared.records)} drives of {len({r.smiles for r in prepared.records})} molecules, {points} points, "
        f"{len(objective.free)} free parameters; read and parameterized in {time.perf_counter() - start:.1f} s; "
        f"jax {jax.__version__} {jax.default_backend()}, {len(jax.local_devices())} devices, float64"
    )
    x = jnp.zeros(len(objective.free))

    def parts():
        objective.data = replace(objective.data)  # so that nothing is remembered
        return objective.parts(x)

    found = timed("objective (all points minimised)", parts)
    _, slope, _ = timed("gradient and J^T J at the minima", lambda: objective.gauss_newton(x))
    if arguments.adjoint:
        both = compiled(value_and_gradient)
        _, gradient = timed("objective and gradient, adjoint", lambda: both(x, objective.data))
        print(f"adjoint gradient - J^T r: {float(jnp.max(jnp.abs(gradient - slope))):.1e}")
    print(f"unconverged: {int(found.unconverged)} of {points}")
    differences(objective, np.random.default_rng(0))
    if arguments.no_fit:
        return
    start = time.perf_counter()
    result = run(
        FitConfig.from_dict({**common, "split": {"folds": 4, "holdout_fold": arguments.fold}}), progress=for_terminal()
    )
    for split in ("train", "test"):
        before, after = (result.metrics[split][f"energy_rmse_{when}"] / 4.184 for when in ("initial", "fitted"))
        n = len({m.inchikey for m in result.molecules if m.split == split})
        change = f"{before:.3f} -> {after:.3f} kcal/mol ({after / before - 1:+.0%})"
        print(f"{split:5s} {n:3d} molecules: profile RMSE {change}")
    print(f"{result.stopped}; {result.history[-1]['iteration']} iterations, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
