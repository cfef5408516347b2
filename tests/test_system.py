"""System: slots as an affine map of the parameters, its transpose, instances, coverage, constraints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import offjax
from offjax import InputError
from tests.samples import molecule, positions, system

SMILES = ["CCO", "CC(=O)NC", "C#N", "c1ccccc1O", "O", "[Cl-]", "C1CC1S(=O)(=O)N"]


@pytest.mark.parametrize("smiles", SMILES)
def test_slots_are_the_matrix_times_the_parameters(smiles):
    s = system(smiles)
    theta = s.parameters.to_vector()
    for section, attributes in s.slots(s.parameters).items():
        for attribute, values in attributes.items():
            matrix = s.assignment[section][attribute]
            assert matrix.shape == (s.terms[section].n_slots, len(theta))
            assert np.array_equal(values, matrix @ theta + matrix.offset)
            assert np.allclose(matrix.to_dense() @ theta + matrix.offset, values, rtol=1e-15)
            assert np.allclose(matrix.to_bcoo() @ theta, matrix @ theta, rtol=1e-15)
            traced = jax.jit(matrix)(jnp.asarray(theta))
            assert np.allclose(traced, values, rtol=1e-15, atol=1e-300)


def test_the_transpose_is_the_vector_jacobian_product(rng):
    s = system("CC(=O)NC")
    p = s.parameters
    slots, pullback = jax.vjp(s.slots, p)
    cotangents = {a: {b: rng.normal(size=v.shape) for b, v in d.items()} for a, d in slots.items()}
    expected = pullback(jax.tree.map(jnp.asarray, cotangents))[0].to_vector()
    ours = s.vjp(cotangents)
    assert isinstance(ours, offjax.ParameterSet)
    assert np.allclose(ours.to_vector(), expected, rtol=1e-13, atol=1e-13)
    by_hand = sum(s.assignment[a][b].T @ v for a, d in cotangents.items() for b, v in d.items())
    assert np.allclose(by_hand, expected, rtol=1e-13, atol=1e-13)
    traced = jax.jit(s.vjp)(jax.tree.map(jnp.asarray, cotangents))
    assert np.allclose(traced.to_vector(), expected, rtol=1e-13, atol=1e-13)


def test_jvp_is_the_adjoint_of_vjp(rng):
    s = system("CC(=O)NC")
    tangent = s.parameters.from_vector(rng.normal(size=s.parameters.schema.size))
    forward = s.jvp(tangent)
    cotangents = {a: {b: rng.normal(size=v.shape) for b, v in d.items()} for a, d in forward.items()}
    left = sum(np.dot(cotangents[a][b], v) for a, d in forward.items() for b, v in d.items())
    assert left == pytest.approx(np.dot(s.vjp(cotangents).to_vector(), tangent.to_vector()), rel=1e-12)


def test_anybody_s_slot_derivatives_give_the_energy_gradient():
    s = system("CC(=O)NC")
    energy, x = s.to_jax(), positions("CC(=O)NC")
    direct = jax.grad(energy)(s.parameters, x).to_vector()
    at_slots = jax.grad(energy.at_slots)(s.slots(s.parameters), x)
    at_instances = jax.grad(energy.at_instances)(s.instances(s.parameters), x)
    assert np.allclose(s.vjp(at_slots).to_vector(), direct, rtol=1e-12, atol=1e-12)
    assert np.allclose(s.vjp(at_instances).to_vector(), direct, rtol=1e-12, atol=1e-12)


def test_copies_are_an_index_and_cost_nothing():
    one = system("CCO")
    ethanol, water = molecule("CCO"), molecule("O")
    many = offjax.System.from_smirnoff(
        "openff_unconstrained-2.2.1.offxml",
        [water, ethanol, water, ethanol, ethanol],
        charge_from_molecules=[ethanol, water],
    )
    bonds = many.terms["Bonds"]
    assert bonds.n_slots == one.terms["Bonds"].n_slots + 2
    assert bonds.n_instances == 3 * one.terms["Bonds"].n_slots + 2 * 2
    assert many.assignment["Bonds"]["k"].shape[0] == bonds.n_slots
    assert np.array_equal(bonds.atoms[2 : 2 + 8], one.terms["Bonds"].atoms + 3)
    assert np.array_equal(bonds.slot_atoms[2:], one.terms["Bonds"].slot_atoms)
    assert many.n_particles == 2 * 3 + 3 * 9
    cotangent = {"Bonds": {"k": np.ones(bonds.n_instances)}}
    per_slot = {"Bonds": {"k": np.bincount(bonds.slot)}}
    assert np.array_equal(many.vjp(cotangent).to_vector(), many.vjp(per_slot).to_vector())


def test_separated_copies_add_their_energies():
    ethanol = molecule("CCO")
    pair = offjax.System.from_smirnoff(
        "openff_unconstrained-2.2.1.offxml", [ethanol, ethanol], charge_from_molecules=[ethanol]
    )
    a, b = positions("CCO", 1), positions("CCO", 2)
    alone = system("CCO").to_jax()
    apart = pair.to_jax()(pair.parameters, np.concatenate([a, b + 1e4]))
    p = pair.parameters
    assert apart == pytest.approx(float(alone(p, a) + alone(p, b)), abs=1e-6)


def test_coverage_counts_instances():
    s = system("CCO")
    used = s.used
    hydroxyl = [i for i, label in enumerate(used.labels["Bonds"]["k"]) if used["Bonds"]["k"][i]]
    assert sum(used["Bonds"]["k"]) == 8 and len(hydroxyl) == 4
    assert np.array_equal(used["Bonds"]["k"], used["Bonds"]["length"])
    assert used.to_vector().sum() == sum(np.count_nonzero(m.values) for d in s.assignment.values() for m in d.values())


def test_a_matrix_tells_what_touches_what():
    s = system("CCO")
    matrix = s.assignment["Bonds"]["k"]
    [(label, weight)] = matrix.parameters_of(0)
    assert weight == 1.0 and label.section == "Bonds" and label.attribute == "k"
    index = s.parameters.select("Bonds/k", label.id).indices[0]
    assert 0 in matrix.slots_of(index)
    block = matrix.block("Bonds", "k")
    assert scipy.sparse.issparse(block) and block.shape == (8, len(s.parameters["Bonds"]["k"])) and block.sum() == 8
    with pytest.raises(InputError, match="slot 99 is out of range"):
        matrix.parameters_of(99)


def test_rmin_half_and_trefoil_weights():
    s = system("CC(=O)NC")
    assert set(s.assignment["vdW"]["sigma"].values) == {2.0 ** (5.0 / 6.0)}
    assert np.allclose(s.assignment["ImproperTorsions"]["k"].values, 1 / 3, rtol=1e-15)
    centers = s.terms["ImproperTorsions"].slot_atoms[:, 0]
    assert set(np.unique(centers, return_counts=True)[1]) == {3}


def test_constraints_take_over_terms_as_in_openmm():
    flexible, rigid = system("CCO"), system("CCO", "openff-2.2.1.offxml")
    x = positions("CCO")
    p = rigid.parameters
    hydrogen = [6 <= int(a) or 3 <= int(b) for a, b in rigid.terms["Bonds"].slot_atoms]
    assert np.array_equal(~rigid.active["Bonds"], hydrogen)
    assert rigid.active["Angles"].all()
    assert rigid.terms["Constraints"].n_slots == 6
    assert float(rigid.to_jax().by_term(p, x)["Bonds"]) < float(
        flexible.to_jax().by_term(flexible.parameters, x)["Bonds"]
    )
    free = rigid.without_constraints()
    assert free.terms["Constraints"].n_slots == 0 and free.active["Bonds"].all()
    assert free.to_jax()(p, x) == pytest.approx(float(flexible.to_jax()(flexible.parameters, x)), rel=1e-12)
    lengths = rigid.slots(p)["Bonds"]["length"][~rigid.active["Bonds"]]
    assert np.allclose(np.sort(rigid.slots(p)["Constraints"]["distance"]), np.sort(lengths))


def test_rigid_water_stays_rigid_without_constraints():
    water = offjax.System.from_smirnoff("openff-2.2.1.offxml", [molecule("O")])
    assert water.terms["Constraints"].n_slots == 3
    assert not water.active["Bonds"].any() and not water.active["Angles"].any()
    assert water.without_constraints().terms["Constraints"].n_slots == 3
    assert water.without_constraints(water=True).terms["Constraints"].n_slots == 0
    assert not water.to_jax().by_term(water.parameters, positions("O"))["Bonds"]


@pytest.mark.parametrize(
    ("cotangents", "message"),
    [
        ({"Bond": {"k": np.zeros(8)}}, "no slots of section 'Bond'"),
        ({"Bonds": {"kk": np.zeros(8)}}, "no attribute 'kk'"),
        ({"Bonds": {"k": np.zeros(7)}}, r"expected shape \(8,\)"),
    ],
)
def test_wrong_cotangents_are_refused(cotangents, message):
    with pytest.raises(InputError, match=message):
        system("CCO").vjp(cotangents)


def test_parameters_of_another_force_field_are_refused():
    s, other = system("CCO"), system("CCO", "openff-2.0.0.offxml").parameters
    with pytest.raises(InputError, match="another force field"):
        s.slots(other)
    with pytest.raises(InputError, match="another force field"):
        s.to_jax()(other, positions("CCO"))


def test_another_atom_order_is_another_molecule_with_the_same_energy(rng):
    first = molecule("CC(=O)NC")
    order = rng.permutation(first.n_atoms)
    second = first.remap({int(old): new for new, old in enumerate(order)}, current_to_new=True)
    s = offjax.System.from_smirnoff("openff_unconstrained-2.2.1.offxml", [first, second], charge_from_molecules=[first])
    assert len(s.topology.molecules) == 2
    x = positions("CC(=O)NC")
    one = system("CC(=O)NC").to_jax()(system("CC(=O)NC").parameters, x)
    moved = offjax.System.from_smirnoff("openff_unconstrained-2.2.1.offxml", [second], charge_from_molecules=[second])
    assert moved.to_jax()(moved.parameters, x[order]) == pytest.approx(float(one), rel=1e-12)


def test_reprs_are_readable():
    s = system("CCO")
    assert "8 slots" in repr(s) and "<table>" in s._repr_html_()
    assert "(8, " in repr(s.assignment["Bonds"]["k"]) and "8 slots" in repr(s.terms["Bonds"])


def test_a_matrix_refuses_vectors_of_another_length():
    s = system("CCO")
    matrix, n = s.assignment["ProperTorsions"]["k"], s.parameters.schema.size
    for vector in (np.ones(5), jnp.ones(5)):
        with pytest.raises(InputError, match="vectors of"):
            matrix @ vector
        with pytest.raises(InputError, match="vectors of"):
            matrix.T @ vector
    assert np.allclose(matrix @ jnp.arange(n), matrix @ np.arange(n))
    assert np.array_equal(matrix @ s.parameters, matrix @ s.parameters.to_vector())
