"""A planted conflict is found, and splitting its parameter brings what was expected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from openff.toolkit import ForceField, Molecule

import offjax
from offjax.errors import InputError
from offjax.fit import FitConfig, FitResult, conflicts, find_conflicts, run
from offjax.fit.driver import prepare
from offjax.fit.environments import Environments
from offjax.fit.split import refit_files, split

from .conftest import conformers, molecule, write_spice

FORCE_FIELD = "openff-2.2.1.offxml"
PARENT, CHILD = "[#6X4:1]-[#1:2]", "[#6X4;$(*~[#8]):1]-[#1:2]"
"""The planted split: C-H bonds (b84) of methanol and of ethane differ."""


@pytest.fixture(scope="module")
def fit(tmp_path_factory):
    """A fit of two molecules to a force field whose b84 is split, by a force field whose b84 is not."""
    folder = tmp_path_factory.mktemp("conflict")
    true, identity = split(FORCE_FIELD, "Bonds", PARENT, CHILD)
    molecules = [molecule("methanol"), molecule("ethane")]
    systems = [offjax.System.from_smirnoff(true, m, charge_from_molecules=[m]).without_constraints() for m in molecules]
    p = systems[0].parameters
    for pattern, factor in ((identity, 1.08), ("b84", 0.95)):
        chosen = p.select("Bonds/k", pattern)
        p = chosen.insert(factor * np.asarray(chosen.to_vector()))
    batch = offjax.SystemBatch.from_systems(systems)
    packed = batch.pack([conformers(m, 4, 1) for m in molecules])
    energies, forces = (batch.unpack(v, packed) for v in jax.jit(batch.energies_and_forces)(p, packed))
    records = {
        m.name: {
            "smiles": m.to_smiles(mapped=True),
            "numbers": np.array([a.atomic_number for a in m.atoms]),
            "positions": conformers(m, 4, 1),
            "energies": u,
            "forces": f,
        }
        for m, u, f in zip(molecules, energies, forces, strict=True)
    }
    write_spice(folder / "data.h5", records)
    content = {
        "force_field": FORCE_FIELD,
        "data": [{"path": "data.h5"}],
        "charges": {"method": "gasteiger"},
        "parameters": [{"path": "Bonds/k", "prior": "100%"}, {"path": "Angles/k", "patterns": ["a*"], "prior": "100%"}],
        "output": {"directory": "out"},
    }
    return run(FitConfig.from_dict(content, folder))


@pytest.fixture(scope="module")
def found(fit):
    return find_conflicts(fit)


def test_the_planted_conflict_is_found(fit, found):
    best = found.splits[0]
    assert (best.section, best.smirks, best.id) == ("Bonds", PARENT, "b84")
    assert (best.n_places, best.n_child) in ((9, 3), (9, 6))
    in_methanol = best.n_child == 3
    assert best.molecules == (("methanol",) if in_methanol else ("ethane",))
    assert (best.pull_child[0] > 0) == in_methanol and best.pull_child[0] * best.pull_parent[0] < 0
    pull = found.pulls[0]
    assert str(pull.label).startswith("Bonds/k b84") and pull.cancelled > 0.8 and len(pull.places) == 9
    assert found.objective == pytest.approx(fit.history[-1]["objective"], rel=1e-9)
    assert found.unsplit_gain < 1e-3 * best.gain
    assert found.table()["id"][0] == "b84"


def test_pulls_add_up_to_the_gradient(fit):
    config, data, x = conflicts.end_point(fit)
    objective, x = data.objective(config), x + 0.3
    found = conflicts.analyse(data, config, x, top=0)
    _, gradient = objective.value_and_gradient(jnp.asarray(x))
    expected = np.asarray(objective.data.prior) ** 2 * x - np.asarray(gradient)
    by_label = dict(zip(map(str, data.free.selection.labels), expected, strict=True))
    assert {str(p.label) for p in found.pulls} == set(by_label) and not found.splits
    for pull in found.pulls:
        assert sum(v for _, _, v in pull.places) == pytest.approx(pull.up + pull.down)
        np.testing.assert_allclose(pull.up + pull.down, by_label[str(pull.label)], rtol=1e-6, atol=1e-8)


def test_the_split_brings_what_was_expected(fit, found, tmp_path):
    best = found.splits[0]
    config = FitConfig.load(refit_files(fit.config, best.section, best.smirks, best.child, tmp_path))
    again = run(config)
    gain = fit.history[-1]["objective"] - again.history[-1]["objective"]
    assert gain > 0.5 * fit.history[-1]["objective"]
    assert gain == pytest.approx(best.gain, rel=0.05)
    fitted = again.table().set_index("id")
    expected = dict(zip(("b84", "b84a"), (best.change_parent, best.change_child), strict=True))
    for identity, change in expected.items():
        row = fitted.loc[identity]
        factor = best.labels[0].factor
        assert row["change"] == pytest.approx(change[0] / factor, abs=0.02 * row["initial"])
    assert FitResult.load(again.directory).config.force_field.endswith("split.offxml")


def test_sides_of_one_molecule_in_two_records_are_of_one_molecule(fit):
    """The data twice: methanol and ethane, on whom the split stands, are four records but two molecules."""
    [block] = [b for b in fit.config.parameters if b.path == "Bonds/k"]
    for least, proposed in ((1, ["b84"]), (2, [])):
        blocks = [block.model_copy(update={"patterns": ["b84"], "min_molecules": least})]
        config = fit.config.model_copy(update={"parameters": blocks, "data": fit.config.data * 2})
        with jax.enable_x64(True):
            data = prepare(config)
        assert len(data.records) == 4 and data.free.molecules.tolist() == [2]
        found = conflicts.analyse(data, config, np.zeros(1))
        assert [split.id for split in found.splits] == proposed
        assert all(len(split.molecules) == 1 for split in found.splits)


def test_a_split_is_plain_smirnoff(tmp_path):
    old = ForceField(FORCE_FIELD)
    new, identity = split(old, "ProperTorsions", "t1", "[*:1]-[#6X4;H3:2]-[#6X4:3]-[*:4]")
    assert identity == "t1a"
    new.to_file(str(tmp_path / "split.offxml"))
    loaded = ForceField(str(tmp_path / "split.offxml"))
    rows = [p.id for p in loaded["ProperTorsions"].parameters]
    n = rows.index("t1")
    assert rows[n + 1] == "t1a" and len(rows) == len(old["ProperTorsions"].parameters) + 1
    parent, child = loaded["ProperTorsions"].parameters[n : n + 2]
    assert child.k == parent.k and child.periodicity == parent.periodicity and child.idivf == parent.idivf
    again, second = split(new, "ProperTorsions", "t1", "[*:1]-[#6X4;r3:2]-[#6X4:3]-[*:4]")
    assert second == "t1b" and again["ProperTorsions"].parameters[n + 1].id == "t1b"
    for section, smirks, child, message in (
        ("Bond", "b1", "[#6:1]-[#6:2]", "no section 'Bond'"),
        ("Bonds", "b99x", "[#6:1]-[#6:2]", "0 parameters have the SMIRKS or id 'b99x'"),
        ("Bonds", "b84", "[#6X4:1]-[#1:2]", "there is a parameter of SMIRKS"),
        ("Bonds", "b84", "[#6X4:1]-[#1", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            split(old, section, smirks, child)


def test_children_separate_what_the_graph_tells_apart():
    molecules = [Molecule.from_smiles(s) for s in ("CO", "CC(=O)O", "CCN", "c1ccccc1C")]
    environments = Environments(molecules)
    places = {p for p, _ in environments.matches("Bonds", PARENT)}
    children = environments.children("Bonds", PARENT, places)
    assert len(places) == 3 + 3 + 5 + 3
    # each split once; the carbon of CO and of acetic acid are both CH3 without charge
    sides = [frozenset({taken, frozenset(places - taken)}) for taken in children.values()]
    assert len(set(sides)) == len(sides)
    methylene = [a.molecule_atom_index for a in molecules[2].atoms if a.atomic_number == 6][1]
    assert children["[#6X4;H2:1]-[#1:2]"] == {p for p in places if p[0] == 2 and methylene in p[1]}
    for alone in ({0}, {1}, {3}):  # the only CH3 beside O, C=O, and an aromatic ring
        side = frozenset(p for p in places if p[0] in alone)
        assert frozenset({side, frozenset(places - side)}) in sides
    for child, taken in children.items():
        assert taken == {p for p, _ in environments.matches("Bonds", child)} & places
    impropers = {p for p, _ in environments.matches("ImproperTorsions", "[*:1]~[#6X3:2](~[*:3])~[*:4]")}
    assert all(molecules[m].atom(atoms[0]).atomic_number == 6 for m, atoms in impropers) and len(impropers) == 1 + 6
    with pytest.raises(InputError, match="tags of SMIRKS"):
        environments.matches("Angles", PARENT)
