"""Terms of the user's in fits and on the command line: the example of the double exponential, and what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import offjax
from offjax.fit import FitConfig, FitResult
from offjax.fit.split import refit_files
from offjax.interop import definitions

EXAMPLE = Path(__file__).parents[2] / "examples" / "double-exponential"


@pytest.fixture
def example(tmp_path):
    """A copy of the example's files that may be changed."""
    folder = tmp_path / "example"
    shutil.copytree(EXAMPLE, folder)
    data = EXAMPLE.parents[1] / "data"
    text = (folder / "fit.toml").read_text().replace("../../data", str(data))
    (folder / "fit.toml").write_text(text.replace("max_iterations = 8", "max_iterations = 2"))
    return folder


def test_the_double_exponential_is_fitted_and_exported(run, example, tmp_path):
    out = tmp_path / "out"
    result = run("fit", example / "fit.toml", "--no-benchmark", "-o", out)
    assert result.code == 0, result.err
    fit = FitResult.load(out)
    loss = [entry["objective"] for entry in fit.history]
    assert loss[-1] < 0.9 * loss[0]
    moved = fit.table().query("section == 'DoubleExponential'")
    assert len(moved) == 8 and np.count_nonzero(moved["change"]) == 8
    terms = str((example / "double_exponential.py").resolve())
    assert fit.provenance["terms"] == [{"file": terms, "sha256": definitions.sha256(terms)}]
    assert "Terms: " in (out / "fitted.offxml").read_text()

    options = ("-f", out / "fitted.offxml", "--terms", terms, "--charges", "gasteiger")
    both = run("energy", "CCO", *options, "--openmm", "--json")
    assert both.code == 0, both.err
    (conformer,) = json.loads(both.out)["molecules"][0]["conformers"]
    assert abs(conformer["terms"]["DoubleExponential"]) > 0.01
    for name, value in conformer["terms"].items():
        assert conformer["openmm"][name] == pytest.approx(value, abs=1e-6 * max(1, abs(value)))
    assert run("export", "CCO", *options, "--to", "openmm-xml", "-o", tmp_path / "system.xml").code == 0
    assert "DoubleExponential" in (tmp_path / "system.xml").read_text()
    assert run("parameterize", "CCO", *options, "-o", tmp_path / "system.h5").code == 0
    system = offjax.System.load(tmp_path / "system.h5", user_terms=definitions.read([terms]))
    assert system.terms["DoubleExponential"].n_instances == 9

    split = refit_files(fit.config, "Bonds", "b3", "[#6X4H3:1]-[#1:2]", tmp_path / "split")
    assert Path(FitConfig.load(split).terms[0]).resolve() == Path(terms)

    (example / "double_exponential.py").write_text((example / "double_exponential.py").read_text() + "# changed\n")
    with pytest.raises(offjax.InputError, match="not what the fit was made with any more"):
        FitResult.load(out)
    assert len(FitResult.load(out, user_terms=definitions.read([terms])).molecules) == 2
    again = run("fit", example / "fit.toml", "--resume", "-o", out)
    assert again.code == 2 and "the configuration changed since the checkpoint: terms" in again.err


def test_definitions_travel_to_other_processes_as_they_are():
    cloudpickle = pytest.importorskip("cloudpickle")
    (term,) = definitions.read([str(EXAMPLE / "double_exponential.py")])
    text = cloudpickle.dumps(term)
    assert b"safe_sqrt" in text  # the function itself, not the name of a module that another process lacks
    again = cloudpickle.loads(text)
    assert float(again.of_flat(0.3, 0.3, 1.0, 0.4, 2.0, 16.8, 4.4)) == float(
        term.of_flat(0.3, 0.3, 1.0, 0.4, 2.0, 16.8, 4.4)
    )


def test_a_library_of_terms_is_a_module():
    found = definitions.read(["offjax.terms.library"])
    assert [term.section for term in found] == ["MorseBonds", "UreyBradleys", "DoubleExponential", "DampedBuckingham68"]
    assert definitions.read(["offjax.terms.library"] * 2) == found


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.py", None, "missing.py: no such file"),
        ("no.such.module", None, "neither a module that can be imported nor a file that ends in .py"),
        ("broken.py", "import offjax\nx = 1 / 0\n", "broken.py cannot be imported: ZeroDivisionError"),
        ("empty.py", "import offjax\n", "empty.py defines no offjax.UserTerm"),
    ],
)
def test_what_defines_no_terms_is_refused(run, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    result = run("energy", "CCO", "--charges", "gasteiger", "--terms", name)
    assert result.code == 2 and message in result.err


def test_a_section_without_definition_says_what_to_do(run):
    result = run("energy", "CCO", "--charges", "gasteiger", "-f", EXAMPLE / "double-exponential.offxml")
    assert result.code == 2 and "DoubleExponential" in result.err and "--terms" in result.err
