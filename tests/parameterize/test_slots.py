"""What the assignment matrices hold beyond zeros and ones: idivf, trefoil, bond orders, rmin_half, constraints."""

import math

import jax
import numpy as np
import pytest
from openff.toolkit import Molecule
from openff.units import Quantity

import offjax
from offjax.constants import KCAL
from tests.parameterize.small import force_field, smiles
from tests.parameterize.test_charges import needs_sqm

ETHANE = "[C:1]([H:3])([H:4])([H:5])[C:2]([H:6])([H:7])[H:8]"
ETHENE = "[C:1]([H:3])([H:4])=[C:2]([H:5])[H:6]"
FORMAMIDE = "[C:1]([H:4])(=[O:2])[N:3]([H:5])[H:6]"


def propers(rows: str, attributes: str = "") -> str:
    return (
        '<ProperTorsions version="0.4" fractional_bondorder_method="AM1-Wiberg" '
        f'fractional_bondorder_interpolation="linear" {attributes}>{rows}</ProperTorsions>'
    )


def torsion(smirks: str = "[*:1]~[*:2]~[*:3]~[*:4]", **values: str) -> str:
    text = " ".join(f'{name}="{value}"' for name, value in values.items())
    return f'<Proper smirks="{smirks}" id="t" periodicity1="3" phase1="0 * degree" {text}/>'


def k_of(made: offjax.System, section: str = "ProperTorsions") -> np.ndarray:
    return made.slots()[section]["k"] / KCAL


# --- idivf ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("molecule", "idivf", "attributes", "expected"),
    [
        (ETHANE, {"idivf1": "1"}, "", 1.0),
        (ETHANE, {"idivf1": "9.0"}, "", 1 / 9),
        # the SMIRNOFF specification sets no integer restriction; Interchange's OpenMM export truncates 2.5 to 2
        (ETHANE, {"idivf1": "2.5"}, "", 1 / 2.5),
        # without idivf the section's default_idivf holds, "auto" if that is not given: (n_j - 1)(n_k - 1) torsions
        # share the bond j-k. Interchange takes 1 there
        (ETHANE, {}, "", 1 / 9),
        (ETHENE, {}, 'default_idivf="auto"', 1 / 4),
        ("[H:3][C:1]#[C:2][H:4]", {}, "", 1.0),
        (FORMAMIDE, {}, "", 1 / 4),
        (ETHANE, {}, 'default_idivf="2.5"', 1 / 2.5),
        (ETHANE, {"idivf1": "3"}, 'default_idivf="2.5"', 1 / 3),
    ],
)
def test_k_is_divided_by_idivf(molecule, idivf, attributes, expected):
    chosen = force_field(propers(torsion(k1="1.0 * kilocalories_per_mole", **idivf), attributes), valence=True)
    made = offjax.System.from_smirnoff(chosen, smiles(molecule))
    np.testing.assert_allclose(k_of(made), expected, rtol=1e-15)
    found = made.to_openmm().getForces()
    [torsions] = [f for f in found if type(f).__name__ == "PeriodicTorsionForce"]
    assert torsions.getTorsionParameters(0)[6]._value == pytest.approx(expected * KCAL, rel=1e-14)


def test_every_term_of_a_torsion_has_its_own_idivf_and_phase():
    row = (
        '<Proper smirks="[*:1]~[*:2]~[*:3]~[*:4]" periodicity1="1" phase1="180 * degree" '
        'k1="1 * kilocalories_per_mole" idivf1="2" periodicity2="4" phase2="0.5 * radian" '
        'k2="-3 * kilocalories_per_mole" idivf2="0.5"/>'
    )
    made = offjax.System.from_smirnoff(force_field(propers(row), valence=True), smiles("[H:3][C:1]#[C:2][H:4]"))
    np.testing.assert_allclose(k_of(made), [0.5, -6.0])
    np.testing.assert_allclose(made.slots()["ProperTorsions"]["phase"], [math.pi, 0.5])
    assert made.terms["ProperTorsions"].periodicity.tolist() == [1, 4]


@pytest.mark.parametrize("idivf", ["0", "-1"])
def test_impossible_idivf_is_refused(idivf):
    chosen = force_field(propers(torsion(k1="1 * kilocalories_per_mole", idivf1=idivf)), valence=True)
    with pytest.raises(offjax.InputError, match="idivf1 must be positive"):
        offjax.System.from_smirnoff(chosen, smiles(ETHANE))


# --- impropers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "expected"), [("", 1 / 3), ('idivf1="1"', 1.0), ('idivf1="2.5"', 0.4)])
def test_impropers_are_trefoils_about_the_second_atom(text, expected):
    row = (
        '<ImproperTorsions version="0.3"><Improper smirks="[*:1]~[#6X3:2](~[*:3])~[*:4]" periodicity1="2" '
        f'phase1="180 * degree" k1="1.2 * kilocalories_per_mole" {text}/></ImproperTorsions>'
    )
    made = offjax.System.from_smirnoff(force_field(row, valence=True), smiles(FORMAMIDE))
    np.testing.assert_allclose(k_of(made, "ImproperTorsions"), 1.2 * expected, rtol=1e-15)
    atoms = made.terms["ImproperTorsions"].slot_atoms
    assert np.all(atoms[:, 0] == 0)  # the central atom first
    outer = {tuple(a) for a in atoms[:, 1:].tolist()}
    assert len(outer) == 3 and {o[1:] + o[:1] for o in outer} == outer
    p = made.parameters
    weight = made.assignment["ImproperTorsions"]["k"].block("ImproperTorsions", "k").toarray()
    np.testing.assert_allclose(weight, expected)
    assert float(p["ImproperTorsions"]["k"][0]) == pytest.approx(1.2 * KCAL)


# --- bond orders ------------------------------------------------------------------------------------------------------


def ordered(text: str, order: float):
    molecule = smiles(text)
    for bond in molecule.bonds:
        bond.fractional_bond_order = order
    return molecule


@pytest.mark.parametrize(
    ("order", "weights"),
    [
        (1.0, {1: 1.0, 2: 0.0}),
        (1.25, {1: 0.75, 2: 0.25}),
        (2.0, {2: 1.0, 3: 0.0}),
        (2.5, {2: 0.5, 3: 0.5}),
        (0.8, {1: 1.2, 2: -0.2}),
        (3.4, {2: -0.4, 3: 1.4}),
    ],
)
def test_torsion_k_is_piecewise_linear_in_the_bond_order_and_extrapolated(order, weights):
    row = torsion(
        k1_bondorder1="1 * kilocalories_per_mole",
        k1_bondorder2="2 * kilocalories_per_mole",
        k1_bondorder3="7 * kilocalories_per_mole",
        idivf1="2",
    )
    molecule = ordered(ETHENE, order)
    chosen = force_field(propers(row), valence=True)
    made = offjax.System.from_smirnoff(chosen, molecule, partial_bond_orders_from_molecules=[molecule])
    expected = sum(w * {1: 1.0, 2: 2.0, 3: 7.0}[n] for n, w in weights.items()) / 2
    np.testing.assert_allclose(k_of(made), expected, rtol=1e-14)
    used = {label.bond_order: w for label, w in made.assignment["ProperTorsions"]["k"].parameters_of(0)}
    assert used == pytest.approx({n: w / 2 for n, w in weights.items()})


def test_bond_k_and_length_are_interpolated():
    bonds = (
        '<Bond smirks="[#6:1]~[#6:2]" id="b2" k_bondorder1="600 * kilocalories_per_mole/angstrom**2" '
        'k_bondorder2="900 * kilocalories_per_mole/angstrom**2" length_bondorder1="1.5 * angstrom" '
        'length_bondorder2="1.3 * angstrom"/>'
    )
    molecule = ordered(ETHANE, 1.3)
    made = offjax.System.from_smirnoff(
        force_field(bonds=bonds, valence=True), molecule, partial_bond_orders_from_molecules=[molecule]
    )
    [n] = [n for n, atoms in enumerate(made.terms["Bonds"].slot_atoms.tolist()) if sorted(atoms) == [0, 1]]
    slots = made.slots()["Bonds"]
    assert slots["k"][n] == pytest.approx(690 * KCAL * 100)
    assert slots["length"][n] == pytest.approx(0.144)
    pytest.importorskip("openff.interchange")
    theirs = force_field(bonds=bonds, valence=True).create_interchange(
        molecule.to_topology(), partial_bond_orders_from_molecules=[molecule]
    )
    [key] = [k for k in theirs["Bonds"].key_map if sorted(k.atom_indices) == [0, 1]]
    potential = theirs["Bonds"].potentials[theirs["Bonds"].key_map[key]].parameters
    assert potential["k"].m_as("kilojoule / mole / nanometer ** 2") == pytest.approx(slots["k"][n])
    assert potential["length"].m_as("nanometer") == pytest.approx(slots["length"][n])


@needs_sqm()
def test_bond_orders_come_from_am1():
    row = torsion(k1_bondorder1="1 * kilocalories_per_mole", k1_bondorder2="2 * kilocalories_per_mole", idivf1="1")
    made = offjax.System.from_smirnoff(force_field(propers(row), valence=True), smiles(ETHENE))
    # the Wiberg order of ethene's double bond is close to 2
    np.testing.assert_allclose(k_of(made), 2.0, atol=0.1)


def test_bond_orders_that_are_missing_are_asked_for():
    row = torsion(k1_bondorder1="1 * kilocalories_per_mole", k1_bondorder2="2 * kilocalories_per_mole", idivf1="1")
    chosen = force_field(propers(row), valence=True)
    with pytest.raises(offjax.InputError, match="fractional_bond_order"):
        offjax.System.from_smirnoff(chosen, smiles(ETHENE), partial_bond_orders_from_molecules=[smiles(ETHENE)])


# --- vdW --------------------------------------------------------------------------------------------------------------


def test_sigma_is_rmin_half_times_two_to_five_sixths():
    vdw = '<Atom smirks="[#1:1]" id="n2" epsilon="0.02 * kilocalories_per_mole" sigma="2.5 * angstrom"/>'
    made = offjax.System.from_smirnoff(force_field(vdw=vdw), smiles(FORMAMIDE))
    sigma = made.slots()["vdW"]["sigma"]
    np.testing.assert_allclose(sigma[:3], 0.17 * 2 ** (5 / 6), rtol=1e-15)
    np.testing.assert_allclose(sigma[3:], 0.25, rtol=1e-15)
    blocks = {a: made.assignment["vdW"]["sigma"].block("vdW", a).toarray() for a in ("rmin_half", "sigma")}
    np.testing.assert_allclose(blocks["rmin_half"].ravel(), [2 ** (5 / 6)] * 3 + [0.0] * 3)
    np.testing.assert_allclose(blocks["sigma"].ravel(), [0.0] * 3 + [1.0] * 3)


# --- constraints ------------------------------------------------------------------------------------------------------


def test_constraints_take_their_distance_from_the_bond_or_the_file():
    constraints = (
        '<Constraints version="0.3"><Constraint smirks="[#1:1]-[*:2]" id="c1"/>'
        '<Constraint smirks="[#1:1]-[#7:2]" id="c2" distance="1.02 * angstrom"/></Constraints>'
    )
    bonds = (
        '<Bond smirks="[#6:1]-[#1:2]" id="b2" k="700 * kilocalories_per_mole/angstrom**2" length="1.09 * angstrom"/>'
    )
    made = offjax.System.from_smirnoff(force_field(constraints, bonds=bonds, valence=True), smiles(FORMAMIDE))
    distances = {
        tuple(sorted(a)): d
        for a, d in zip(
            made.terms["Constraints"].slot_atoms.tolist(), made.slots()["Constraints"]["distance"], strict=True
        )
    }
    assert distances == pytest.approx({(0, 3): 0.109, (2, 4): 0.102, (2, 5): 0.102})
    # a longer bond is a longer constraint
    p = made.parameters
    chosen = p.select("Bonds/length", "b2")
    assert made.slots(chosen.insert([0.11]))["Constraints"]["distance"].max() == pytest.approx(0.11)
    used = [label.section for label, _ in made.assignment["Constraints"]["distance"].parameters_of(0)]
    assert used == ["Bonds"]


def test_a_constraint_without_bond_or_distance_is_refused():
    constraints = '<Constraints version="0.3"><Constraint smirks="[#1:1]-[#7]-[#1:2]"/></Constraints>'
    with pytest.raises(offjax.UnassignedParameterError, match="no distance"):
        offjax.System.from_smirnoff(force_field(constraints, valence=True), smiles(FORMAMIDE))


# --- all of a real force field ----------------------------------------------------------------------------------------


def test_slots_and_their_transpose_are_what_jax_differentiates(rng):
    """A(theta) = A theta + b gives the slots, and A.T dU/dslots is JAX's own dU/dtheta."""
    molecule = smiles(FORMAMIDE)
    molecule.partial_charges = Quantity(rng.permutation([0.5, -0.5, 0.2, -0.2, 0.1, -0.1]), "elementary_charge")
    made = offjax.System.from_smirnoff("openff-2.2.1.offxml", molecule, charge_from_molecules=[molecule])
    theta = made.parameters.to_vector()
    slots = made.slots()
    for section, attributes in made.assignment.items():
        for attribute, matrix in attributes.items():
            dense = matrix.to_dense()
            np.testing.assert_allclose(
                dense @ theta + matrix.offset, slots[section][attribute], rtol=1e-14, atol=1e-300
            )
            np.testing.assert_array_equal(matrix.T.to_dense(), dense.T)
    x = rng.normal(scale=0.15, size=(6, 3))
    energy = made.to_jax()
    expected = jax.device_get(jax.jit(jax.grad(energy))(made.parameters, x))
    flexible = {s: {a: np.asarray(v) for a, v in d.items()} for s, d in slots.items() if s != "Constraints"}
    found = made.vjp(jax.device_get(jax.jit(jax.grad(energy.at_slots))(flexible, x)))
    np.testing.assert_allclose(found.to_vector(), expected.to_vector(), rtol=1e-9, atol=1e-9)


def test_a_hundred_copies_have_the_slots_of_one():
    one = offjax.System.from_smirnoff("tip3p.offxml", [smiles("O")])
    many = offjax.System.from_smirnoff("tip3p.offxml", [smiles("O")] * 100)
    for section, attributes in one.assignment.items():
        for attribute, matrix in attributes.items():
            other = many.assignment[section][attribute]
            for name in ("rows", "columns", "values", "offset"):
                np.testing.assert_array_equal(getattr(matrix, name), getattr(other, name))
        assert many.terms[section].n_instances == 100 * one.terms[section].n_instances


def test_impropers_with_mirrored_neighbours_do_not_depend_on_atom_order():
    """The three cyclic orders of the outer atoms: mirrored orders give the same energy as Interchange's."""
    pytest.importorskip("openff.interchange")
    from tests.interop import oracle

    molecule = smiles("[H:6][N:3]([H:1])[C:5]([H:2])=[O:4]")
    molecule.partial_charges = Quantity(np.zeros(6), "elementary_charge")
    from openff.toolkit import ForceField

    chosen = ForceField("openff_unconstrained-2.2.1.offxml")
    x = np.random.default_rng(5).normal(scale=0.12, size=(6, 3))
    _, theirs = oracle.reference(chosen, molecule.to_topology(), x, [molecule])
    made = offjax.System.from_smirnoff(chosen, molecule, charge_from_molecules=[molecule])
    assert oracle.disagreements(oracle.offjax_terms(made, x), theirs) == []


def test_what_constraints_hold_needs_neither_bond_nor_angle_parameters():
    """A protein force field and a rigid water model, without general parameters in between, as Interchange has it."""
    pytest.importorskip("openff.amber_ff_ports")
    system = offjax.System.from_smirnoff(
        ["ff14sb_off_impropers_0.0.4.offxml", "tip3p.offxml"], [Molecule.from_smiles("O")]
    )
    assert system.terms["Constraints"].n_slots == 3
    assert system.terms["Bonds"].n_slots == system.terms["Angles"].n_slots == 0
