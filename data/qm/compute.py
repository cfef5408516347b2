"""Compute the reference energies and forces in ``small-molecules.h5``.

For every molecule of ``MOLECULES`` the script

1. embeds starting conformers (RDKit, ETKDGv3),
2. runs Langevin dynamics from each of them with the unconstrained OpenFF 2.2.1 force field (OpenMM,
   Gasteiger charges) and keeps decorrelated snapshots; the force field only chooses the geometries,
3. computes energy and gradient of every snapshot with B3LYP-D3(BJ)/DZVP (PySCF).

The output has SPICE's layout, see ``README.md`` beside this file. The file is rewritten as a whole (temporary
file, then rename) after each molecule, so an interrupted run resumes with the first molecule that is missing:

    python data/qm/compute.py
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy, PySCF and OpenMM load their thread pools

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import time
from pathlib import Path

import h5py
import numpy as np

HERE = Path(__file__).resolve().parent

MOLECULES = {
    "ethanol": "CCO",
    "acetamide": "CC(N)=O",
    "N-methylformamide": "CNC=O",
    "dimethyl ether": "COC",
    "acetone": "CC(C)=O",
    "acetic acid": "CC(=O)O",
    "ethylamine": "CCN",
    "dimethylamine": "CNC",
    "ethanethiol": "CCS",
    "dimethyl sulfide": "CSC",
    "chloroethane": "CCCl",
    "fluoroethane": "CCF",
    "1,2-difluoroethane": "FCCF",
    "propene": "C=CC",
    "ethylene glycol": "OCCO",
    "methyl acetate": "COC(C)=O",
    "chloromethane": "CCl",
    "methanethiol": "CS",
    "ethene": "C=C",
}

# Everything that decides the numbers of one DFT calculation.
LEVEL = {
    "method": "RKS B3LYP (VWN_RPA local correlation)",
    "xc": "b3lyp",
    "basis": "dzvp",
    "basis_functions": "spherical",
    "dispersion": "d3bj",
    "density_fitting": "J and K",
    "auxiliary_basis": "def2-universal-jkfit",
    "grid_level": 3,
    "grid_response": True,
    "scf_conv_tol_hartree": 1e-9,
}

FORCE_FIELD = "openff_unconstrained-2.2.1.offxml"
MAX_STARTS = 4  # starting conformers per molecule
TIMESTEP_FS = 0.5
FRICTION_PER_PS = 5.0
EQUILIBRATION_STEPS = 4000
STEPS_BETWEEN_FRAMES = 4000
ENERGY_WINDOW_KJ_MOL = 150.0

BOHR_PER_ANGSTROM = 1.0 / 0.529177210903
KJ_MOL_PER_HARTREE = 2625.4996394799
GAS_CONSTANT_KJ_MOL_K = 8.31446261815324e-3


def molecule_seed(inchikey, seed):
    """Seed of one molecule: depends on the molecule and ``seed``, not on its place in the list."""
    digest = hashlib.sha256(f"{seed}:{inchikey}".encode()).hexdigest()
    return int(digest[:7], 16) + 1


def sample_conformations(molecule, n_frames, temperature, seed):
    """Thermally displaced geometries of an OpenFF ``Molecule``.

    Args:
        molecule: openff.toolkit.Molecule; receives Gasteiger charges.
        n_frames: number of snapshots, spread evenly over the starting conformers.
        temperature: Langevin temperature in kelvin.
        seed: seed of embedding, velocities and noise.

    Returns:
        Array (n_frames, atoms, 3) in bohr, centred on the centroid.
    """
    import openmm
    from openff.interchange import Interchange
    from openff.toolkit import ForceField
    from openmm import unit
    from rdkit.Chem import AllChem

    rdmol = molecule.to_rdkit()
    params = AllChem.ETKDGv3()
    params.randomSeed = seed
    params.pruneRmsThresh = 0.3
    params.onlyHeavyAtomsForRMS = False
    ids = list(AllChem.EmbedMultipleConfs(rdmol, MAX_STARTS, params))
    starts = [rdmol.GetConformer(i).GetPositions() for i in ids]
    if not starts:
        raise RuntimeError(f"no conformer could be embedded for {molecule.name}")

    molecule.assign_partial_charges("gasteiger")
    interchange = Interchange.from_smirnoff(
        ForceField(FORCE_FIELD), molecule.to_topology(), charge_from_molecules=[molecule]
    )
    system = interchange.to_openmm(combine_nonbonded_forces=True)
    integrator = openmm.LangevinMiddleIntegrator(
        temperature * unit.kelvin, FRICTION_PER_PS / unit.picosecond, TIMESTEP_FS * unit.femtosecond
    )
    integrator.setRandomNumberSeed(seed)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, integrator, platform)

    frames = []
    for i, start in enumerate(starts):
        count = n_frames // len(starts) + (i < n_frames % len(starts))
        context.setPositions(start * unit.angstrom)
        openmm.LocalEnergyMinimizer.minimize(context)
        context.setVelocitiesToTemperature(temperature * unit.kelvin, seed + i)
        integrator.step(EQUILIBRATION_STEPS)
        for _ in range(count):
            integrator.step(STEPS_BETWEEN_FRAMES)
            state = context.getState(getPositions=True)
            xyz = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
            frames.append((xyz - xyz.mean(axis=0)) * BOHR_PER_ANGSTROM)
    return np.array(frames)


def bonds_and_radii(mapped_smiles):
    """Bonds (pairs of atom indices) and covalent radii (bohr) of a fully mapped SMILES."""
    from openff.toolkit import Molecule
    from rdkit import Chem

    molecule = Molecule.from_mapped_smiles(mapped_smiles, allow_undefined_stereo=True)
    bonds = [(bond.atom1_index, bond.atom2_index) for bond in molecule.bonds]
    table = Chem.GetPeriodicTable()
    radii = np.array([table.GetRcovalent(atom.atomic_number) for atom in molecule.atoms]) * BOHR_PER_ANGSTROM
    return bonds, radii


def intact(xyz, bonds, radii):
    """True where the connectivity holds: bonds 0.7-1.4 covalent sums long, other pairs beyond 1.2."""
    distance = np.linalg.norm(xyz[:, None] - xyz[None], axis=-1)
    ratio = distance / (radii[:, None] + radii[None])
    bonded = np.zeros(ratio.shape, dtype=bool)
    for i, j in bonds:
        bonded[i, j] = bonded[j, i] = True
    apart = ~bonded & ~np.eye(len(xyz), dtype=bool)
    in_range = (ratio[bonded] > 0.7) & (ratio[bonded] < 1.4)
    return bool(in_range.all() and (ratio[apart] > 1.2).all())


def dft(atomic_numbers, xyz, gradient=True, conv_tol=LEVEL["scf_conv_tol_hartree"]):
    """Total energy (hartree) and gradient (hartree/bohr), dispersion included, of one geometry in bohr.

    A coarse grid brings the density close to convergence; the final SCF starts from that density on the full
    grid, which saves time and does not change the converged result. The gradient contains the response of
    the integration grid and of the fitting basis, so it is the derivative of the energy that is returned.
    It is None where ``gradient`` is false.
    """
    from pyscf import dft as pyscf_dft
    from pyscf import gto

    atoms = [(int(z), r) for z, r in zip(atomic_numbers, np.asarray(xyz).tolist(), strict=True)]
    mol = gto.M(atom=atoms, unit="Bohr", basis=LEVEL["basis"], cart=False, verbose=0, max_memory=3000)
    mf = pyscf_dft.RKS(mol, xc=LEVEL["xc"]).density_fit(auxbasis=LEVEL["auxiliary_basis"])
    mf.disp = LEVEL["dispersion"]
    mf.grids.level = 0
    mf.conv_tol = 1e-5
    mf.kernel()
    density = mf.make_rdm1()
    mf.grids.reset()
    mf.grids.level = LEVEL["grid_level"]
    mf.conv_tol = conv_tol
    energy = mf.kernel(density)
    if not mf.converged:
        raise RuntimeError("SCF not converged")
    if not gradient:
        return energy, None
    grad = mf.nuc_grad_method()
    grad.grid_response = LEVEL["grid_response"]
    return energy, grad.kernel()


def energy_limit(n_atoms, temperature):
    """Highest energy above a molecule's lowest configuration that is kept, in kJ/mol."""
    thermal = 0.5 * (3 * n_atoms - 6) * GAS_CONSTANT_KJ_MOL_K * temperature
    return ENERGY_WINDOW_KJ_MOL + thermal


def compute_molecule(name, smiles, args):
    """Sample and compute one molecule; returns the datasets and attributes of its group."""
    from openff.toolkit import Molecule

    molecule = Molecule.from_smiles(smiles, name=name)
    inchikey = molecule.to_inchikey(fixed_hydrogens=False)
    seed = molecule_seed(inchikey, args.seed)
    mapped = molecule.to_smiles(mapped=True, isomeric=True, explicit_hydrogens=True)
    numbers = np.array([atom.atomic_number for atom in molecule.atoms], dtype=np.int16)
    again = Molecule.from_mapped_smiles(mapped)
    if [atom.atomic_number for atom in again.atoms] != numbers.tolist():
        raise RuntimeError(f"{name}: atom order is lost in the mapped SMILES")

    sampled = sample_conformations(molecule, args.frames, args.temperature, seed)
    bonds, radii = bonds_and_radii(mapped)
    frames, energies, gradients, dropped = [], [], [], []
    start = time.perf_counter()
    for i, xyz in enumerate(sampled):
        if not intact(xyz, bonds, radii):
            dropped.append(f"{i}: connectivity")
            continue
        try:
            energy, gradient = dft(numbers, xyz)
        except RuntimeError as error:
            dropped.append(f"{i}: {error}")
            continue
        frames.append(xyz)
        energies.append(energy)
        gradients.append(gradient)
    seconds = (time.perf_counter() - start) / max(len(frames), 1)
    energies = np.array(energies)
    above = (energies - energies.min()) * KJ_MOL_PER_HARTREE
    keep = above <= energy_limit(len(numbers), args.temperature)
    dropped += [f"{above[i]:.0f} kJ/mol above the lowest" for i in np.flatnonzero(~keep)]
    print(
        f"{name}: {keep.sum()} configurations, {seconds:.1f} s each, up to {above[keep].max():.0f} kJ/mol "
        f"above the lowest, dropped {dropped or 'none'}",
        flush=True,
    )
    return {
        "smiles": mapped,
        "atomic_numbers": numbers,
        "conformations": np.array(frames)[keep],
        "dft_total_energy": energies[keep],
        "dft_total_gradient": np.array(gradients)[keep],
        "attrs": {
            "inchikey": inchikey,
            "seed": seed,
            "dropped": json.dumps(dropped),
            "seconds_per_gradient": round(seconds, 2),
        },
    }


def provenance(args):
    """File attributes: level of theory, sampling protocol, versions, command line."""
    packages = {
        "pyscf": "pyscf",
        "pyscf-dispersion": "pyscf-dispersion",
        "rdkit": "rdkit",
        "openmm": "openmm",
        "openff-toolkit": ("openff-toolkit", "acellera-openff-toolkit"),
        "openff-interchange": ("openff-interchange", "acellera-openff-interchange"),
        "numpy": "numpy",
        "h5py": "h5py",
    }
    versions = {}
    for label, names in packages.items():
        for distribution in [names] if isinstance(names, str) else names:
            try:
                versions[label] = f"{distribution} {importlib.metadata.version(distribution)}"
            except importlib.metadata.PackageNotFoundError:
                continue
    sampling = {
        "conformers": f"RDKit ETKDGv3, up to {MAX_STARTS} starts, all-atom RMSD pruning 0.3 angstrom",
        "dynamics": "OpenMM LangevinMiddleIntegrator, Reference platform, minimised start",
        "force_field": FORCE_FIELD,
        "charges": "Gasteiger (for the choice of geometries only)",
        "temperature_kelvin": args.temperature,
        "timestep_fs": TIMESTEP_FS,
        "friction_per_ps": FRICTION_PER_PS,
        "equilibration_steps": EQUILIBRATION_STEPS,
        "steps_between_frames": STEPS_BETWEEN_FRAMES,
        "frames_per_molecule": args.frames,
        "seed": args.seed,
        "energy_window": f"{ENERGY_WINDOW_KJ_MOL:g} kJ/mol + (3N-6)/2 RT above the lowest configuration",
    }
    command = f"python data/qm/compute.py --frames {args.frames} --temperature {args.temperature:g}"
    return {
        "title": "offjax reference set: thermally displaced small molecules",
        "level_of_theory": json.dumps(LEVEL),
        "sampling": json.dumps(sampling),
        "versions": json.dumps(versions),
        "command": f"{command} --seed {args.seed}",
        "forces": "force = -dft_total_gradient",
        **LEVEL,
    }


def write_group(file, name, data):
    """Write one molecule in SPICE's layout."""
    group = file.create_group(name)
    group.create_dataset("smiles", data=[data["smiles"]], dtype=h5py.string_dtype())
    group.create_dataset("atomic_numbers", data=data["atomic_numbers"])
    units = {"conformations": "bohr", "dft_total_energy": "hartree", "dft_total_gradient": "hartree/bohr"}
    for key, unit in units.items():
        dataset = group.create_dataset(key, data=data[key], dtype="f8", compression="gzip", shuffle=True)
        dataset.attrs["units"] = unit
    group.attrs.update(data["attrs"])


def append_molecule(path, name, data, attributes):
    """Add one molecule: copy the file to a temporary one, write there, rename it into place."""
    temporary = path.with_suffix(".tmp")
    with h5py.File(temporary, "w") as new:
        if path.exists():
            with h5py.File(path, "r") as old:
                for key in old:
                    old.copy(key, new)
        write_group(new, name, data)
        new.attrs.update(attributes)
        new.attrs["date"] = datetime.date.today().isoformat()
        new.attrs["inchikeys"] = json.dumps({key: new[key].attrs["inchikey"] for key in new})
    os.replace(temporary, path)


def done_molecules(path, attributes):
    """Names that the file already holds; refuses a file made with other settings."""
    if not path.exists():
        return set()
    with h5py.File(path, "r") as file:
        for key in ("level_of_theory", "sampling"):
            if file.attrs[key] != attributes[key]:
                raise SystemExit(f"{path.name} was made with other settings ({key}); move it away first")
        return set(file)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "small-molecules.h5", help="HDF5 file")
    parser.add_argument("--frames", type=int, default=16, help="configurations per molecule")
    parser.add_argument("--temperature", type=float, default=500.0, help="sampling temperature in kelvin")
    parser.add_argument("--seed", type=int, default=2024, help="base seed; each molecule derives its own")
    parser.add_argument("--only", nargs="+", choices=sorted(MOLECULES), help="molecules (default: all)")
    args = parser.parse_args()

    attributes = provenance(args)
    done = done_molecules(args.output, attributes)
    for name in args.only or MOLECULES:
        if name not in done:
            append_molecule(args.output, name, compute_molecule(name, MOLECULES[name], args), attributes)


if __name__ == "__main__":
    main()
