"""What cannot be parameterized is named: section, version, option, file, element, atoms."""

from pathlib import Path

import numpy as np
import openmm
import pytest
from openff.toolkit import ForceField, Molecule
from openff.toolkit.typing.engines.smirnoff import ParameterHandler
from openff.units import Quantity

import offjax
from tests.parameterize.small import force_field, smiles


def parameterize(chosen, molecule="O", **options):
    return offjax.System.from_smirnoff(chosen, smiles(molecule), **options)


class UreyBradleyHandler(ParameterHandler):
    """A section that the toolkit takes from a plug-in."""

    _TAGNAME = "UreyBradley"


def test_unsupported_sections_raise_by_name():
    chosen = ForceField("openff-2.2.1.offxml")
    chosen.register_parameter_handler(UreyBradleyHandler(version="0.3"))
    with pytest.raises(offjax.UnsupportedError, match="<UreyBradley>.*deregister_parameter_handler"):
        parameterize(chosen, charge_from_molecules=[zero("O")])


def test_a_section_that_the_toolkit_does_not_know_raises_by_name():
    head = '<SMIRNOFF version="0.3" aromaticity_model="OEAroModel_MDL"><AmberImproperTorsions version="0.3"/>'
    with pytest.raises(offjax.UnsupportedError, match="<AmberImproperTorsions> is not supported"):
        parameterize(head + "</SMIRNOFF>")


def zero(text):
    molecule = smiles(text)
    molecule.partial_charges = Quantity(np.zeros(molecule.n_atoms), "elementary_charge")
    return molecule


def test_unsupported_options_raise_by_name():
    chosen = ForceField("openff-2.2.1.offxml")
    chosen.get_parameter_handler("Angles")._potential = "cosine"
    with pytest.raises(offjax.UnsupportedError, match='<Angles potential="cosine">'):
        parameterize(chosen)


def test_a_missing_file_is_named_with_similar_names():
    with pytest.raises(offjax.InputError, match=r"openff-2\.2\.l\.offxml.*did you mean.*openff-2\.2\.1\.offxml"):
        parameterize("openff-2.2.l.offxml")


def test_a_file_that_is_not_xml_is_named(tmp_path):
    path = tmp_path / "broken.offxml"
    path.write_text("<SMIRNOFF><Bonds>")
    with pytest.raises(offjax.InputError, match=r"broken\.offxml"):
        parameterize(path)


def test_no_file_at_all_is_refused():
    with pytest.raises(offjax.InputError, match="no force field"):
        parameterize([])


def test_an_idivf_that_is_not_a_number_is_refused(tmp_path):
    text = ForceField("openff-2.2.1.offxml").to_string().replace('idivf1="1.0"', 'idivf1="many"', 1)
    (tmp_path / "x.offxml").write_text(text)
    with pytest.raises(offjax.InputError, match="many"):
        parameterize(tmp_path / "x.offxml")


@pytest.mark.parametrize("text", ["[Fe+2]", "C[Si](C)(C)C", "[He]"])
def test_an_element_without_parameters_is_named(text):
    with pytest.raises(offjax.UnassignedParameterError, match=r"<(vdW|Bonds)>.*(Fe|Si|He)0?"):
        parameterize("openff-2.2.1.offxml", text, charge_from_molecules=[zero(text)])


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ("Bonds", '<Bonds version="0.4"><Bond smirks="[#6:1]-[#6:2]" k="1 * kilocalories_per_mole/angstrom**2" '
                  'length="1 * angstrom"/></Bonds>'),
        ("Angles", '<Angles version="0.3"><Angle smirks="[#6:1]-[#6:2]-[#6:3]" k="1 * kilocalories_per_mole/radian**2" '
                   'angle="1 * degree"/></Angles>'),
        ("ProperTorsions", '<ProperTorsions version="0.4"><Proper smirks="[#6:1]-[#6:2]-[#6:3]-[#6:4]" '
                           'k1="1 * kilocalories_per_mole" phase1="0 * degree" periodicity1="1"/></ProperTorsions>'),
    ],
)  # fmt: skip
def test_a_term_without_parameter_names_its_atoms(section, text):
    with pytest.raises(offjax.UnassignedParameterError, match=rf"CCO.*<{section}>.*atom indices \["):
        parameterize(force_field(text), "CCO")


def test_what_is_not_a_molecule_is_refused():
    for wrong, message in (("CCO", "str"), ([], "no molecules"), (["CCO"], "str"), (7, "int")):
        with pytest.raises(offjax.InputError, match=message):
            offjax.System.from_smirnoff("openff-2.2.1.offxml", wrong)


@pytest.mark.parametrize("option", ["charge_from_molecules", "partial_bond_orders_from_molecules"])
def test_options_that_take_a_list_say_so(option):
    for wrong in (zero("O"), "O", ["O"]):
        with pytest.raises(offjax.InputError, match=f"{option} must be a list"):
            parameterize("tip3p.offxml", **{option: wrong})


@pytest.mark.parametrize(
    ("box", "message"),
    [([1.0, 1.0], "shape"), ([3.0, -3.0, 3.0], "positive"), ([[3, 1, 0], [0, 3, 0], [0, 0, 3]], "reduced form")],
)
def test_a_wrong_box_is_refused(box, message):
    with pytest.raises(offjax.InputError, match=message):
        parameterize("tip3p.offxml", box=box)


def test_several_files_are_merged_and_later_ones_win():
    made = parameterize(["openff-2.2.1.offxml", "opc3.offxml"])
    alone = parameterize("opc3.offxml")
    for attribute in ("sigma", "epsilon"):
        np.testing.assert_array_equal(made.slots()["vdW"][attribute], alone.slots()["vdW"][attribute])
    np.testing.assert_array_equal(made.slots()["Electrostatics"]["charge"], alone.slots()["Electrostatics"]["charge"])
    np.testing.assert_array_equal(made.slots()["Constraints"]["distance"], alone.slots()["Constraints"]["distance"])


def test_topology_box_and_molecules_are_taken_over():
    from openff.toolkit import Topology

    topology = Topology.from_molecules([Molecule.from_smiles("O")] * 3)
    topology.box_vectors = Quantity(np.diag([30.0, 31.0, 32.0]), "angstrom")
    made = offjax.System.from_smirnoff("tip3p.offxml", topology)
    np.testing.assert_allclose(made.box, np.diag([3.0, 3.1, 3.2]))
    assert made.topology.n_molecules == 3 and len(made.topology.molecules) == 1


def test_a_misspelt_attribute_is_named(tmp_path):
    source = ForceField("offjax-teaching-1.0.offxml").to_string().replace("idivf1=", "idivf_1=")
    path = tmp_path / "misspelt.offxml"
    path.write_text(source)
    with pytest.raises(offjax.InputError, match="unknown attribute 'idivf_1'; did you mean idivf"):
        parameterize(str(path))


def test_a_truncated_force_field_names_file_and_line(tmp_path):
    path = tmp_path / "cut.offxml"
    path.write_text(ForceField("offjax-water3-1.0.offxml").to_string()[:600])
    with pytest.raises(offjax.InputError, match="cut.offxml is not a valid OFFXML file: .*line"):
        parameterize(str(path))


def test_a_bad_smirks_names_its_parameter():
    broken = ForceField("offjax-water3-1.0.offxml")
    broken["Bonds"].parameters[0]._smirks = "[#1:1]-[#8:2"
    with pytest.raises(offjax.InputError, match="<Bonds> parameter .*bad SMIRKS"):
        parameterize(broken)


def test_charges_that_are_not_numbers_are_refused():
    water = zero("O")
    water.partial_charges = Quantity(np.array([0.0, np.nan, 0.0]), "elementary_charge")
    with pytest.raises(offjax.InputError, match="charge_from_molecules gives nan for atom H1"):
        parameterize("offjax-teaching-1.0.offxml", charge_from_molecules=[water])


def test_swapped_arguments_are_noticed():
    with pytest.raises(offjax.InputError, match=r"from_smirnoff\(force_field, topology\)"):
        offjax.System.from_smirnoff(smiles("O"), "offjax-water3-1.0.offxml")


TEACHING = next(Path(offjax.__file__).parent.parent.glob("data/forcefields/offjax-teaching-1.0.offxml"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('length="1.45 * angstrom"', 'length="nan * angstrom"', r"Bonds/length tb1 .* nan angstrom; it must be finite"),
        (
            'length="1.45 * angstrom"',
            'length="1e999 * angstrom"',
            r"Bonds/length tb1 .* inf angstrom; it must be finite",
        ),
        ('length="1.45 * angstrom"', 'length="1,45 * angstrom"', r"bad\.offxml, line \d+: length is 1,45"),
        ('epsilon="0.17 *', 'epsilon="-0.17 *', r"vdW/epsilon tn9 .* is -0.17 .* must be not negative"),
        ('sigma="0.54 *', 'sigma="-0.54 *', r"vdW/sigma tn6 .* is -0.54 .* must be not negative"),
        ('periodicity1="2"', 'periodicity1="0"', r"ProperTorsions/periodicity1 t\w+ .* is 0; it must be 1 or more"),
        ('cutoff="9.0 *', 'cutoff="-9.0 *', r"<\w+> has cutoff -9 .* must be above 0"),
        ('switch_width="1.0 *', 'switch_width="10.0 *', r"<vdW> has cutoff 9 and switch_width 10 angstrom"),
        ('smirks="[*:1]~[*:2]" id="tb1"', 'smirks="[*:1]~[*:2]" idd="tb1"', r"unknown attribute 'idd'(?!.*idd)"),
    ],
)
def test_values_that_make_no_energy_are_named(tmp_path, old, new, message):
    text = TEACHING.read_text()
    assert old in text
    (tmp_path / "bad.offxml").write_text(text.replace(old, new, 1))
    with pytest.raises(offjax.InputError, match=message):
        parameterize(tmp_path / "bad.offxml")


def test_quantities_that_are_no_lengths_are_refused():
    energy_of = offjax.System.from_smirnoff("offjax-teaching-1.0.offxml", smiles("O"))
    for wrong in (Quantity(np.zeros((3, 3)), "kilogram"), openmm.unit.Quantity(np.zeros((3, 3)), openmm.unit.kelvin)):
        with pytest.raises(offjax.InputError, match="unit of length"):
            energy_of.to_jax()(energy_of.parameters, wrong)
