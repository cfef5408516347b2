"""Ethanol and a protein fragment in water, each beside OpenMM: energy drift, temperature, density.

    python examples/cookbook/solvated.py [--output cookbook-output] [--quick] [--systems ethanol dialanine]

Ethanol with OpenFF 2.2.1 (bonds to hydrogen constrained, 2 fs), and the dipeptide ACE-ALA-ALA-NME with ff14SB
(flexible, 1 fs), each in 216 rigid TIP3P waters, PME, cutoff 0.85 nm, with neighbour lists and in mixed precision:
forces single with double sums, time steps double. (With single positions the energy of dialanine drifts, since rounding
their constraints at every step heats: OpenMM keeps double positions too.) After equilibration at 300 K and 1 bar the
script runs

* constant energy (velocity Verlet): the slope of the total energy, in kT a degree of freedom and nanosecond;
* constant temperature (Nose-Hoover chains): the mean temperature;
* constant pressure (Langevin middle and a Monte Carlo barostat): the mean density,

and the same with OpenMM's CPU platform, whose integrators and barostat are its own (VerletIntegrator,
NoseHooverIntegrator, LangevinMiddleIntegrator with MonteCarloBarostat). OpenMM also minimizes the packed box.
Errors are standard errors of the means of five blocks. It ends with an error where a temperature is not 300 K or two
densities differ, by more than five standard errors and 1 %, or where the energy drifts by more than 0.5 kT a degree of
freedom and nanosecond. The default takes 20 ps for each; ``--quick`` takes 2 ps, whose averages are not
converged: it shows that everything runs.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import openmm
import plotly.graph_objects as go
from drawing import save
from openff.toolkit import Molecule
from openff.toolkit.utils import get_data_file_path

import offjax
from offjax import md
from offjax.constants import BAR

jax.config.update("jax_enable_x64", True)

TEMPERATURE, PRESSURE, FRICTION, CUTOFF, WATERS = 300.0, 1.0, 2.0, 0.85, 216
KT = md.thermal_energy(TEMPERATURE)
DALTON_PER_NM3 = 1.66053906660e-3  # g/mL
EVERY = 25  # steps between samples


def ethanol():
    """Force field, molecule and time step (ps)."""
    return "openff-2.2.1.offxml", Molecule.from_smiles("CCO"), 0.002


def dialanine():
    """A fragment of a protein."""
    molecule = Molecule.from_file(get_data_file_path("proteins/MainChain_ALA_ALA.sdf"))
    return ["ff14sb_off_impropers_0.0.4.offxml", "tip3p.offxml"], molecule, 0.001


class Solution:
    """A packed and minimized System with all that both engines need."""

    def __init__(self, force_field, solute):
        water = Molecule.from_mapped_smiles("[O:1]([H:2])[H:3]")
        packed = offjax.build_box([solute, water], [1, WATERS], density=0.9)
        self.system = offjax.System.from_smirnoff(force_field, packed.topology)
        self.box, self.masses = np.asarray(packed.box), np.asarray(self.system.masses)
        term = self.system.terms["Constraints"]
        lengths = np.asarray(self.system.slots(self.system.parameters)["Constraints"]["distance"])[term.slot]
        self.constraints = md.distance_constraints(term.atoms, lengths, self.masses)
        self.groups = np.repeat(np.arange(WATERS + 1), [solute.n_atoms] + [3] * WATERS)
        self.dof = 3 * len(self.masses) - self.constraints.count - 3
        energy = self.system.to_jax(cutoff=CUTOFF, accumulate="float64")
        self.neighbor_list = energy.neighbor_list
        self.energy = md.mixed_precision(partial(energy, self.system.parameters))
        context, _ = self.openmm(openmm.VerletIntegrator(0.001), packed.positions, self.box)
        openmm.LocalEnergyMinimizer.minimize(context, 10.0, 500)
        self.positions = context.getState(positions=True).getPositions(asNumpy=True)._value

    def openmm(self, integrator, x, box, barostat=None, v=None):
        """A Context on the CPU platform."""
        made = self.system.to_openmm()
        for force in made.getForces():
            if isinstance(force, openmm.NonbondedForce):
                force.setCutoffDistance(CUTOFF)
                force.setUseSwitchingFunction(False)
        if barostat is not None:
            made.addForce(barostat)
        made.setDefaultPeriodicBoxVectors(*box)
        context = openmm.Context(made, integrator, openmm.Platform.getPlatformByName("CPU"))
        context.setPositions(x)
        context.applyConstraints(1e-6)
        if v is None:
            context.setVelocitiesToTemperature(TEMPERATURE, 1)
        else:
            context.setVelocities(v)
        return context, integrator

    def density(self, box):
        """g/mL."""
        return self.masses.sum() / np.prod(np.asarray(box)) * DALTON_PER_NM3

    def sampled(self, integrator, steps, x, v=None, box=None):
        """Infos and densities along a run of ours, and the last State."""
        box = jnp.asarray(np.diag(self.box) if box is None else box)
        listed = self.neighbor_list(jnp.asarray(x, jnp.float32), box.astype(jnp.float32), skin=0.08)
        state = integrator.init(jax.random.key(1), x, v, box=box, neighbors=listed)
        frames: list[md.Frame] = []
        last = md.simulate(integrator, state, steps, every=EVERY, reporters=[frames.append]).state
        kT = [float(f.info.kT) for f in frames]
        conserved = [float(f.info.conserved_energy) for f in frames]
        return last, np.array(kT), np.array(conserved), np.array([self.density(f.state.box) for f in frames])

    def theirs(self, context, integrator, steps):
        """kT, total energies and densities along a run of OpenMM's."""
        kT, total, density = [], [], []
        for _ in range(steps // EVERY):
            integrator.step(EVERY)
            state = context.getState(energy=True)
            kinetic = state.getKineticEnergy()._value  # OpenMM shifts it to the time of the positions
            kT.append(2.0 * kinetic / self.dof)
            total.append(kinetic + state.getPotentialEnergy()._value)
            density.append(self.density([state.getPeriodicBoxVectors()[k][k]._value for k in range(3)]))
        return np.array(kT), np.array(total), np.array(density)


def mean(values):
    """The mean and its standard error from five blocks."""
    blocks = np.array([b.mean() for b in np.array_split(values, 5)])
    return values.mean(), blocks.std(ddof=1) / np.sqrt(5)


def slope(conserved, dt, dof):
    """Drift in kT a degree of freedom and nanosecond."""
    times = np.arange(len(conserved)) * EVERY * dt
    return np.polyfit(times, conserved, 1)[0] * 1e3 / KT / dof


def study(name, solution, dt, steps, converged, figure) -> None:
    """All runs of one system."""
    common = {"masses": solution.masses, "constraints": solution.constraints}
    langevin = md.langevin_middle(solution.energy, dt, KT, FRICTION, degrees_of_freedom=solution.dof + 3, **common)
    npt = md.monte_carlo_barostat(
        langevin, solution.energy, PRESSURE * BAR, KT, groups=solution.groups, masses=solution.masses
    )
    began = time.perf_counter()
    start, *_ = solution.sampled(npt, steps // 2, solution.positions)
    x, v, box = (np.asarray(a, float) for a in (start.positions, start.velocities, start.box))

    ours = {
        "energy": solution.sampled(md.velocity_verlet(solution.energy, dt, **common), steps, x, v, box),
        "temperature": solution.sampled(md.nose_hoover(solution.energy, dt, KT, 0.1, **common), steps, x, v, box),
        "pressure": solution.sampled(npt, steps, x, v, box),
    }
    used = time.perf_counter() - began
    began = time.perf_counter()
    rows = np.diag(box)
    nose = openmm.NoseHooverIntegrator(TEMPERATURE, 10.0, dt)
    middle = openmm.LangevinMiddleIntegrator(TEMPERATURE, FRICTION, dt)
    barostat = openmm.MonteCarloBarostat(PRESSURE, TEMPERATURE, 25)
    theirs = {
        "energy": solution.theirs(*solution.openmm(openmm.VerletIntegrator(dt), x, rows, v=v), steps),
        "temperature": solution.theirs(*solution.openmm(nose, x, rows, v=v), steps),
        "pressure": solution.theirs(*solution.openmm(middle, x, rows, barostat, v), steps),
    }
    print(f"{name}: {len(x)} atoms; {used:.0f} s with compilation, OpenMM {time.perf_counter() - began:.0f} s")

    drifts = slope(ours["energy"][2], dt, solution.dof), slope(theirs["energy"][1], dt, solution.dof)
    print("  drift at constant energy: {:+.3f} kT/dof/ns, OpenMM {:+.3f}".format(*drifts))
    kelvin = [[v / KT * TEMPERATURE for v in mean(run)] for run in (ours["temperature"][1], theirs["temperature"][0])]
    print("  temperature: {:.1f} +- {:.1f} K, OpenMM {:.1f} +- {:.1f}".format(*kelvin[0], *kelvin[1]))
    density = [mean(run) for run in (ours["pressure"][3], theirs["pressure"][2])]
    print("  density: {:.4f} +- {:.4f} g/mL, OpenMM {:.4f} +- {:.4f}".format(*density[0], *density[1]))
    for engine, values in (("offjax", ours["pressure"][3]), ("OpenMM", theirs["pressure"][2])):
        ps = np.arange(1, len(values) + 1) * EVERY * dt
        figure.add_scatter(x=ps, y=values, name=f"{name}, {engine}", mode="lines")
    if not converged:
        return
    if abs(drifts[0]) > 0.5:
        sys.exit("the energy should not drift")
    if abs(kelvin[0][0] - TEMPERATURE) > max(5 * kelvin[0][1], 0.01 * TEMPERATURE):
        sys.exit("the mean temperature should be the thermostat's")
    (a, error), (b, other) = density
    if abs(a - b) > max(5 * np.hypot(error, other), 0.01):
        sys.exit("the densities should agree")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("cookbook-output"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--systems", nargs="*", default=["ethanol", "dialanine"], choices=["ethanol", "dialanine"])
    arguments = parser.parse_args()
    figure = go.Figure()
    for name in arguments.systems:
        force_field, solute, dt = {"ethanol": ethanol, "dialanine": dialanine}[name]()
        steps = round((2.0 if arguments.quick else 20.0) / dt)
        study(name, Solution(force_field, solute), dt, steps, not arguments.quick, figure)
    figure.update_layout(xaxis_title="time, ps", yaxis_title="density, g/mL", template="plotly_white")
    save(figure, arguments.output, "solvated.html")


if __name__ == "__main__":
    main()
