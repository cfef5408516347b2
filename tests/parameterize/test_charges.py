"""Charges by the SMIRNOFF hierarchy, against exact numbers, Interchange and AmberTools."""

import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from openff.units import Quantity

import offjax
import offjax.parameterize.cache
import offjax.parameterize.charges
from tests.parameterize.small import force_field, smiles

COULOMB = '<Electrostatics version="0.4"/>'
METHANOL = "[C:1]([H:3])([H:4])([H:5])[O:2][H:6]"


def library(*parameters: str) -> str:
    rows = []
    for smirks, *charges in (p.split() for p in parameters):
        values = " ".join(f'charge{n}="{q} * elementary_charge"' for n, q in enumerate(charges, 1))
        rows.append(f'<LibraryCharge smirks="{smirks}" {values}/>')
    return f'<LibraryCharges version="0.3">{"".join(rows)}</LibraryCharges>'


def increments(method: str, *parameters: str, version: str = "0.3") -> str:
    rows = []
    for smirks, *charges in (p.split() for p in parameters):
        values = " ".join(f'charge_increment{n}="{q} * elementary_charge"' for n, q in enumerate(charges, 1))
        rows.append(f'<ChargeIncrement smirks="{smirks}" {values}/>')
    head = f'<ChargeIncrementModel version="{version}" number_of_conformers="1" partial_charge_method="{method}">'
    return f"{head}{''.join(rows)}</ChargeIncrementModel>"


def charges(force_field, *molecules, **options):
    system = offjax.System.from_smirnoff(force_field, list(molecules), **options)
    return system, system.instances()["Electrostatics"]["charge"]


def interchange_charges(force_field, molecule, **options):
    pytest.importorskip("openff.interchange")
    made = force_field.create_interchange(molecule.to_topology(), **options)
    return np.array([q.m_as("elementary_charge") for q in made["Electrostatics"].charges.values()])


def needs_sqm():
    found = shutil.which("sqm") or (Path(sys.executable).parent / "sqm").exists()
    return pytest.mark.skipif(not found, reason="needs AmberTools' sqm: pip install 'offjax[am1bcc]'")


# --- library charges --------------------------------------------------------------------------------------------------


def test_the_last_library_charge_wins_atom_by_atom():
    """A later two-atom match overrides part of an earlier one, and a still later one part of that."""
    chosen = force_field(
        COULOMB,
        library("[*:1] 9", "[#6X4:1]-[#1:2] 0.3 0.1", "[#8:1]-[#1:2] -0.9 0.4", "[#6H3:1] -0.1", "[#8H1:1] -0.6"),
    )
    _, q = charges(chosen, smiles(METHANOL), allow_nonintegral_charges=True)
    np.testing.assert_allclose(q, [-0.1, -0.6, 0.1, 0.1, 0.1, 0.4], atol=1e-15)


def test_a_row_that_matches_the_same_atoms_again_comes_after_rows_between():
    """Spec: the last matching row. Interchange keeps the place of the first row for equal atoms, and gives 0.3 to C."""
    chosen = force_field(COULOMB, library("[#6X4:1] 0.1", "[#6X4:1]-[#1:2] 0.5 -0.1", "[#6X4H3:1] 0.3"))
    _, q = charges(chosen, smiles("CC"))
    np.testing.assert_allclose(q, [0.3, 0.3] + 6 * [-0.1], atol=1e-15)


def test_water_and_ions_have_library_charges_in_any_order():
    water, sodium, chloride = smiles("O"), smiles("[Na+]"), smiles("[Cl-]")
    system, q = charges("tip3p.offxml", sodium, water, chloride, water)
    np.testing.assert_allclose(q, [1, -0.834, 0.417, 0.417, -1, -0.834, 0.417, 0.417], atol=1e-15)
    assert set(system.charge_methods) == {"LibraryCharges"}
    matrix = system.assignment["Electrostatics"]["charge"]
    assert np.count_nonzero(matrix.offset) == 0 and np.all(matrix.values == 1.0)


def test_library_charges_that_miss_an_atom_are_not_used():
    chosen = force_field(COULOMB, library("[#6:1] 0.5"), increments("formal_charge", "[#6X4:1]-[#1:2] -0.05 0.05"))
    system, q = charges(chosen, smiles("C"))
    np.testing.assert_allclose(q, [-0.2, 0.05, 0.05, 0.05, 0.05], atol=1e-15)
    assert system.charge_methods == ("ChargeIncrementModel formal_charge",)


# --- charge increments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["formal_charge", "gasteiger"])
@pytest.mark.parametrize("text", ["CCO", "C[NH3+]", "CC(=O)[O-]"])
def test_increments_on_a_base_equal_interchange(method, text):
    chosen = force_field(
        COULOMB,
        increments(method, "[#6X4:1]-[#1:2] -0.05 0.05", "[#6X4:1]-[#8,#7:2] 0.1 -0.1", "[#6X3:1]=[#8:2] 0.2 -0.2"),
    )
    molecule = smiles(text)
    _, q = charges(chosen, molecule)
    np.testing.assert_allclose(q, interchange_charges(chosen, molecule), atol=1e-12)
    assert q.sum() == pytest.approx(molecule.total_charge.m, abs=1e-3)


def test_one_increment_may_be_left_out_in_version_0_4():
    """The last one is then minus the sum of the others, also as a function of the parameters."""
    chosen = force_field(
        COULOMB,
        increments("formal_charge", "[#6X4:1]-[#1:2] -0.05", "[#6X4:1](-[#1:2])-[#8X2:3] -0.05 0.02", version="0.4"),
    )
    system, q = charges(chosen, smiles(METHANOL))
    np.testing.assert_allclose(q, [-0.3, 0.09, 0.07, 0.07, 0.07, 0.0], atol=1e-15)
    p = system.parameters
    doubled = system.slots(p.from_vector(2.0 * p.to_vector()))["Electrostatics"]["charge"]
    np.testing.assert_allclose(doubled, 2.0 * q, atol=1e-15)
    np.testing.assert_allclose(np.ones(6) @ system.assignment["Electrostatics"]["charge"].to_dense(), 0.0, atol=1e-15)


def test_two_increments_too_few_are_refused(tmp_path):
    text = force_field(COULOMB, increments("formal_charge", "[#6X4:1](-[#1:2])-[#8X2:3] 0 0 0")).to_string()
    for n in (2, 3):
        text = text.replace(f' charge_increment{n}="0 * elementary_charge ** 1"', "")
    (tmp_path / "short.offxml").write_text(text)
    with pytest.raises(offjax.InputError, match=r"short\.offxml.*invalid combination of tagged atoms"):
        charges(tmp_path / "short.offxml", smiles(METHANOL))


# --- precedence -------------------------------------------------------------------------------------------------------


def given(text, values):
    molecule = smiles(text)
    molecule.partial_charges = Quantity(np.array(values, dtype=float), "elementary_charge")
    return molecule


def test_user_charges_come_before_every_model_and_are_offsets():
    user = given(METHANOL, [0.1, -0.6, 0.03, 0.03, 0.04, 0.4])
    system, q = charges("openff-2.2.1.offxml", smiles(METHANOL), smiles("O"), charge_from_molecules=[user])
    np.testing.assert_array_equal(q[:6], user.partial_charges.m)
    np.testing.assert_allclose(q[6:], [-0.834, 0.417, 0.417])
    assert system.charge_methods == ("charge_from_molecules", "LibraryCharges")
    np.testing.assert_array_equal(system.assignment["Electrostatics"]["charge"].offset[:6], user.partial_charges.m)


def test_user_charges_come_before_library_charges():
    user = given("[O:1]([H:2])[H:3]", [-0.8, 0.4, 0.4])
    _, q = charges("tip3p.offxml", smiles("O"), charge_from_molecules=[user])
    np.testing.assert_array_equal(q, [-0.8, 0.4, 0.4])


def test_user_charges_follow_the_atoms_to_another_order():
    user = given(METHANOL, [0.1, -0.6, 0.03, 0.03, 0.03, 0.41])
    other = smiles("[H:1][O:2][C:3]([H:4])([H:5])[H:6]")
    _, q = charges("openff-2.2.1.offxml", other, charge_from_molecules=[user])
    np.testing.assert_array_equal(q, [0.41, -0.6, 0.1, 0.03, 0.03, 0.03])


def test_library_charges_come_before_increments_and_am1bcc():
    both = force_field(
        COULOMB,
        '<ToolkitAM1BCC version="0.3"/>',
        library("[*:1] 0.0"),
        increments("formal_charge", "[#6:1]~[#1:2] 1 -1"),
    )
    system, q = charges(both, smiles("C"))
    np.testing.assert_array_equal(q, 0.0)
    assert system.charge_methods == ("LibraryCharges",)


# --- quantum-chemical and learned models ------------------------------------------------------------------------------


@needs_sqm()
def test_am1bcc_is_that_of_ambertools():
    from openff.toolkit.utils.toolkits import AmberToolsToolkitWrapper

    molecule = smiles(METHANOL)
    system, q = charges("openff-2.2.1.offxml", molecule)
    assert system.charge_methods == ("ToolkitAM1BCC am1bcc",)
    assert q.sum() == pytest.approx(0.0, abs=1e-6)
    assert q[1] < -0.5 < 0.3 < q[5]
    if AmberToolsToolkitWrapper.is_available():
        molecule.assign_partial_charges("am1bcc", toolkit_registry=AmberToolsToolkitWrapper())
        np.testing.assert_allclose(q, molecule.partial_charges.m, atol=1e-6)


def test_a_failed_charge_method_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("OFFJAX_CACHE", str(tmp_path))
    chosen = force_field(COULOMB, increments("no-such-method", "[#6:1]~[#1:2] 0 0"))
    with pytest.raises(offjax.UnassignedParameterError, match=r"no-such-method.*charge_from_molecules"):
        charges(chosen, smiles("C"))


def test_nagl_charges_or_a_message_that_says_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setenv("OFFJAX_CACHE", str(tmp_path))
    molecule = smiles(METHANOL)
    try:
        import openff.nagl  # noqa: F401
    except ImportError:
        with pytest.raises(offjax.UnassignedParameterError, match=r"offjax\[nagl\]"):
            charges("openff-2.3.0.offxml", molecule)
        return
    system, q = charges("openff-2.3.0.offxml", molecule)
    assert system.charge_methods[0].startswith("NAGLCharges")
    assert q.sum() == pytest.approx(0.0, abs=1e-5)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_non_integral_charges_are_refused_unless_asked_for():
    chosen = force_field(COULOMB, library("[*:1] 0.1"))
    with pytest.raises(offjax.UnassignedParameterError, match=r"0\.5000 e.*allow_nonintegral_charges"):
        charges(chosen, smiles("C"))
    _, q = charges(chosen, smiles("C"), allow_nonintegral_charges=True)
    np.testing.assert_allclose(q, 0.1)


def test_a_molecule_without_any_model_is_named():
    chosen = force_field(COULOMB, library("[#6:1] 0.1"))
    with pytest.raises(offjax.UnassignedParameterError, match=r"C: no charge model.*LibraryCharges"):
        charges(chosen, smiles("C"))


def test_given_molecules_need_charges():
    with pytest.raises(offjax.InputError, match="has no partial_charges"):
        charges("openff-2.2.1.offxml", smiles("CO"), charge_from_molecules=[smiles("CO")])


# --- many molecules -----------------------------------------------------------------------------------------------


@needs_sqm()
def test_charges_of_many_molecules_are_computed_side_by_side_and_kept(tmp_path, monkeypatch):
    """The same numbers as one by one; equal molecules once; what fails is left to the one that needs it."""
    molecules = [smiles(s) for s in ("[C:1]([H:2])([H:3])([H:4])[H:5]", METHANOL, METHANOL, "[He:1]")]
    monkeypatch.setenv("OFFJAX_CACHE", str(tmp_path / "one"))
    expected = [offjax.parameterize.charges.compute(m, "am1bcc") for m in molecules[:2]]
    monkeypatch.setenv("OFFJAX_CACHE", str(tmp_path / "many"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads, counts, names = [], [], []
    compute = offjax.parameterize.charges.compute

    def observed(molecule, method):
        threads.append((threading.get_ident(), os.environ["OMP_NUM_THREADS"]))
        return compute(molecule, method)

    monkeypatch.setattr(offjax.parameterize.charges, "compute", observed)
    offjax.parameterize.charges.ahead(molecules, "am1bcc", counts.append, names.append)
    assert counts == [3] and len(names) == 3
    assert len(threads) == 3 and threading.get_ident() not in dict(threads) and {n for _, n in threads} == {"1"}
    assert "OMP_NUM_THREADS" not in os.environ
    assert len(list((tmp_path / "many").glob("*/charges-*.npz"))) == 2
    for molecule, charges in zip(molecules, expected, strict=False):
        np.testing.assert_array_equal(compute(molecule, "am1bcc"), charges)
    offjax.parameterize.charges.ahead(molecules[:3], "am1bcc", counts.append, names.append)
    assert counts == [3]
    with pytest.raises(offjax.OffjaxError, match=r"\[He\]"):
        compute(molecules[3], "am1bcc")


@needs_sqm()
def test_charges_that_cannot_be_kept_are_not_computed_ahead(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    counts = []
    for folder in ("off", str(tmp_path / "file")):
        monkeypatch.setenv("OFFJAX_CACHE", folder)
        offjax.parameterize.charges.ahead([smiles(METHANOL)], "am1bcc", counts.append, counts.append)
    assert counts == []


@needs_sqm()
def test_only_molecules_that_need_am1_charges_are_computed_ahead(tmp_path, monkeypatch):
    """Not those that LibraryCharges cover or the cache has; by the method that the force field asks for."""
    monkeypatch.setenv("OFFJAX_CACHE", str(tmp_path))
    asked = []
    monkeypatch.setattr(offjax.parameterize.charges, "compute", lambda m, method: asked.append((m.n_atoms, method)))
    molecules = [smiles(METHANOL), smiles("[C:1]([H:2])([H:3])([H:4])[H:5]")]

    def needed(source):
        asked.clear()
        offjax.parameterize.charges.ahead(molecules, source, lambda n: None, lambda name: None)
        return sorted(asked)

    bcc = '<ToolkitAM1BCC version="0.3"/>'
    hydrocarbons = force_field(COULOMB, library("[#6:1] -0.4", "[#1:1] 0.1"), bcc)
    assert needed(hydrocarbons) == [(6, "am1bcc")]
    assert needed(force_field(COULOMB, library("[*:1] 0"))) == []
    by_increments = force_field(COULOMB, increments("am1-mulliken", "[#6:1]-[#8:2] 0.1 -0.1"), bcc)
    assert needed(by_increments) == [(5, "am1-mulliken"), (6, "am1-mulliken")]
    assert needed(force_field(COULOMB, increments("gasteiger", "[#6:1]-[#8:2] 0.1 -0.1"))) == []
    monkeypatch.undo()
    monkeypatch.setenv("OFFJAX_CACHE", str(tmp_path))
    offjax.parameterize.charges.compute(molecules[0], "am1bcc")
    counts = []
    offjax.parameterize.charges.ahead(molecules, hydrocarbons, counts.append, counts.append)
    assert counts == []
