"""A FitResult with real Systems and made-up energies, for tests of the page: quick to make, and complete."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from offjax.fit import FitConfig, FitResult, MoleculeResult
from offjax.fit.benchmark import Benchmark, Minima
from offjax.fit.free import FreeParameters, LeftOut
from offjax.interop.records import Record
from tests import samples

MOLECULES = {
    "ethanol": "CCO",
    "acetamide": "CC(N)=O",
    "anisole": "COc1ccccc1",
    "methanethiol": "CS",
    "acetone": "CC(C)=O",
}


def result(directory: Path, *, n_conformers: int = 40, test: bool = True, forces: bool = True) -> FitResult:
    """Twenty-odd fitted values, two of them at a bound; errors fall by a half."""
    rng = np.random.default_rng(7)
    molecules = [
        _molecule(name, smiles, "test" if test and n % 3 == 0 else "train", n_conformers, forces, rng)
        for n, (name, smiles) in enumerate(MOLECULES.items())
    ]
    initial = molecules[0].system.parameters
    used = np.sum([np.asarray(m.system.used.to_vector()) for m in molecules], axis=0)
    chosen = [
        i
        for path in ("Bonds/k", "Bonds/length", "Angles/k", "ProperTorsions/k", "ImproperTorsions/k", "vdW/rmin_half")
        for i in initial.select(path).indices
        if used[i]
    ]
    indices = np.array(sorted(chosen)[::2])
    selection = type(initial.select("Bonds/k"))(initial, indices)
    start = np.asarray(selection.to_vector())
    widths = np.maximum(0.1 * np.abs(start), 0.5)
    widths[[initial.schema.flat[i].attribute in ("length", "rmin_half") for i in indices]] = 0.002
    lower, upper = np.full(len(indices), -np.inf), np.full(len(indices), np.inf)
    end = start + widths * rng.standard_t(3, size=len(indices))
    upper[0], lower[3] = end[0], end[3]
    free = FreeParameters(
        selection,
        widths,
        widths,
        lower,
        upper,
        log=np.zeros(len(indices), dtype=bool),
        l1=np.zeros(len(indices), dtype=bool),
        instances=used[indices].astype(int),
        molecules=np.ones(len(indices), dtype=int),
        left_out=(LeftOut(initial.schema.flat[0], "no training molecule uses it"),),
    )
    history = [
        {
            "iteration": n,
            "objective": 4.0 * 0.7**n + 1.2,
            "energy_part": 1.5 * 0.7**n + 0.3,
            "force_part": 2.5 * 0.7**n + 0.8,
            "prior_part": 0.1 * (1 - 0.7**n),
            "energy_rmse_train": 5 * 0.9**n,
            "energy_rmse_test": 6 * 0.92**n if test else None,
            "force_rmse_train": 150 * 0.9**n if forces else None,
            "force_rmse_test": 170 * 0.93**n if test and forces else None,
            "seconds": float(n),
            "stop": None,
        }
        for n in range(12)
    ]
    errors = {
        "energy_rmse_initial": 5.1,
        "energy_rmse_fitted": 2.2,
        "force_rmse_initial": 151.0 if forces else None,
        "force_rmse_fitted": 82.0 if forces else None,
    }
    return FitResult(
        config=FitConfig.from_dict(
            {
                "force_field": "openff_unconstrained-2.2.1.offxml",
                "data": [{"path": "small.h5"}],
                "parameters": [{"path": "Bonds/k", "prior": "10%"}],
            }
        ),
        initial=initial,
        fitted=selection.insert(end),
        free=free,
        history=history,
        stopped="the objective fell by less than 1e-6",
        interrupted=False,
        molecules=molecules,
        metrics={"train": errors, "test": errors if test else dict.fromkeys(errors)},
        provenance={
            "date": "2026-01-02T03:04:05+00:00",
            "command": "offjax fit fit.toml",
            "versions": {"offjax": "0.1.0", "jax": "0.10.1"},
            "force_field": ["openff_unconstrained-2.2.1.offxml"],
            "data": [{"file": "small.h5", "sha256": "ab" * 32}],
            "config_digest": "cd" * 32,
            "seconds": 12.3,
        },
        directory=directory,
    )


def benchmark(made: FitResult) -> Benchmark:
    """Made-up minima of the first three conformers of every molecule."""
    rng = np.random.default_rng(3)
    records, minima = [], {"initial": [], "fitted": []}
    for m in made.molecules:
        x = m.positions[:3]
        records.append(Record(m.name, m.smiles, m.inchikey, x, m.energies_qm[:3], None, "memory", m.driven))
        for name, size in (("initial", 0.02), ("fitted", 0.01)):
            tfd = np.full(3, np.nan) if m.name == "acetone" else 5 * size * rng.uniform(size=3)
            dde = np.array([np.nan, *(100 * size * rng.normal(size=2))])
            away = x + size * rng.normal(size=x.shape)
            minima[name].append(Minima(away, np.zeros(3), size * rng.uniform(0.5, 2, 3), tfd, dde, np.ones(3, bool)))
    minima["fitted"][0].converged[1] = False
    return Benchmark(records, minima)


def _molecule(name, smiles, split, n, forces, rng) -> MoleculeResult:
    system = samples.system(smiles)
    x = samples.positions(smiles)
    shape = (n, len(x), 3)
    energies, f = 12 * rng.normal(size=n), 600 * rng.normal(size=shape)
    return MoleculeResult(
        name=name,
        smiles=samples.molecule(smiles).to_smiles(mapped=True),
        inchikey=samples.molecule(smiles).to_inchikey(),
        split=split,
        system=system,
        positions=np.broadcast_to(x, shape) + 0.01 * rng.normal(size=shape),
        energies_qm=energies - energies.mean(),
        energies_initial=1.1 * energies + 5 * rng.normal(size=n),
        energies_fitted=energies + 2 * rng.normal(size=n),
        forces_qm=f if forces else None,
        forces_initial=1.1 * f + 150 * rng.normal(size=shape),
        forces_fitted=f + 80 * rng.normal(size=shape),
        driven=((0, 1, 2, 3),) if name == "anisole" else (),
    )
