"""Which sites a molecule gets: names, permutations, several on a parent, charges, exclusions, order of particles."""

import numpy as np
import pytest

import offjax
from offjax.virtual_sites import KINDS
from tests import sites

BOND = (
    '<VirtualSite smirks="{smirks}" type="BondCharge" match="all_permutations" distance="{distance}*angstrom" '
    'name="{name}" charge_increment1="0.1*elementary_charge" charge_increment2="0.2*elementary_charge"/>'
)


def parameterize(section, *smiles, **options):
    molecules = [sites.molecule(s) for s in smiles]
    return offjax.System.from_smirnoff(
        sites.force_field(section), molecules, charge_from_molecules=molecules, **options
    )


def distances(system):
    return np.asarray(system.slots()["VirtualSites"]["distance"]).tolist()


def bond(smirks="[#17:1]-[*:2]", distance=1.0, name="EP"):
    return BOND.format(smirks=smirks, distance=distance, name=name)


def test_the_last_match_of_a_name_wins_on_each_parent():
    system = parameterize(bond() + bond("[#17:1]-[#6X4:2]", 2.0), "CCl")
    assert distances(system) == pytest.approx([0.2])
    assert system.topology.molecules[0].site_names == ("EP",)


def test_sites_of_different_names_stand_on_one_parent():
    system = parameterize(bond() + bond(distance=2.0, name="far"), "CCl")
    assert distances(system) == pytest.approx([0.1, 0.2])
    assert system.topology.molecules[0].site_names == ("EP", "far")
    assert system.terms["VirtualSites"].slot_atoms[:, 0].tolist() == [1, 1]


def test_a_parameter_overrides_another_kind_of_the_same_name():
    once = '<VirtualSite smirks="[#8X2:1](-[*:2])-[*:3]" type="DivalentLonePair" match="once" distance="1*angstrom" \
outOfPlaneAngle="0*degree" charge_increment1="0*elementary_charge" charge_increment2="0*elementary_charge" \
charge_increment3="0*elementary_charge"/>'
    system = parameterize(bond("[#8:1]-[#1:2]") + once, "O")
    assert [KINDS[k] for k in system.terms["VirtualSites"].kind] == ["DivalentLonePair"]


def test_permutations_give_one_site_each_and_once_gives_one():
    system = parameterize(sites.SITES, "CC=O", "c1ccncc1", "COC", "N")
    counts = {m.name or m.smiles: m.n_sites for m in system.topology.molecules}
    assert list(counts.values()) == [2, 1, 2, 1]
    term = system.terms["VirtualSites"]
    assert term.slot_atoms.shape == (6, 4) and np.all(term.slot_atoms[:3, 3] == term.slot_atoms[:3, 0])


def test_increments_move_charge_between_atoms_and_site():
    system = parameterize(bond(), "CCl")
    bare = sites.molecule("CCl").partial_charges.m_as("elementary_charge")
    charge = np.asarray(system.slots()["Electrostatics"]["charge"])
    assert charge[-1] == pytest.approx(-0.3)
    assert charge[:5] - bare == pytest.approx([0.2, 0.1, 0, 0, 0], abs=1e-12)
    assert charge.sum() == pytest.approx(bare.sum())
    used = system.used["VirtualSites"]["charge_increment"]
    assert used.tolist() == [2, 2]


def test_permutations_add_up_on_the_atoms_that_they_share():
    system = parameterize(sites.SITES, "COC")
    bare = sites.molecule("COC").partial_charges.m_as("elementary_charge")
    charge = np.asarray(system.slots()["Electrostatics"]["charge"])
    assert charge[-2:] == pytest.approx([-0.13, -0.13])
    assert charge[[1]] - bare[[1]] == pytest.approx([0.2])
    assert charge[[0, 2]] - bare[[0, 2]] == pytest.approx([0.03, 0.03])


def test_sites_have_sigma_from_either_attribute_and_nothing_by_default():
    system = parameterize(sites.SITES, "CCl", "CC=O")
    sigma, epsilon = (np.asarray(system.slots()["vdW"][a]) for a in ("sigma", "epsilon"))
    atoms = system.terms["vdW"].slot_atoms[:, 0]
    molecule = system.terms["vdW"].slot_molecule
    on_chlorine = (molecule == 0) & (atoms >= 5)
    assert sigma[on_chlorine] == pytest.approx([0.0, 0.08]) and epsilon[on_chlorine] == pytest.approx([0, 0.05 * 4.184])
    on_oxygen = (molecule == 1) & (atoms >= 7)
    assert sigma[on_oxygen] == pytest.approx([0.07 * 2 ** (5 / 6)] * 2)


def test_sites_inherit_the_exclusions_of_their_parent():
    system = parameterize(sites.SITES, "CCCl")
    [pairs] = system.exceptions
    n = sites.molecule("CCCl").n_atoms
    scale = {tuple(sorted(map(int, ij))): s for ij, s in zip(pairs.atoms, pairs.vdw_scale, strict=True)}
    of_parent = {pair: s for pair, s in scale.items() if 2 in pair and max(pair) < n}
    for site in (n, n + 1):
        for pair, value in of_parent.items():
            other = sum(pair) - 2
            assert scale[tuple(sorted((other, site)))] == value
        assert scale[2, site] == 0
    assert scale[n, n + 1] == 0
    assert sorted(scale.values()).count(0.5) == 3 * 3 + 6  # Cl and its two sites with three H, and H with H


def test_sites_come_after_all_atoms_and_have_no_mass():
    molecules = [sites.molecule(s) for s in ("[Na+]", "O", "C", "O")]
    system = offjax.System.from_smirnoff(
        ["openff-2.2.1.offxml", "tip5p.offxml"], molecules, charge_from_molecules=[molecules[2]]
    )
    n = system.topology.n_atoms
    assert (n, system.n_particles, system.topology.n_particles) == (12, 16, 16)
    assert system.masses.shape == (16,) and not np.any(system.masses[n:]) and np.all(system.masses[:n] > 0)
    term = system.terms["VirtualSites"]
    assert term.atoms[:, 0].tolist() == [1, 1, 9, 9]
    assert system.terms["Electrostatics"].atoms[:, 0].tolist() == list(range(16))
    assert system.terms["Constraints"].atoms.max() == 11
    assert "4 of them virtual sites" in repr(system)


def test_molecules_without_sites_are_as_before():
    plain = offjax.System.from_smirnoff(
        "openff_unconstrained-2.2.1.offxml", sites.molecule("C"), charge_from_molecules=[sites.molecule("C")]
    )
    system = parameterize(sites.SITES, "C")
    assert system.n_particles == plain.n_particles and system.terms["VirtualSites"].n_slots == 0
    x = sites.arranged([sites.molecule("C")])
    batch = offjax.SystemBatch.from_systems([system])
    [energy] = batch.energies(system.parameters, batch.pack([x]))
    assert float(energy) == pytest.approx(float(plain.to_jax()(plain.parameters, x)), abs=1e-9)


def test_other_exclusion_policies_raise_by_name():
    chosen = sites.force_field(policy="none")
    with pytest.raises(offjax.UnsupportedError, match='<VirtualSites exclusion_policy="none">'):
        offjax.System.from_smirnoff(chosen, sites.molecule("C"))


def test_atoms_that_a_kind_does_not_take_raise_by_name():
    section = sites.SITES.replace("[#8:1]=[#6X3+0:2]-[*:3]", "[#1:1]-[#6X4:2]-[*:3]")
    with pytest.raises(offjax.UnsupportedError, match="MonovalentLonePair"):
        parameterize(section, "CC")


def test_systems_that_differ_in_their_sites_have_different_digests():
    once = sites.SITES.replace('match="once" distance="0.45', 'match="all_permutations" distance="0.45')
    assert parameterize(once, "c1ccncc1").digest != parameterize(sites.SITES, "c1ccncc1").digest


def test_every_row_of_the_projects_own_sites_is_used():
    from openff.toolkit import Molecule

    smiles = ("CC(C)=O", "CC#N", "COC", "CC=N", "CN(C)C")
    molecules = [Molecule.from_smiles(s, allow_undefined_stereo=True) for s in smiles]
    files = ["offjax-teaching-1.0.offxml", "offjax-sites-1.0.offxml"]
    system = offjax.System.from_smirnoff(files, molecules)
    used = system.used["VirtualSites"]
    assert all(np.all(counts > 0) for counts in used.values())
    assert [m.n_sites for m in system.topology.molecules] == [3, 1, 2, 1, 1]
