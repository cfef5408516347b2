"""Verify ``small-molecules.h5``; prints one line per molecule and exits with 1 where something is wrong.

Per molecule: shapes and units, finite numbers, InChIKey and atomic numbers against the mapped SMILES,
connectivity of every configuration, no two configurations alike, net force and net torque, energy window.
For ``--fd`` molecules: the stored gradient along a random direction against the central difference of the
DFT energy (dispersion included), computed afresh at the stored level of theory.

    python data/qm/check.py
"""

import argparse
import json
import sys
from pathlib import Path

import compute
import h5py
import numpy as np

UNITS = {"conformations": "bohr", "dft_total_energy": "hartree", "dft_total_gradient": "hartree/bohr"}
NET_FORCE = 1e-8  # hartree/bohr; the gradient contains the response of the grid, so this is numerical zero
NET_TORQUE = 5e-3  # hartree; the grid is not rotated with the molecule, so this is only small
SAME = 0.05  # bohr; configurations whose interatomic distances all agree within this count as duplicates
FD_STEP = 2e-3  # bohr, length of the displacement along a unit vector in 3N dimensions
FD_TOLERANCE = 1e-6  # hartree/bohr


def distances(xyz):
    """Interatomic distances of each configuration, flattened: (n, pairs)."""
    i, j = np.triu_indices(xyz.shape[1], 1)
    return np.linalg.norm(xyz[:, i] - xyz[:, j], axis=-1)


def check_group(name, group, temperature):
    """Problems found in one molecule's group, and a summary line."""
    from openff.toolkit import Molecule

    problems = []
    smiles = group["smiles"].asstr()[0]
    numbers = group["atomic_numbers"][:]
    xyz, energy, gradient = (group[key][:] for key in UNITS)
    molecule = Molecule.from_mapped_smiles(smiles)
    if molecule.to_inchikey() != group.attrs["inchikey"]:
        problems.append("InChIKey")
    if [atom.atomic_number for atom in molecule.atoms] != numbers.tolist():
        problems.append("atomic numbers")
    shape = (len(energy), len(numbers), 3)
    if xyz.shape != shape or gradient.shape != shape or len(energy) == 0:
        problems.append("shapes")
    if any(group[key].attrs["units"] != unit for key, unit in UNITS.items()):
        problems.append("units")
    if not all(np.isfinite(array).all() for array in (xyz, energy, gradient)):
        problems.append("not finite")

    bonds, radii = compute.bonds_and_radii(smiles)
    if not all(compute.intact(frame, bonds, radii) for frame in xyz):
        problems.append("connectivity")
    pairs = distances(xyz)
    difference = np.abs(pairs[:, None] - pairs[None]).max(axis=-1)
    closest = difference[np.triu_indices(len(xyz), 1)].min()
    if closest < SAME:
        problems.append("duplicates")

    force = np.abs(gradient.sum(axis=1)).max()
    torque = np.abs(np.cross(xyz, gradient).sum(axis=1)).max()
    if force > NET_FORCE:
        problems.append("net force")
    if torque > NET_TORQUE:
        problems.append("net torque")
    spread = np.ptp(energy) * compute.KJ_MOL_PER_HARTREE
    if spread > compute.energy_limit(len(numbers), temperature):
        problems.append("energy window")
    rms = np.sqrt((gradient**2).mean())
    line = (
        f"{name:21s} n={len(xyz)} atoms={len(numbers)} spread={spread:5.1f} kJ/mol rms grad={rms:.4f} Eh/a0 "
        f"net force={force:.0e} torque={torque:.0e} closest pair={closest:.2f} a0  {problems or 'ok'}"
    )
    return problems, line


def check_gradient(name, group, seed):
    """Compare the stored gradient with a finite difference along one random direction; True if it agrees."""
    numbers = group["atomic_numbers"][:]
    frame = seed % len(group["conformations"])
    xyz, gradient = group["conformations"][frame], group["dft_total_gradient"][frame]
    direction = np.random.default_rng(seed).normal(size=xyz.shape)
    direction /= np.linalg.norm(direction)
    analytic = float((gradient * direction).sum())
    energies = [
        compute.dft(numbers, xyz + sign * FD_STEP * direction, gradient=False, conv_tol=1e-11)[0] for sign in (1, -1)
    ]
    numerical = (energies[0] - energies[1]) / (2 * FD_STEP)
    offset = abs(compute.dft(numbers, xyz, gradient=False)[0] - group["dft_total_energy"][frame])
    dispersion = float((dispersion_gradient(numbers, xyz) * direction).sum())
    agrees = abs(analytic - numerical) < FD_TOLERANCE and offset < 1e-7
    print(
        f"{name}, configuration {frame}: stored gradient {analytic:+.9f}, finite difference {numerical:+.9f} "
        f"Eh/a0, difference {analytic - numerical:+.1e} (dispersion share {dispersion:+.1e}); "
        f"energy recomputed to {offset:.0e} Eh  {'ok' if agrees else 'WRONG'}",
        flush=True,
    )
    return agrees


def dispersion_gradient(numbers, xyz):
    """Gradient of the two-body D3(BJ) energy alone, in hartree/bohr."""
    from pyscf import gto
    from pyscf.dispersion.dftd3 import DFTD3Dispersion

    atoms = [(int(z), r) for z, r in zip(numbers, xyz.tolist(), strict=True)]
    mol = gto.M(atom=atoms, unit="Bohr", verbose=0)
    model = DFTD3Dispersion(mol, xc=compute.LEVEL["xc"], version=compute.LEVEL["dispersion"])
    return model.get_dispersion(grad=True)["gradient"]


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=compute.HERE / "small-molecules.h5")
    parser.add_argument(
        "--fd", nargs="*", default=["acetamide", "chloroethane"], help="molecules for the gradient check"
    )
    parser.add_argument("--seed", type=int, default=5, help="random direction and configuration")
    args = parser.parse_args()

    failed = False
    with h5py.File(args.file, "r") as file:
        if json.loads(file.attrs["level_of_theory"]) != compute.LEVEL:
            sys.exit("the file's level of theory is not the one in compute.py")
        temperature = json.loads(file.attrs["sampling"])["temperature_kelvin"]
        keys = [group.attrs["inchikey"] for group in file.values()]
        for name, group in file.items():
            problems, line = check_group(name, group, temperature)
            failed |= bool(problems)
            print(line)
        total = sum(len(group["dft_total_energy"]) for group in file.values())
        unique = len(set(keys)) == len(keys)
        failed |= not unique
        print(f"{len(keys)} molecules, {total} configurations, InChIKeys {'' if unique else 'NOT '}unique")
        for name in args.fd:
            failed |= not check_gradient(name, file[name], args.seed)
    print("FAILED" if failed else "all checks passed")
    sys.exit(failed)


if __name__ == "__main__":
    main()
