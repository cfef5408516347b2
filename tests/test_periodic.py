"""Periodic energies beside OpenMM's Reference platform, part by part."""

import jax
import numpy as np
import pytest

import offjax
from offjax.constants import COULOMB
from tests import liquids
from tests.interop import oracle
from tests.nonbonded import ewald_sum

BOX = np.diag([1.9, 1.95, 2.0])
TRICLINIC = np.array([[2.0, 0, 0], [0.55, 1.9, 0], [-0.7, 0.8, 1.85]])
CASES = {
    "water": ({"water": 125}, ["tip3p.offxml"]),
    "offjax's water": ({"water": 125}, ["offjax-water3-1.0.offxml"]),
    "ethanol": ({"ethanol": 27}, ["openff_unconstrained-2.2.1.offxml"]),
    "mixture": ({"ethanol": 12, "dichloromethane": 10, "water": 12}, ["openff-2.2.1.offxml", "tip3p.offxml"]),
    "salt water": ({"water": 110, "sodium": 6, "chloride": 6}, ["openff-2.2.1.offxml", "tip3p.offxml"]),
    "four-site water": ({"water": 125}, ["tip4p_fb.offxml"]),
    "five-site water": ({"water": 125}, ["tip5p.offxml"]),
    "charged": ({"water": 100, "sodium": 6, "chloride": 2}, ["openff-2.2.1.offxml", "tip3p.offxml"]),
}


def build(name: str, box=BOX):
    counts, files = CASES[name]
    molecules, x = liquids.liquid(counts, box)
    kinds = [liquids.molecule(kind) for kind in counts]
    return offjax.System.from_smirnoff(files, molecules, charge_from_molecules=kinds, box=box), x


def assert_equals_openmm(system, energy, x, box):
    """Direct and reciprocal parts 1e-8 relative (the contract: 1e-5), forces 1e-9 of their RMS (1e-6)."""
    made, n = liquids.openmm_system(system, energy), system.topology.n_atoms
    everything = np.asarray(energy.place_sites(system.parameters, x))
    parts, forces = jax.device_get(liquids.nonbonded(energy, system.parameters, x, box))
    for group, section in enumerate(("vdW", "Electrostatics")):
        mine = dict(parts[section])
        wave = sum(mine.pop(part, 0.0) for part in ("reciprocal", "self", "background"))
        direct, f_direct = liquids.reference(made, everything, box, [4 + group])
        reciprocal, f_reciprocal = liquids.reference(made, everything, box, [14 + group])
        assert sum(mine.values()) == pytest.approx(direct, rel=1e-8), section
        assert wave == pytest.approx(reciprocal, rel=1e-8, abs=1e-9), section
        f = (f_direct + f_reciprocal)[:n]
        np.testing.assert_allclose(forces[group], f, rtol=0, atol=1e-9 * np.sqrt(np.mean(f * f)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "water",
            {"nonbonded_method": "LJPME", "cutoff": 0.9, "dispersion_grid": (20, 21, 18), "dispersion_alpha": 2.7},
        ),
        ("water", {"nonbonded_method": "CutoffPeriodic", "cutoff": 0.9, "switch": 0.7}),
        ("offjax's water", {"cutoff": 0.9, "switch": 0.8, "ewald_tolerance": 1e-6}),
        ("ethanol", {"cutoff": 0.85}),
        ("four-site water", {}),
        ("five-site water", {}),
        ("mixture", {}),
        ("salt water", {"cutoff": 0.9, "switch": 0.8, "pme_grid": (24, 25, 22), "pme_alpha": 3.1}),
        ("charged", {}),
    ],
)
def test_liquids_equal_openmm(name, options):
    system, x = build(name)
    assert_equals_openmm(system, system.to_jax(**options), x, BOX)


@pytest.mark.parametrize("method", ["PME", "LJPME"])
def test_a_triclinic_box_equals_openmm(method):
    """At 0.6 nm: in a box as small and skewed as this one OpenMM's Reference platform misses pairs beyond 0.65 nm."""
    system, x = build("mixture", TRICLINIC)
    energy = system.to_jax(nonbonded_method=method, cutoff=0.6, switch=0.5 if method == "PME" else None)
    assert_equals_openmm(system, energy, x, TRICLINIC)
    assert_equals_openmm(system, energy, x, 1.03 * TRICLINIC)


def test_a_skewed_box_at_its_largest_cutoff_equals_a_sum_over_images():
    """Where OpenMM's Reference platform misses pairs, the sum over all images is the judge."""
    system, x = build("mixture", TRICLINIC)
    cutoff = 0.5 * np.diag(TRICLINIC).min()
    parts = system.to_jax(nonbonded_method="CutoffPeriodic", cutoff=cutoff).components(system.parameters, x)
    values = system.instances()
    charge, (sigma, epsilon) = values["Electrostatics"]["charge"], values["vdW"].values()
    full = np.ones((len(x), len(x)), dtype=bool)
    pairs = system.topology.tile([e.atoms for e in system.exceptions], 2)
    full[pairs[:, 0], pairs[:, 1]] = full[pairs[:, 1], pairs[:, 0]] = False
    np.fill_diagonal(full, False)
    k_rf, c_rf = 77.3 / 157.6 / cutoff**3, 3 * 78.3 / 157.6 / cutoff
    vdw = coulomb = 0.0
    for shift in ewald_sum.images(TRICLINIC, cutoff + 6.0):
        r = np.linalg.norm(x[None] - x[:, None] + shift, axis=-1)
        i, j = np.nonzero(full & (r < cutoff))
        r = r[i, j]
        s6 = ((sigma[i] + sigma[j]) / 2 / r) ** 6
        vdw += 0.5 * np.sum(4 * np.sqrt(epsilon[i] * epsilon[j]) * (s6 * s6 - s6))
        coulomb += 0.5 * COULOMB * np.sum(charge[i] * charge[j] * (1 / r + k_rf * r * r - c_rf))
    assert parts["vdW"]["direct"] == pytest.approx(vdw, rel=1e-10)
    assert parts["Electrostatics"]["direct"] == pytest.approx(coulomb, rel=1e-10)


def test_interchange_s_export_has_the_same_energy():
    """OpenFF Interchange's own OpenMM System, with its own default settings, on the grid that is used here."""
    import openmm
    from openff.toolkit import ForceField, Topology

    counts, files = CASES["mixture"]
    molecules, x = liquids.liquid(counts, BOX)
    kinds = [liquids.molecule(kind) for kind in counts]
    system = offjax.System.from_smirnoff(files, molecules, charge_from_molecules=kinds, box=BOX)
    _, made = oracle.interchange_system(ForceField(*files), Topology.from_molecules(molecules), kinds, BOX)
    [force] = [f for f in made.getForces() if isinstance(f, openmm.NonbondedForce)]
    energy = system.to_jax()
    force.setPMEParameters(energy.static.treatment.coulomb.alpha, *energy.static.treatment.coulomb.grid)
    theirs, _ = liquids.reference(made, x, BOX, range(32))
    assert energy(system.parameters, x) == pytest.approx(theirs, rel=1e-8)


def test_the_default_grid_is_close_to_that_of_the_exported_system():
    """``to_openmm()`` leaves the grid to the platform: the Reference platform's is coarser, within the tolerance."""
    system, x = build("mixture")
    theirs, forces = liquids.reference(system.to_openmm(), x, BOX, range(32))
    assert system.to_jax()(system.parameters, x) == pytest.approx(theirs, rel=1e-4)


def test_a_force_field_without_electrostatics_is_cut_off(tmp_path):
    """Argon with vdW alone: CutoffPeriodic, as exported."""
    from openff.toolkit import ForceField, Molecule

    argon, force_field = Molecule.from_mapped_smiles("[Ar:1]"), ForceField("offjax-argon-1.0.offxml")
    for section in set(force_field.registered_parameter_handlers) - {"vdW"}:
        force_field.deregister_parameter_handler(section)
    x = liquids.points(64, BOX)
    system = offjax.System.from_smirnoff(force_field, [argon] * 64, box=BOX)
    energy = system.to_jax()
    assert energy.static.treatment.method == "CutoffPeriodic"
    theirs, forces = liquids.reference(system.to_openmm(), x, BOX, range(32))
    value, slope = jax.jit(jax.value_and_grad(energy, 1))(system.parameters, x)
    assert value == pytest.approx(theirs, rel=1e-8)
    np.testing.assert_allclose(-slope, forces, rtol=0, atol=1e-9 * np.sqrt(np.mean(forces * forces)))


@pytest.mark.parametrize("method", ["CutoffPeriodic", "PME"])
@pytest.mark.parametrize("far", [1e17, 1e300])
def test_positions_without_digits_within_the_cutoff_have_no_energy(method, far):
    ions = [liquids.molecule("sodium"), liquids.molecule("chloride")]
    system = offjax.System.from_smirnoff("openff-2.2.1.offxml", ions, box=np.diag([2.5] * 3))
    energy = system.to_jax(nonbonded_method=method, cutoff=0.9)
    assert np.isfinite(energy(system.parameters, np.array([[0.0, 0, 0], [1e6, 0.3, 0.2]])))
    assert np.isnan(energy(system.parameters, np.array([[0.0, 0, 0], [far, 0.3, 0.2]])))
