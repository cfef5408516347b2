"""ParameterSet: values as written, labels, vectors, selections, tables; a pytree with one interned schema."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offjax import InputError, ParameterSet
from tests.samples import system


@pytest.fixture(scope="module")
def p():
    return system("CCO").parameters


def test_attributes_are_those_written_in_the_file(p):
    vdw = p["vdW"]
    assert len(vdw["rmin_half"]) + len(vdw["sigma"]) == len(vdw["epsilon"])
    assert len(vdw["sigma"]) == 3  # the TIP3P rows of openff-2.2.1; the toolkit derives the rest from rmin_half
    assert set(p["ProperTorsions"]) == {"k", "phase"}


def test_values_are_in_md_units(p):
    label = p.labels["Bonds"]["length"][0]
    assert label.unit == "angstrom" and label.factor == 0.1
    from openff.toolkit import ForceField

    written = ForceField("openff_unconstrained-2.2.1.offxml")["Bonds"].parameters[0]
    assert p["Bonds"]["length"][0] == 0.1 * written.length.m_as("angstrom")
    k = p.labels["Angles"]["k"][0]
    assert k.factor == pytest.approx(4.184) and k.unit.endswith("radian ** 2")
    phase = p.labels["ProperTorsions"]["phase"][0]
    assert phase.unit == "degree" and phase.factor == np.pi / 180


def test_labels_name_indexed_attributes(p):
    labels = p.labels["ProperTorsions"]["k"]
    assert [label.key for label in labels if label.id == "t1"] == ["k1"]
    many = [label for label in labels if label.smirks == labels[0].smirks]
    assert [label.term for label in many] == list(range(1, len(many) + 1))
    assert len(labels) == len(p["ProperTorsions"]["k"])


def test_vector_round_trip_is_exact(p):
    v = p.to_vector()
    assert v.shape == (p.schema.size,) and v.dtype == np.float64
    q = p.from_vector(v)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(q), strict=True))


def test_pytree_round_trip_and_jit(p):
    leaves, tree = jax.tree.flatten(p)
    assert jax.tree.unflatten(tree, leaves).schema is p.schema
    doubled = jax.jit(lambda q: jax.tree.map(lambda a: 2 * a, q))(p)
    assert isinstance(doubled, ParameterSet)
    assert np.array_equal(doubled["Bonds"]["k"], 2 * p["Bonds"]["k"])


def test_two_loads_share_one_schema():
    first, second = system("CCO"), system("CCN")
    assert first.parameters.schema is second.parameters.schema
    assert first.parameters.digest != system("CCO", "openff-2.0.0.offxml").parameters.digest


def test_replace_and_from_vector_may_be_traced(p):
    def bonds(k):
        return jnp.sum(p.replace("Bonds", "k", k)["Bonds"]["k"] ** 2)

    k = jnp.asarray(p["Bonds"]["k"])
    assert np.allclose(jax.grad(bonds)(k), 2 * k)
    assert np.allclose(jax.jit(lambda v: p.from_vector(v).to_vector())(p.to_vector()), p.to_vector())


def test_selection_reads_and_inserts(p):
    chosen = p.select("Bonds/k", ["b1", "b83"])
    assert [label.id for label in chosen.labels] == ["b1", "b83"]
    q = chosen.insert(np.array([1.0, 2.0]))
    assert np.array_equal(q.select("Bonds/k", ["b1", "b83"]).to_vector(), [1.0, 2.0])
    assert np.count_nonzero(q.to_vector() != p.to_vector()) == 2
    gradient = jax.grad(lambda v: jnp.sum(chosen.insert(v).to_vector() ** 2))(jnp.array([3.0, 4.0]))
    assert np.allclose(gradient, [6.0, 8.0])


def test_selection_by_smirks_wildcard_key_and_union(p):
    smirks = p.labels["Bonds"]["k"][4].smirks
    assert p.select("Bonds/k", smirks).labels[0].smirks == smirks
    assert len(p.select("Bonds/k", "b8*")) == 1 + sum(
        label.id.startswith("b8") and label.id != "b8" for label in p.labels["Bonds"]["k"]
    )
    assert len(p.select("Bonds")) == 2 * len(p["Bonds"]["k"])
    assert len(p.select("ProperTorsions/k", "t1:k1")) == 1
    assert len(p.select("Bonds/k") | p.select("Bonds/length")) == len(p.select("Bonds"))


@pytest.mark.parametrize(
    ("path", "patterns", "message"),
    [
        ("Bond/k", None, "no section 'Bond'"),
        ("Bonds/kk", None, "no attribute 'kk'; it has k, length"),
        ("Bonds/k", ["b999"], "'b999' is neither an id nor a SMIRKS of Bonds/k"),
    ],
)
def test_a_selection_of_nothing_says_what_exists(p, path, patterns, message):
    with pytest.raises(InputError, match=message):
        p.select(path, patterns)


def test_wrong_shapes_are_refused(p):
    with pytest.raises(InputError, match="parameters, got shape"):
        p.from_vector(np.zeros(3))
    with pytest.raises(InputError, match="Bonds/k has"):
        p.replace("Bonds", "k", np.zeros(3))


def test_quantities_are_converted(p):
    from openff.units import Quantity

    q = p.replace("Bonds", "length", Quantity(np.full(len(p["Bonds"]["length"]), 1.5), "angstrom"))
    assert np.allclose(q["Bonds"]["length"], 0.15, rtol=1e-15)


def test_table_gives_file_units_beside_md_units(p):
    row = p.select("Bonds/length", "b1").to_dataframe().iloc[0]
    assert (row.attribute, row.id, row.unit) == ("length", "b1", "angstrom")
    assert row.value == pytest.approx(10 * row.value_md)
    assert len(p.to_dataframe()) == p.schema.size


def test_loaded_values_cannot_be_changed_in_place(p):
    with pytest.raises(ValueError, match="read-only"):
        p["Bonds"]["k"][0] = 1.0


def test_repr_names_sections(p):
    assert "Bonds(k: " in repr(p) and "<table" in p._repr_html_()


def test_insert_never_rounds_the_other_entries(p):
    chosen = p.select("Bonds/length", ["b1", "b14"])
    kept = np.setdiff1d(np.arange(p.schema.size), chosen.indices)
    for values in (jnp.array([1, 1]), jnp.asarray(chosen.to_vector(), jnp.float32), np.array([1, 1])):
        q = chosen.insert(values)
        assert np.array_equal(np.asarray(q.to_vector())[kept], p.to_vector()[kept])
    with pytest.raises(InputError, match="real numbers"):
        chosen.insert(np.array([1j, 1]))


def test_stacked_parameters_become_stacked_vectors(p):
    both = jax.tree.map(lambda v: jnp.stack([v, 2 * v]), p)
    assert np.allclose(both.to_vector(), [p.to_vector(), 2 * p.to_vector()])
