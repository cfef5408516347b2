"""Synthetic reference data: energies and forces of openff-2.2.1 with some parameters changed, in SPICE's layout."""

import h5py
import jax
import numpy as np
import pytest

import offjax
from offjax import constants

MOLECULES = {"methanol": "CO", "ethane": "CC", "formaldehyde": "C=O"}
CHANGED = {"b1": 1.1, "b14": 0.92, "b84": 1.05, "a1": 1.1, "a2": 0.95}
"""Ids of parameters whose Bonds/k or Angles/k the synthetic data multiply."""

CONFIG = """
force_field = "openff-2.2.1.offxml"

[[data]]
path = "{data}"

[charges]
method = "gasteiger"

[[parameters]]
path = "Bonds/k"
prior = {prior}
scale = 50.0

[[parameters]]
path = "Angles/k"
prior = {prior}
scale = 20.0

[optimizer]
method = "{method}"
max_iterations = {iterations}
objective_tolerance = 0.0
gradient_tolerance = 1e-11

[output]
directory = "{output}"
"""


def molecule(name):
    from openff.toolkit import Molecule

    made = Molecule.from_smiles(MOLECULES[name])
    made.name = name
    made.assign_partial_charges("gasteiger")
    return made


def conformers(made, n, seed):
    """Displaced copies of an embedded geometry, nm."""
    from rdkit.Chem import AllChem

    rdmol = made.to_rdkit()
    AllChem.EmbedMolecule(rdmol, randomSeed=7)
    x = rdmol.GetConformer().GetPositions() * constants.ANGSTROM
    return x + np.random.default_rng(seed).normal(scale=0.003, size=(n, *x.shape))


def true_parameters(p):
    """The parameters behind the synthetic data."""
    vector = np.array(p.to_vector())
    for section in ("Bonds", "Angles"):
        for identity, factor in CHANGED.items():
            try:
                vector[p.select(f"{section}/k", identity).indices] *= factor
            except offjax.InputError:
                continue
    return p.from_vector(vector)


def write_spice(path, records):
    """``records``: name -> dict of smiles, numbers, positions (nm), energies (kJ/mol), forces (kJ/mol/nm)."""
    with h5py.File(path, "w") as file:
        for name, r in records.items():
            group = file.create_group(name)
            group.create_dataset("smiles", data=[r["smiles"]], dtype=h5py.string_dtype())
            group["atomic_numbers"] = r["numbers"]
            group["conformations"] = r["positions"] / constants.BOHR
            group["dft_total_energy"] = r["energies"] / constants.HARTREE
            group["dft_total_gradient"] = -r["forces"] / constants.HARTREE * constants.BOHR
            group["conformations"].attrs["units"] = "bohr"
            group["dft_total_energy"].attrs["units"] = "hartree"
            group["dft_total_gradient"].attrs["units"] = "hartree/bohr"


@pytest.fixture(scope="session")
def records():
    """Three molecules with 4, 3 and 5 conformers."""
    with jax.enable_x64(True):
        molecules = [molecule(name) for name in MOLECULES]
        systems = [
            offjax.System.from_smirnoff("openff-2.2.1.offxml", m, charge_from_molecules=[m]).without_constraints()
            for m in molecules
        ]
        batch = offjax.SystemBatch.from_systems(systems)
        positions = [conformers(m, n, seed) for seed, (m, n) in enumerate(zip(molecules, (4, 3, 5), strict=True))]
        packed = batch.pack(positions)
        energies, forces = jax.jit(batch.energies_and_forces)(true_parameters(systems[0].parameters), packed)
        energies, forces = batch.unpack(energies, packed), batch.unpack(forces, packed)
    return {
        m.name: {
            "smiles": m.to_smiles(mapped=True),
            "numbers": np.array([a.atomic_number for a in m.atoms]),
            "positions": x,
            # total energies of the size that quantum chemistry gives
            "energies": u - 3e5,
            "forces": f,
        }
        for m, x, u, f in zip(molecules, positions, energies, forces, strict=True)
    }


@pytest.fixture(scope="session")
def data_file(records, tmp_path_factory):
    """The records as a file."""
    path = tmp_path_factory.mktemp("data") / "synthetic.h5"
    write_spice(path, records)
    return path


def config_text(data, method="levenberg-marquardt", iterations=30, prior="inf", output="out"):
    """A configuration that fits Bonds/k and Angles/k."""
    return CONFIG.format(data=data, method=method, iterations=iterations, prior=prior, output=output)


@pytest.fixture
def make_config(data_file, tmp_path):
    """``make_config(method=..., iterations=..., prior=..., extra=...)`` -> path of a TOML file."""

    def make(*args, extra="", name="fit.toml", **options):
        path = tmp_path / name
        path.write_text(config_text(data_file, *args, **options) + extra)
        return path

    return make
