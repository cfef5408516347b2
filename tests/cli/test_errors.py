"""Bad input ends with exit code 2 and one line that names what is wrong; --debug shows the traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from offjax.errors import OffjaxError

BAD = [
    ("CCQ", "'CCQ' is neither a file nor a SMILES string (SMILES Parse Error"),
    ("missing.sdf", "missing.sdf: no such file"),
    ("molecule.mol2", "molecule.mol2: no such file"),
    ("C(F)(Cl)Br", "undefined stereochemistry at Atom C (index 0)"),
    ("CB(C)C", "CB(C)C: no parameter in <"),
    (".", ". is a directory"),
]


@pytest.mark.parametrize(("molecule", "message"), BAD)
def test_molecules_that_cannot_be_used(run, molecule, message):
    result = run("energy", molecule, "--charges", "zeros")
    _one_line(result, message)


def _one_line(result, *messages):
    lines = [line for line in result.err.splitlines() if not line.startswith("note: ")]
    assert result.code == 2, result
    assert len(lines) == 1 and lines[0].startswith("error: "), result.err
    for message in messages:
        assert message in lines[0]
    assert result.out == ""


FILES = {
    "element.sdf": (lambda text: text.replace(" C  ", " Xx ", 1), "element.sdf, record 1 (ethanol)", "'Xx' not found"),
    "second.sdf": (lambda text: text + text.replace(" C  ", " Xx ", 1), "second.sdf, record 3 (ethanol)", "'Xx'"),
    "cut.sdf": (lambda text: text[:400], "cut.sdf, record 1", "cannot be read"),
    "empty.sdf": (lambda text: "", "empty.sdf", "empty"),
    "flat.sdf": (lambda text: _flat(), "flat.sdf, record 1", "no 3-D coordinates"),
    "hydrogens.sdf": (lambda text: _heavy(), "hydrogens.sdf, record 1", "6 hydrogens are implicit"),
    "list.smi": (lambda text: "CCO ethanol\nCC( broken\n", "list.smi, line 2", "'CC('"),
    "text.json": (lambda text: "{", "text.json", "not JSON"),
    "other.json": (lambda text: "[1]", "other.json", "neither an OpenFF Molecule nor a Topology"),
    "file.xyz": (lambda text: "3", "file.xyz", "unknown extension .xyz"),
    "unknown.pdb": (
        lambda text: "HETATM    1  C1  UNK A   1       0.000   0.000   0.000  1.00  0.00           C  \nEND\n",
        "unknown.pdb",
        "--smiles",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_cannot_be_used_are_named_with_the_record(run, ethanol, tmp_path, name):
    change, *messages = FILES[name]
    (tmp_path / name).write_text(change(ethanol.read_text()))
    _one_line(run("energy", name, "--charges", "zeros"), *messages)


def _flat() -> str:
    from rdkit import Chem
    from rdkit.Chem import AllChem

    molecule = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    AllChem.Compute2DCoords(molecule)
    return Chem.MolToMolBlock(molecule) + "$$$$\n"


def _heavy() -> str:
    from rdkit import Chem

    return Chem.MolToMolBlock(Chem.MolFromSmiles("CCO")) + "$$$$\n"


def test_charges_that_are_not_in_the_file(run):
    _one_line(run("energy", "CCO", "--charges", "file"), "has no partial charges in the file")


def test_a_force_field_that_does_not_exist_gets_a_suggestion(run):
    _one_line(run("energy", "C", "-f", "openff-2.2.1.offml"), "openff-2.2.1.offml", "did you mean openff-2.2.1.offxml")


def test_an_unsupported_section_is_named(run, tmp_path):
    path = tmp_path / "amber.offxml"
    head = '<SMIRNOFF version="0.3" aromaticity_model="OEAroModel_MDL">'
    path.write_text(f'{head}<AmberImproperTorsions version="0.3"/></SMIRNOFF>')
    _one_line(run("energy", "O", "-f", str(path)), "AmberImproperTorsions")


def test_an_output_directory_that_does_not_exist(run):
    result = run("export", "C", "--to", "openmm-xml", "-o", "no/such/s.xml", "--charges", "zeros")
    _one_line(result, "no/such")


def test_wrong_usage_points_to_the_help(run):
    _one_line(run("energy", "C", "--charge", "zeros"), "--charge", "offjax energy --help")
    _one_line(run("energi"), "energi")
    _one_line(run("energy", "C", "--charges", "guess"), "guess")


def test_debug_shows_the_traceback(run):
    with pytest.raises(OffjaxError):
        run("energy", "CCQ", "--debug")


def test_an_unexpected_error_is_one_line_with_a_hint(run, monkeypatch):
    import offjax.interop.molecules

    def fail(*arguments, **options):
        raise RuntimeError("out of cheese")

    monkeypatch.setattr(offjax.interop.molecules, "read", fail)
    result = run("energy", "C")
    assert result.code == 1
    assert result.err == "error: RuntimeError: out of cheese (an unexpected error; --debug shows where)\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_with_130_and_no_traceback(tmp_path):
    code = (
        "import sys, os, signal, offjax.interop.molecules as m\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job inherits SIG_IGN
        "m.read = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT)\n"
        "from offjax.cli import main; sys.exit(main(['energy', 'C']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 130
    assert done.stderr == "error: interrupted\n"


def test_a_broken_configuration_names_file_and_key(run, tmp_path):
    (tmp_path / "fit.toml").write_text('force_feild = "x"\n')
    result = run("fit", "fit.toml")
    assert result.code == 2
    assert all(line.startswith("error: fit.toml") for line in result.err.splitlines())
    assert "force_feild" in result.err and "did you mean force_field" in result.err
    _one_line(run("fit", "missing.toml"), "missing.toml")
    _one_line(run("report", "."), "result.h5: no such file")


def test_the_sampler_takes_the_noise_of_the_objective(run):
    _one_line(run("uncertainty", "out", "--nuts", "--noise", "residuals"), "--nuts samples the objective as it is")
    _one_line(run("uncertainty", "out", "--draws", "50"), "--draws belongs to --nuts")
    _one_line(run("uncertainty", "out", "--nuts"), "result.h5: no such file")
