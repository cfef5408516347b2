"""Changed values are written in the file's unit, others stay untouched, and a reload gives the same numbers."""

import os
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openff.toolkit import ForceField

import offjax
from offjax.interop.offxml import decimal
from tests.interop import oracle
from tests.parameterize.molecules import molecule, shaken

SMILES = "CC(=O)Nc1ccc(O)cc1"

EVERYTHING = """<?xml version="1.0" encoding="utf-8"?>
<SMIRNOFF version="0.3" aromaticity_model="OEAroModel_MDL">
  <Author>somebody</Author>
  <Bonds version="0.4" potential="harmonic" fractional_bondorder_method="AM1-Wiberg"
         fractional_bondorder_interpolation="linear">
    <Bond smirks="[*:1]~[*:2]" id="b1" k="500.0 * kilocalories_per_mole/angstrom**2" length="0.11 * nanometer"
          parameterize="k, length"/>
    <Bond smirks="[#6:1]~[#6:2]" id="b2" k_bondorder1="600 * kilocalories_per_mole/angstrom**2"
          k_bondorder2="900 * kilocalories_per_mole/angstrom**2" length_bondorder1="1.5 * angstrom"
          length_bondorder2="1.3 * angstrom"/>
  </Bonds>
  <Angles version="0.3" potential="harmonic">
    <Angle smirks="[*:1]~[*:2]~[*:3]" id="a1" angle="110 * degree" k="400.0 * kilojoules_per_mole/radian**2"/>
  </Angles>
  <ProperTorsions version="0.4" fractional_bondorder_method="AM1-Wiberg">
    <Proper smirks="[*:1]~[*:2]~[*:3]~[*:4]" id="t1" periodicity1="3" phase1="0 * degree"
            k1="0.1 * kilocalories_per_mole" idivf1="1"
            periodicity2="2" phase2="3.1 * radian" k2="0.2 * kilojoules_per_mole" idivf2="2.5"/>
    <Proper smirks="[#1:1]~[#6:2]~[#6:3]~[#1:4]" id="t2" periodicity1="2" phase1="180 * degree" idivf1="1"
            k1_bondorder1="1.0 * kilocalories_per_mole" k1_bondorder2="2.0 * kilocalories_per_mole"/>
  </ProperTorsions>
  <vdW version="0.4">
    <Atom smirks="[*:1]" id="n1" epsilon="0.1 * kilocalories_per_mole" rmin_half="1.7 * angstrom"/>
    <Atom smirks="[#1:1]" id="n2" epsilon="0.02 * kilocalories_per_mole" sigma="0.25 * nanometer"/>
  </vdW>
  <Electrostatics version="0.4"/>
  <LibraryCharges version="0.3">
    <LibraryCharge smirks="[#6:1]" id="q1" charge1="-0.2 * elementary_charge"/>
    <LibraryCharge smirks="[#6X4:1]-[#1:2]" id="q2" charge1="-0.3 * elementary_charge"
                   charge2="0.1 * elementary_charge"/>
  </LibraryCharges>
</SMIRNOFF>"""


@pytest.fixture(scope="module")
def paracetamol():
    made = molecule(SMILES)
    return offjax.System.from_smirnoff("openff_unconstrained-2.2.1.offxml", made, charge_from_molecules=[made])


def everything():
    ethane = molecule("CC")
    for bond in ethane.bonds:
        bond.fractional_bond_order = 1.02
    return offjax.System.from_smirnoff(
        ForceField(EVERYTHING, allow_cosmetic_attributes=True), ethane, partial_bond_orders_from_molecules=[ethane]
    )


def reloaded(system, p):
    """Parameters of the force field after a round trip through its text."""
    from offjax.parameterize import forcefield

    text = system.to_force_field(p).to_string()
    schema = forcefield.schema(ForceField(text, allow_cosmetic_attributes=True))
    return np.array([label.loaded for label in schema.flat])


def test_unchanged_parameters_leave_the_text_unchanged(paracetamol):
    assert paracetamol.to_force_field().to_string() == paracetamol.source


def test_one_changed_value_changes_one_attribute(paracetamol):
    p = paracetamol.parameters
    chosen = p.select("Bonds/k", "b1")
    text = paracetamol.to_force_field(chosen.insert(1.05 * chosen.to_vector())).to_string()
    before, after = paracetamol.source.splitlines(), text.splitlines()
    [(old, new)] = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    pattern = r' k="[^"]*"'
    assert re.sub(pattern, "", old) == re.sub(pattern, "", new)
    assert "kilocalorie" in re.search(pattern, new)[0]


@pytest.mark.parametrize("seed", range(3))
def test_reload_gives_the_parameters_to_the_last_bit_or_its_neighbour(paracetamol, seed):
    vector = paracetamol.parameters.to_vector()
    vector = vector * (1.0 + 0.1 * np.random.default_rng(seed).normal(size=vector.shape))
    back = reloaded(paracetamol, paracetamol.parameters.from_vector(vector))
    ulp = np.abs(back - vector) / np.spacing(np.abs(vector))
    assert ulp.max() <= 1.0
    assert np.mean(ulp == 0.0) > 0.9


def test_every_kind_of_attribute_is_written():
    system = everything()
    vector = system.parameters.to_vector()
    assert system.parameters.schema.size == len(vector) == 22
    back = reloaded(system, system.parameters.from_vector(vector * 1.125 + 0.01))
    np.testing.assert_allclose(back, vector * 1.125 + 0.01, rtol=3e-16)
    for n in range(len(vector)):
        changed = vector.copy()
        changed[n] *= 1.0625
        back = reloaded(system, system.parameters.from_vector(changed))
        np.testing.assert_allclose(back, changed, rtol=3e-16)
        others = np.arange(len(vector)) != n
        np.testing.assert_array_equal(back[others], vector[others])


def test_the_file_keeps_its_units_author_and_cosmetic_attributes():
    system = everything()
    text = system.to_force_field(system.parameters.from_vector(2.0 * system.parameters.to_vector())).to_string()
    assert "<Author>somebody</Author>" in text
    assert 'parameterize="k, length"' in text
    assert 'rmin_half="3.4 * angstrom' in text and 'sigma="0.5 * nanometer' in text
    assert text.count("sigma=") == text.count("rmin_half=") == 1
    assert 'length="0.22 * nanometer' in text and 'k2="0.4 * kilojoule' in text
    assert 'k1_bondorder2="4.0 * kilocalorie' in text and 'phase2="6.2 * radian' in text
    assert 'charge2="0.2 * elementary_charge' in text


def test_plain_toolkit_and_interchange_give_our_energies_from_the_file(paracetamol, tmp_path, rng):
    vector = paracetamol.parameters.to_vector()
    p = paracetamol.parameters.from_vector(vector * (1.0 + 0.02 * rng.normal(size=vector.shape)))
    paracetamol.to_offxml(tmp_path / "fitted.offxml", p)
    made = molecule(SMILES)
    x = shaken(made)
    _, theirs = oracle.reference(ForceField(str(tmp_path / "fitted.offxml")), made.to_topology(), x, [made])
    assert oracle.disagreements(oracle.offjax_terms(paracetamol, x, p), theirs) == []
    again = offjax.System.from_smirnoff(tmp_path / "fitted.offxml", made, charge_from_molecules=[made])
    np.testing.assert_allclose(again.parameters.to_vector(), p.to_vector(), rtol=3e-16)


def test_values_come_out_in_few_digits():
    assert decimal(0.15 * 0.1, 0.1) == 0.15
    assert decimal(-0.3 * 4.184, 4.184) == -0.3
    assert decimal(0.0, 4.184) == 0.0


@given(
    value=st.floats(1e-12, 1e12) | st.floats(-1e12, -1e-12),
    factor=st.sampled_from([0.1, 4.184, 418.4, np.pi / 180.0, 1.0, 0.0529177210903]),
)
def test_values_come_back_to_the_last_bit_or_its_neighbour(value, factor):
    assert abs(decimal(value, factor) * factor - value) <= np.spacing(abs(value))


def test_a_missing_directory_is_named(paracetamol, tmp_path):
    with pytest.raises(offjax.InputError, match=r"nowhere does not exist"):
        paracetamol.to_offxml(tmp_path / "nowhere" / "x.offxml")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(paracetamol, tmp_path, monkeypatch):
    path = tmp_path / "x.offxml"
    path.write_text("old")

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(offjax.InputError, match="No space left"):
        paracetamol.to_offxml(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.offxml"]


def test_non_finite_and_foreign_parameters_are_refused(paracetamol):
    p = paracetamol.parameters
    chosen = p.select("Angles/k", "a1")
    with pytest.raises(offjax.InputError, match="Angles/k a1"):
        paracetamol.to_force_field(chosen.insert([np.nan]))
    with pytest.raises(offjax.InputError, match="another force field"):
        paracetamol.to_force_field(everything().parameters)
