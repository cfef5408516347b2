"""Running commands in this process: exit code, stdout and stderr, with the caches in a temporary directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import jax
import pytest

from offjax.cli import main


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(capsys, monkeypatch, cache, tmp_path):
    """``run("energy", "CCO") -> Run``, in an empty working directory."""
    monkeypatch.setenv("OFFJAX_CACHE", str(cache))
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.chdir(tmp_path)
    names = ("jax_enable_x64", "jax_compilation_cache_dir")
    before = {name: getattr(jax.config, name) for name in names}

    def call(*arguments) -> Run:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    yield call
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def ethanol(tmp_path_factory) -> Path:
    """An SDF file with two conformers of ethanol and Gasteiger charges."""
    from openff.toolkit import Molecule

    molecule = Molecule.from_smiles("CCO")
    molecule.name = "ethanol"
    molecule.generate_conformers(n_conformers=1)
    molecule.assign_partial_charges("gasteiger")
    folder = tmp_path_factory.mktemp("molecules")
    one = folder / "one.sdf"
    molecule.to_file(str(one), "sdf")
    two = folder / "ethanol.sdf"
    other = Molecule(molecule)
    other._conformers = [1.01 * other.conformers[0]]
    other.to_file(str(folder / "other.sdf"), "sdf")
    two.write_text(one.read_text() + (folder / "other.sdf").read_text())
    return two
