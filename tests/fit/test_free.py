"""Which parameters are free: coverage, singular entries, priors, bounds, and nothing dropped silently."""

import math
import re
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from openff.toolkit import ForceField

import offjax
from offjax import InputError
from offjax.fit import FitConfig, free
from offjax.fit.objective import L1_CORNER, FitObjective
from offjax.parameterize import forcefield

from .conftest import conformers, molecule


@pytest.fixture(scope="module")
def systems():
    """Methanol and ethane, flexible."""
    made = [molecule(name) for name in ("methanol", "ethane")]
    built = [offjax.System.from_smirnoff("openff-2.2.1.offxml", m, charge_from_molecules=[m]) for m in made]
    return [s.without_constraints() for s in built]


def choose(systems, *blocks, names=None, **more):
    config = {"force_field": "openff-2.2.1.offxml", "data": [{"path": "x.h5"}], "parameters": list(blocks)} | more
    return free.choose(FitConfig.from_dict(config), systems, names or [str(n) for n in range(len(systems))])


def test_free_are_the_entries_that_training_molecules_use(systems):
    chosen = choose(systems, {"path": "Bonds/k", "prior": "10%"})
    assert [label.id for label in chosen.selection.labels] == ["b1", "b14", "b84", "b88"]
    assert chosen.instances.tolist() == [1, 1, 9, 1]
    assert chosen.molecules.tolist() == [1, 1, 2, 1]
    total = len(systems[0].parameters["Bonds"]["k"])
    assert len(chosen.left_out) == total - 4
    assert {item.reason for item in chosen.left_out} == {"no training molecule uses it"}


def test_torsions_about_straight_angles_are_left_out():
    """Their force goes with 1 / sin(angle): at a minimum with a straight angle its derivative in k is infinite."""
    from openff.toolkit import Molecule

    made = [Molecule.from_smiles(s) for s in ("CCC#N", "CC#CC")]
    for m in made:
        m.assign_partial_charges("gasteiger")
    nitrile, alkyne = (offjax.System.from_smirnoff("openff-2.2.1.offxml", m, charge_from_molecules=[m]) for m in made)
    block = {"path": "ProperTorsions/k", "prior": 0.5}
    chosen = choose([nitrile.without_constraints(), alkyne.without_constraints()], block)
    left = {item.label.id for item in chosen.left_out if "straight angles" in item.reason}
    assert left == {"t165", "t166"}
    assert {"t165", "t166"}.isdisjoint(label.id for label in chosen.selection.labels)
    chosen = choose([nitrile], block | {"allow_singular": True})
    assert "t166" in [label.id for label in chosen.selection.labels]
    with pytest.raises(InputError, match=r"t166.* straight angles only.* allow_singular"):
        choose([nitrile], block | {"patterns": ["t166"]})
    chosen = choose([nitrile], block, objective={"force_weight": 0.0})
    assert "t166" in [label.id for label in chosen.selection.labels]
    relaxed = [{"path": "x.h5", "kind": "optimized-geometries"}]
    with pytest.raises(InputError, match=r"t166.* straight angles only"):
        choose([nitrile], block | {"patterns": ["t166"]}, objective={"force_weight": 0.0}, data=relaxed)


def test_sites_without_lennard_jones_sphere_get_none(systems):
    from openff.toolkit import Molecule

    acetonitrile = Molecule.from_smiles("CC#N")
    acetonitrile.assign_partial_charges("gasteiger")
    files = ["openff_unconstrained-2.2.1.offxml", "offjax-sites-1.0.offxml"]
    system = offjax.System.from_smirnoff(files, acetonitrile, charge_from_molecules=[acetonitrile])
    with pytest.raises(InputError, match="one-sided derivative"):
        choose([system], {"path": "VirtualSites/epsilon", "prior": 0.1})
    chosen = choose([system], {"path": "VirtualSites/epsilon", "prior": 0.1, "allow_singular": True})
    assert chosen.lower.tolist() == [0.0]


def test_thresholds_leave_entries_out_and_say_so(systems):
    chosen = choose(systems, {"path": "Bonds/k", "prior": "10%", "min_count": 2})
    assert [label.id for label in chosen.selection.labels] == ["b84"]
    assert "Bonds/k b1" in str([str(item) for item in chosen.left_out if "min_count" in item.reason])
    chosen = choose(systems, {"path": "Bonds/k", "prior": "10%", "min_molecules": 2})
    assert [label.id for label in chosen.selection.labels] == ["b84"]


def test_a_molecule_of_several_records_counts_once(systems):
    """Several torsion drives of methanol, as one System or in another order of the atoms, are still one molecule."""
    methanol, ethane = systems
    block = {"path": "Bonds/k", "prior": "10%", "min_molecules": 2}
    chosen = choose([methanol, methanol, ethane], block, names=["methanol", "methanol", "ethane"])
    assert [label.id for label in chosen.selection.labels] == ["b84"]
    assert (chosen.instances.tolist(), chosen.molecules.tolist()) == ([12], [2])
    [b14] = [item for item in chosen.left_out if item.label.id == "b14"]
    assert b14.reason == "1 training molecules, min_molecules = 2"


def test_constrained_bonds_do_not_count(systems):
    rigid = offjax.System.from_smirnoff(
        "openff-2.2.1.offxml", molecule("ethane"), charge_from_molecules=[molecule("ethane")]
    )
    chosen = choose([rigid], {"path": "Bonds/k", "prior": "10%"})
    assert [label.id for label in chosen.selection.labels] == ["b1"]


def test_numbers_are_in_file_units(systems):
    block = {"path": "Bonds/length", "patterns": ["b1"], "prior": 0.02, "lower": 1.4, "upper": 1.6}
    chosen = choose(systems, block)
    np.testing.assert_allclose(chosen.widths, 0.002)
    np.testing.assert_allclose(chosen.scales, chosen.widths)
    np.testing.assert_allclose([chosen.lower[0], chosen.upper[0]], [0.14, 0.16])
    relative = choose(systems, {"path": "Bonds/length", "patterns": ["b1"], "prior": "10%"})
    np.testing.assert_allclose(relative.widths, 0.1 * relative.selection.to_vector())


def test_physical_bounds_hold_without_asking(systems):
    chosen = choose(systems, {"path": "Angles/angle", "prior": 3.0}, {"path": "ProperTorsions/k", "prior": 1.0})
    for label, low, high in zip(chosen.selection.labels, chosen.lower, chosen.upper, strict=True):
        assert (low, high) == ((0.0, math.pi) if label.section == "Angles" else (-math.inf, math.inf))


def test_the_last_block_counts(systems):
    chosen = choose(
        systems, {"path": "Bonds/k", "prior": "10%"}, {"path": "Bonds/k", "patterns": ["b84"], "prior": 7.0}
    )
    [index] = [i for i, label in enumerate(chosen.selection.labels) if label.id == "b84"]
    np.testing.assert_allclose(chosen.widths[index], 7.0 * 418.4)


ZERO = """<SMIRNOFF version="0.3" aromaticity_model="OEAroModel_MDL">
  <vdW version="0.4" cutoff="9.0 * angstrom" switch_width="1.0 * angstrom" scale14="0.5">
    <Atom smirks="[*:1]" id="n1" epsilon="0.1 * kilocalorie_per_mole" sigma="3.0 * angstrom"/>
    <Atom smirks="[#1:1]" id="n2" epsilon="0.0 * kilocalorie_per_mole" sigma="1.0 * angstrom"/>
  </vdW>
</SMIRNOFF>"""


def test_an_entry_with_one_sided_derivative_is_free_only_on_request():
    system = offjax.System.from_smirnoff(ZERO, molecule("ethane"))
    everything = choose([system], {"path": "vdW/epsilon", "prior": 0.1})
    assert [label.id for label in everything.selection.labels] == ["n1"]
    assert "one-sided" in everything.left_out[0].reason
    with pytest.raises(InputError, match=r"parameters\[1\].patterns: vdW/epsilon n2.*allow_singular = true"):
        choose([system], {"path": "vdW/epsilon", "patterns": ["n2"], "prior": 0.1})
    asked = choose([system], {"path": "vdW/epsilon", "patterns": ["n2"], "prior": 0.1, "allow_singular": True})
    assert len(asked) == 1 and asked.lower[0] == 0.0


BROKEN = {
    "no such section": ({"path": "Bond/k", "prior": 1.0}, "parameters[1].path: no section 'Bond'"),
    "no such attribute": ({"path": "Bonds/kk", "prior": 1.0}, "parameters[1].path: section Bonds has no attribute"),
    "no such id": ({"path": "Bonds/k", "patterns": ["zz9"], "prior": 1.0}, "parameters[1].patterns: 'zz9' is neither"),
    "nothing covered": (
        {"path": "Bonds/k", "patterns": ["b71"], "prior": 1.0},
        "none can be fitted; the first: Bonds/k b71",
    ),
    "start outside bounds": (
        {"path": "Bonds/length", "patterns": ["b1"], "prior": 1.0, "upper": 1.0},
        "outside its bounds [0, 1]",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_block_that_cannot_be_used_is_named(case, systems):
    block, message = BROKEN[case]
    with pytest.raises(InputError, match=re.escape(message)):
        choose(systems, block)


def test_tags_of_forcebalance_choose_parameters(systems):
    def row(identity, tag):
        return re.sub(rf'(<Bond [^>]*id="{identity}")', rf"\1 {tag}", text)

    text = systems[0].source
    text = row("b84", 'parameterize="length , k"')
    text = row("b14", 'parameterize="k"')
    made = molecule("methanol")

    def tagged(text, *blocks):
        system = offjax.System.from_smirnoff(
            ForceField(text, allow_cosmetic_attributes=True), made, charge_from_molecules=[made]
        ).without_constraints()
        return [(label.key, label.id) for label in choose([system], *blocks).selection.labels]

    blocks = [{"path": p, "tagged": True, "prior": "10%"} for p in ("Bonds/k", "Bonds/length")]
    p = systems[0].parameters
    value, other = (p.select("Bonds/k", name).to_vector()[0] for name in ("b14", "b84"))
    [smirks] = [label.smirks for label in p.select("Bonds/k", "b84").labels]
    assert tagged(text, *blocks) == [("k", "b14"), ("k", "b84"), ("length", "b84")]
    assert tagged(text, blocks[0] | {"patterns": ["b8*"]}) == [("k", "b84")]
    loaded = ForceField(text, allow_cosmetic_attributes=True)  # to which "k" is Boltzmann's constant
    assert forcefield.tags(forcefield.text(loaded))["Bonds", 14][0] == {"k"}
    with pytest.raises(InputError, match="parameters\\[1\\].tagged: no parameterize attribute.*Angles/k"):
        tagged(text, {"path": "Angles/k", "tagged": True, "prior": "10%"})
    with pytest.raises(InputError, match="<Bonds>, b84 .*: parameterize names lenght, which is no attribute of it"):
        tagged(text.replace('"length , k"', '"k, lenght"'), *blocks)
    tied = text.replace('parameterize="k"', f"parameter_eval=\"k={value / other}*PRM['Bonds/Bond/k/{smirks}']\"")
    assert tagged(tied, *blocks) == [("k", "b84"), ("length", "b84")]


def test_logarithmic_values_vary_by_factors(systems):
    chosen = choose(
        systems,
        {"path": "Bonds/k", "prior": "10%", "transform": "log"},
        {"path": "Bonds/length", "patterns": ["b1"], "prior": 0.02},
    )
    start, log = np.asarray(chosen.selection.to_vector()), chosen.log
    assert log.tolist() == [True] * 4 + [False]
    x = np.array([-30.0, 0.0, 1.0, 2.0, 1.5])
    theta = chosen.theta(x)
    np.testing.assert_allclose(theta[log], start[log] * np.exp(0.1 * x[log]))
    np.testing.assert_allclose(theta[~log], start[~log] + 0.002 * x[~log])
    assert (theta > 0).all() and theta[1] == start[1]
    np.testing.assert_allclose(chosen.x(theta), x, atol=1e-12)
    assert chosen.x(chosen.lower)[:4].tolist() == [-math.inf] * 4
    h = 1e-6
    np.testing.assert_allclose(chosen.factors(x), (chosen.theta(x + h) - chosen.theta(x - h)) / (2 * h), rtol=1e-6)
    for block in ({"path": "Bonds/length"}, {"path": "ProperTorsions/k"}):
        with pytest.raises(InputError, match='"log" is for positive k of Bonds and Angles'):
            choose(systems, block | {"prior": 0.1, "transform": "log"})


def test_priors_and_shifts_of_the_objective(systems):
    chosen = choose(
        systems,
        {"path": "Bonds/k", "prior": "10%", "transform": "log", "prior_form": "l1"},
        {"path": "Angles/k", "prior": "10%", "scale": "5%", "prior_form": "l1"},
        {"path": "Angles/angle", "prior": 3.0},
    )
    packed = offjax.SystemBatch.from_systems(systems[:1]).pack([conformers(molecule("methanol"), 1, 0)])
    data = FitObjective(SimpleNamespace(conformers=packed), chosen, prior_weight=2.0).data
    x = np.linspace(-3, 4, len(chosen))
    x[0] = 0.0
    np.testing.assert_allclose(data.shift(x), chosen.theta(x) - chosen.theta(0 * x), rtol=1e-12)
    u = x * chosen.scales / chosen.widths
    expected = np.where(chosen.l1, np.sqrt(u**2 + L1_CORNER**2) - L1_CORNER, u**2 / 2)
    residual, slope = data.priors(jnp.asarray(x))
    np.testing.assert_allclose(0.5 * residual**2, 2.0 * expected, rtol=1e-12)
    h = 1e-6
    difference = data.prior_residuals(x + h) - data.prior_residuals(x - h)
    np.testing.assert_allclose(slope, difference / (2 * h), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match='prior_form = "l1" needs a finite prior'):
        choose(systems, {"path": "Bonds/k", "prior": math.inf, "scale": 1.0, "prior_form": "l1"})
