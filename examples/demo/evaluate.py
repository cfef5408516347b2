"""Evaluate the demo's fitted force field in OpenMM, without offjax, and compare with the energies of the fit.

    python examples/demo/evaluate.py [demo-output]

fitted.offxml is read by the plain OpenFF toolkit and turned into OpenMM Systems by OpenFF Interchange; charges are
AM1-BCC computed afresh by the toolkit. The bonds to hydrogen stay flexible, as in the fit (the section Constraints is
taken out). Each conformer's energy, relative to the mean of its molecule, and its forces must be those that offjax
found: the script exits with 1 where they are not.
"""

import argparse
import os
import sys
from pathlib import Path

import h5py
import numpy as np

HERE = Path(__file__).parent
ENERGY_TOLERANCE = 1e-5  # kJ/mol
FORCE_TOLERANCE = 1e-3  # kJ/mol/nm


def evaluate(force_field, molecule, positions):
    """Energies (n,) in kJ/mol and forces (n, atoms, 3) in kJ/mol/nm of positions in nm."""
    import openmm
    from openff.interchange import Interchange
    from openmm import unit

    system = Interchange.from_smirnoff(force_field, [molecule]).to_openmm(combine_nonbonded_forces=True)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    energies, forces = [], []
    for x in positions:
        context.setPositions(x)
        state = context.getState(getEnergy=True, getForces=True)
        energies.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
        forces.append(state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer))
    return np.array(energies), np.array(forces)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=HERE.parents[1] / "demo-output")
    arguments = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # AmberTools

    from openff.toolkit import ForceField, Molecule

    force_field = ForceField(arguments.directory / "fitted.offxml")
    force_field.deregister_parameter_handler("Constraints")
    worst_energy = worst_force = 0.0
    total = 0
    print(f"{'molecule':22s} {'conformers':>10s} {'max |dE| kJ/mol':>16s} {'max |dF| kJ/mol/nm':>19s}")
    with h5py.File(arguments.directory / "result.h5", "r") as file:
        for group in file["molecules"].values():
            molecule = Molecule.from_mapped_smiles(group.attrs["smiles"], allow_undefined_stereo=True)
            energies, forces = evaluate(force_field, molecule, group["positions"][()])
            energy = np.abs(energies - energies.mean() - group["energies_fitted"][()]).max()
            force = np.abs(forces - group["forces_fitted"][()]).max()
            print(f"{group.attrs['name']:22s} {len(energies):10d} {energy:16.1e} {force:19.1e}", flush=True)
            worst_energy, worst_force, total = max(worst_energy, energy), max(worst_force, force), total + len(energies)
    good = worst_energy <= ENERGY_TOLERANCE and worst_force <= FORCE_TOLERANCE
    print(
        f"{total} conformers in OpenMM: largest difference {worst_energy:.1e} kJ/mol and {worst_force:.1e} kJ/mol/nm, "
        f"{'as fitted' if good else 'NOT as fitted'} (tolerances {ENERGY_TOLERANCE:g}, {FORCE_TOLERANCE:g})"
    )
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
