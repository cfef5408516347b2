"""Typing of many molecules at once, and the texts that are written when they are first read."""

import pickle

import numpy as np
import pytest

import offjax
from offjax.deferred import Deferred
from offjax.nonbonded import bonded_paths
from offjax.parameterize import typing
from tests.parameterize.molecules import force_field, give_charges, molecule

SMILES = ("O", "CC(=O)Nc1ccc(O)cc1", "C[C@H](O)/C=C/C(=O)[O-]", "C1CC1", "CS(=O)(=O)N", "c1ccoc1")


@pytest.mark.parametrize("name", ["openff-2.2.1.offxml", "openff-1.3.1.offxml"])
def test_the_search_along_paths_finds_what_rdkit_finds(name):
    """Every SMIRKS of the force field that is a chain: the same atoms as a substructure search gives."""
    merged = typing.merged([molecule(smiles) for smiles in SMILES])
    chains, searched = typing._Chains(merged), 0
    for section in ("Bonds", "Angles", "ProperTorsions", "vdW"):
        body = typing.BODY[section]
        for parameter in force_field(name).get_parameter_handler(section).parameters:
            found = chains.matches(parameter.smirks, body)
            if found is None:
                continue
            searched += 1
            query, tagged = typing._query(section, body, parameter)
            wanted = {tuple(match[n] for n in tagged) for match in typing._search(merged.whole, query)}
            assert set(map(tuple, found.tolist())) == wanted, parameter.smirks
    assert searched > 200


@pytest.mark.parametrize(
    "smirks",
    [
        "[#6:1]-[#8]",  # an atom without tag
        "[#6:1](-[#8:2])-[#1:3]",  # a branch
        "[#6:2]-[#8:1]",  # tags in another order
        "[#6@:1]-[#8:2]",  # chirality
        "[#6:1]1-[#6:2]-[#6:3]1",  # a ring
        "[#6:1].[#8:2]",  # two parts
        "[#6:1]/[#6:2]",  # a direction
        "[#6:1]-[#8:2]-",
        "[#6$(:1]-[#8:2]",
    ],
)
def test_what_is_no_chain_is_left_to_rdkit(smirks):
    merged = typing.merged([molecule("CO")])
    body = smirks.count(":")
    assert typing._Chains(merged).matches(smirks, body) is None


def test_paths_of_a_graph():
    square = np.array([[0, 1], [1, 2], [3, 2], [0, 3]])
    assert bonded_paths(4, square, 1).tolist() == [[0, 1], [0, 3], [1, 2], [2, 3]]
    assert bonded_paths(4, square, 2).tolist() == [[0, 1, 2], [0, 3, 2], [1, 0, 3], [1, 2, 3]]
    assert bonded_paths(4, square, 3).tolist() == [[0, 1, 2, 3], [0, 3, 2, 1], [1, 0, 3, 2], [2, 1, 0, 3]]
    assert bonded_paths(3, np.array([[0, 1], [1, 2], [2, 0]]), 3).shape == (0, 4)
    assert bonded_paths(1, np.zeros((0, 2), int), 2).shape == (0, 3)


def test_the_text_is_that_of_the_force_field_when_the_system_was_made():
    from openff.toolkit import ForceField
    from openff.units import Quantity

    chosen, made = ForceField("openff-2.2.1.offxml"), molecule("CO")
    give_charges(made)
    system = offjax.System.from_smirnoff(chosen, made, charge_from_molecules=[made])
    before = chosen.to_string()
    torsion = chosen.get_parameter_handler("ProperTorsions").parameters[0]
    torsion.k[0] = Quantity(99.0, "kilojoule / mole")
    chosen.get_parameter_handler("Bonds").parameters[0].length = Quantity(9.0, "angstrom")
    chosen.deregister_parameter_handler("vdW")
    assert chosen.to_string() != before
    assert system.to_force_field().to_string() == ForceField(before).to_string()


def test_a_deferred_text_is_made_once_and_pickled_as_text():
    calls = []
    text = Deferred(lambda: calls.append(1) or "made")
    again = pickle.loads(pickle.dumps(text))
    assert (text(), text(), again(), len(calls)) == ("made", "made", "made", 1)
    assert text == again and hash(text) == hash(again) and text != Deferred("other") and text != "made"
