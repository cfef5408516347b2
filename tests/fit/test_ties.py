"""Values that ForceBalance's parameter_eval ties to others: read without running anything, and exact."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import offjax
from offjax import InputError, UnsupportedError
from offjax.fit import FitConfig, ties
from offjax.fit.driver import run
from offjax.fit.result import FitResult
from offjax.fit.ties import TiedSelection
from tests import samples

from .conftest import molecule

A = "Bonds/Bond/k/[#6X4:1]-[#1:2]"
B = "Bonds/Bond/length/[#6X4:1]-[#8X2H1:2]"


@pytest.mark.parametrize(
    "text, names, constant",
    [
        (f"PRM['{A}']", {A: 1.0}, 0.0),
        (f'-0.5*PARM["{A}"]', {A: -0.5}, 0.0),
        (f"(2*PRM['{A}'] - PRM['{B}']/4 + 1)*3", {A: 6.0, B: -0.75}, 3.0),
        (f"PRM['{A}']+PRM['{A}']", {A: 2.0}, 0.0),
        ("-(1.5)", {}, -1.5),
    ],
)
def test_linear_expressions(text, names, constant):
    assert ties._affine(text, "here") == (names, constant)


@pytest.mark.parametrize(
    "text",
    [
        f"PRM['{A}']*PRM['{B}']",
        f"1/PRM['{A}']",
        f"PRM['{A}']**2",
        "__import__('os').system('true')",
        f"max(PRM['{A}'], 1)",
        f"PRM['{A}'].real",
        f"PRM['{A}']/0",
        "True",
        "x",
        f"[PRM['{A}']][0]",
    ],
)
def test_anything_else_is_refused_by_name(text):
    with pytest.raises(UnsupportedError, match="here: .* is not supported: only sums of"):
        ties._affine(text, "here")


def test_what_is_no_expression():
    with pytest.raises(InputError, match="here: not an expression"):
        ties._affine("PRM[", "here")


@pytest.fixture(scope="module")
def force_field():
    """openff-2.2.1, k of b84 tied to 0.9 times that of b14 and something, as text; and the expression."""
    system = samples.system("CO", "openff-2.2.1.offxml")
    rows = {label.id: label for label in system.parameters.labels["Bonds"]["k"]}
    b84, b14 = rows["b84"], rows["b14"]
    rest = b84.loaded / b84.factor - 0.9 * b14.loaded / b14.factor
    expression = f"k=0.9*PRM['Bonds/Bond/k/{b14.smirks}'] + {rest!r}"
    text = re.sub(r'(<Bond [^>]*id="b84")', rf'\1 parameter_eval="{expression}"', system.source)
    return re.sub(r'(<Bond [^>]*id="b14")', r'\1 parameterize="k"', text), expression


def parameterize(text):
    from openff.toolkit import ForceField

    made = molecule("methanol")
    loaded = ForceField(text, allow_cosmetic_attributes=True)
    return offjax.System.from_smirnoff(loaded, made, charge_from_molecules=[made]).without_constraints()


def test_a_tied_value_follows_and_its_derivative_goes_to_what_it_follows(force_field):
    plain = parameterize(force_field[0])
    found = ties.find(plain.parameters, plain.source)
    tied = found.system(plain)
    p = plain.parameters
    chosen = TiedSelection(p, p.select("Bonds/k", "b14").indices, found)
    start = np.asarray(chosen.to_vector())
    assert np.array_equal(np.asarray(chosen.insert(start).to_vector()), np.asarray(p.to_vector()))
    moved = chosen.insert(start * 1.1)
    [b84] = p.select("Bonds/k", "b84").indices
    change = np.asarray(moved.to_vector()) - np.asarray(p.to_vector())
    np.testing.assert_allclose(change[b84], 0.9 * change[chosen.indices[0]], rtol=1e-12)
    assert set(np.flatnonzero(change)) == {b84, chosen.indices[0]}
    for section, attributes in plain.slots(moved).items():
        for attribute, values in attributes.items():
            np.testing.assert_allclose(tied.slots(moved)[section][attribute], values, rtol=1e-14)
    assert not np.asarray(tied.used.to_vector())[b84] and np.asarray(plain.used.to_vector())[b84]

    with jax.enable_x64(True):
        whole = jax.tree.map(jnp.asarray, p)
        weights = jnp.arange(1.0, 1.0 + len(plain.slots()["Bonds"]["k"]))

        def total(system, v, insert):
            return weights @ system.slots(insert(v))["Bonds"]["k"]

        follow = TiedSelection(whole, chosen.indices, found).insert
        alone = whole.select("Bonds/k", "b14").insert
        own, oracle = (jax.grad(lambda v, f=f: total(f[0], v, f[1]))(jnp.asarray(start)) for f in
                       ((tied, alone), (plain, follow)))  # fmt: skip
        np.testing.assert_allclose(own, oracle, rtol=1e-12)
        assert float(jax.grad(lambda v: total(plain, v, alone))(jnp.asarray(start))[0]) > 0


def test_messages_name_file_and_line(force_field, tmp_path):
    text, expression = force_field
    path = tmp_path / "tied.offxml"
    for change, message, error in (
        ("k=2*PRM['Bonds/Bond/k/[#6:1]~[#9:2]']", "names 'Bonds/Bond/k/.*', which is no value", InputError),
        (expression.replace("0.9", "0.8"), "gives .* kilocalorie.*, but the value is .*: make them equal", InputError),
        (expression.replace("0.9*", "0.9**"), r"\*\*.*is not supported", UnsupportedError),
        (expression.replace("k=", "smirk="), "names smirk, which is no value of parameter", InputError),
    ):
        path.write_text(text.replace(expression, change))
        system = parameterize(str(path))
        line = next(n for n, row in enumerate(path.read_text().splitlines(), 1) if "parameter_eval" in row)
        with pytest.raises(error, match=rf"tied.offxml, line {line}: parameter_eval .*{message}"):
            ties.find(system.parameters, system.source, str(path))


def test_a_fit_writes_tied_values(force_field, make_config, tmp_path):
    (tmp_path / "tied.offxml").write_text(force_field[0])
    config = FitConfig.from_dict(
        {
            "force_field": str(tmp_path / "tied.offxml"),
            "data": [{"path": str(FitConfig.load(make_config()).data[0].path)}],
            "charges": {"method": "gasteiger"},
            "parameters": [{"path": "Bonds/k", "tagged": True, "prior": "10%"}],
            "optimizer": {"max_iterations": 2},
            "output": {"directory": str(tmp_path / "out")},
        }
    )
    result = run(config)
    [b14], [b84] = (result.initial.select("Bonds/k", name).indices for name in ("b14", "b84"))
    change = np.asarray(result.fitted.to_vector()) - np.asarray(result.initial.to_vector())
    assert result.selection.indices.tolist() == [b14] and abs(change[b14]) > 100
    np.testing.assert_allclose(change[b84], 0.9 * change[b14], rtol=1e-12)
    written = parameterize(str(tmp_path / "out" / "fitted.offxml")).parameters
    np.testing.assert_allclose(np.asarray(written.to_vector()), np.asarray(result.fitted.to_vector()), rtol=1e-15)
    again = FitResult.load(tmp_path / "out")
    np.testing.assert_array_equal(np.asarray(again.fitted.to_vector()), np.asarray(result.fitted.to_vector()))
    assert result.metrics["train"]["force_rmse_fitted"] < result.metrics["train"]["force_rmse_initial"]
