"""T4 lysozyme in TIP3P water with ions: every component beside OpenMM's Reference platform, and parameter gradients.

    python benchmarks/protein.py [--padding 0.6] [--precision double|mixed]

The protein is the one that the OpenFF toolkit ships for its tests, with the ff14SB port; OpenMM adds the solvent.
Printed are relative differences of energies, those of forces in units of their root mean square, and gradients of some
parameters beside central differences. Needs the extra "interchange", which has the force field.
"""

import argparse
import time

import jax
import numpy as np


def solvated(padding: float):
    """(molecules, positions nm, box nm)."""
    import openmm.app as app
    from openff.toolkit import Molecule, Topology
    from openff.toolkit.utils import get_data_file_path
    from openmm import unit

    path = get_data_file_path("proteins/T4-protein.pdb")
    pdb = app.PDBFile(path)
    modeller = app.Modeller(pdb.topology, pdb.positions)
    field = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
    modeller.addSolvent(field, padding=padding * unit.nanometer, ionicStrength=0.05 * unit.molar)
    [protein] = Topology.from_pdb(path).molecules
    kinds = {
        "HOH": Molecule.from_mapped_smiles("[O:1]([H:2])[H:3]"),
        "NA": Molecule.from_smiles("[Na+]"),
        "CL": Molecule.from_smiles("[Cl-]"),
    }
    added = [kinds[r.name] for r in modeller.topology.residues() if r.name in kinds]
    x = np.array(modeller.positions.value_in_unit(unit.nanometer))
    own = protein.conformers[0].m_as("nanometer")
    shift = x[: len(own)].mean(axis=0) - np.array(pdb.positions.value_in_unit(unit.nanometer)).mean(axis=0)
    x[: len(own)] = own + shift  # the toolkit's order of the atoms
    box = np.array([list(v) for v in modeller.topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer)])
    return [protein, *added], x, box


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--padding", type=float, default=0.6)
    parser.add_argument("--precision", choices=("double", "mixed"), default="double")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)

    import openmm

    import offjax
    from offjax.interop.openmm import force_groups

    molecules, x, box = solvated(options.padding)
    start = time.perf_counter()
    files = ["ff14sb_off_impropers_0.0.4.offxml", "tip3p.offxml"]
    system = offjax.System.from_smirnoff(files, molecules, box=box)
    print(f"{system.n_particles} particles, parameterized in {time.perf_counter() - start:.1f} s")
    energy, p = system.to_jax(), system.parameters
    ewald = energy.static.treatment.coulomb

    made = system.to_openmm(split_terms=True)
    for force in made.getForces():
        if force.getName() == "Electrostatics":
            force.setPMEParameters(ewald.alpha, *ewald.grid)
    context = openmm.Context(made, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(x)
    theirs = {
        name: context.getState(getEnergy=True, groups={n}).getPotentialEnergy()._value
        for n, name in force_groups(made).items()
    }
    forces = np.array(context.getState(getForces=True).getForces(asNumpy=True)._value)

    y = x
    if options.precision == "mixed":
        energy, y = system.to_jax(accumulate="float64"), x.astype(np.float32)
    neighbors = energy.neighbor_list(y, skin=0.1)
    ours = energy.by_term(p, y, None, neighbors)
    for name, value in theirs.items():
        relative = abs(float(ours[name]) - value) / abs(value)
        print(f"{name:<18}{float(ours[name]):>18.6f}{value:>18.6f} kJ/mol  relative difference {relative:.1e}")
    total = sum(theirs.values())
    print(f"{'total':<36}{total:>18.6f} kJ/mol  relative difference {abs(sum(ours.values()) - total) / abs(total):.1e}")
    gradients = jax.jit(lambda e, p, x, n: jax.grad(e, (0, 1))(p, x, None, n))(energy, p, y, neighbors)
    rms = np.sqrt(np.mean(forces**2))
    print(f"forces: RMS difference {np.sqrt(np.mean((gradients[1] + forces) ** 2)) / rms:.1e} of their RMS")

    theta, slope, used = p.to_vector(), np.asarray(gradients[0].to_vector()), system.used.to_vector()
    energy, neighbors = system.to_jax(), system.to_jax().neighbor_list(x, skin=0.1)
    for section, attribute in (("Bonds", "k"), ("ProperTorsions", "k"), ("vdW", "rmin_half"), ("vdW", "epsilon"),
                               ("LibraryCharges", "charge")):  # fmt: skip
        if (section, attribute) not in p.schema.slices:
            continue
        rows = np.arange(len(theta))[p.schema.slice(section, attribute)]
        i = rows[np.argmax(used[rows] * (theta[rows] != 0))]
        step = 1e-4 * abs(theta[i]) * np.eye(len(theta))[i]
        values = [float(energy(p.from_vector(v), x, None, neighbors)) for v in (theta + step, theta - step)]
        fd = (values[0] - values[1]) / (2e-4 * abs(theta[i]))
        print(f"{p.schema.flat[i]!s:.60}: {slope[i]:.8g}, difference {fd:.8g}, relative {abs(slope[i] / fd - 1):.1e}")


if __name__ == "__main__":
    main()
