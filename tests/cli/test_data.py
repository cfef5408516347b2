"""``offjax data`` on files as users have them: all damage in every format is reported, and the rest is used."""

from __future__ import annotations

import json

import numpy as np
import pytest

from offjax import constants
from tests.fit.conftest import write_spice
from tests.interop.test_reading import SMILES, qdata, result, xyz
from tests.interop.test_reading import frames as frames

REASONS = {
    1: "the order of the atoms",
    2: "as if nm read as angstrom",
    3: "nm long, expected about",
    4: "connectivity changed",
    5: "not finite",
    6: "not finite",
}
"""What is wrong with conformers 1 to 6 of the damaged data: words of the reason."""


@pytest.fixture
def damaged(frames):
    x, e, f = (a.copy() for a in frames)
    x[1][[0, 1]] = x[1][[1, 0]]
    x[2][:] = x[2] / 10
    x[3][5] += 0.2
    x[4][2] = x[4][3] + 0.01
    e[5] = np.nan
    f[6][0, 0] = np.inf
    return x, e, f


def hdf5(path, data):
    x, e, f = data
    good = {"smiles": SMILES, "numbers": [6, 8, 1, 1, 1, 1], "positions": x, "energies": e, "forces": f}
    write_spice(path, {"methanol": good})


def arrow(path, data):
    from tests.interop.test_descent import write

    x, e, f = data
    scaled = (x / constants.ANGSTROM, e / constants.KCAL, f / constants.KCAL * constants.ANGSTROM)
    coords, energy, forces = ([float(v) for v in np.ravel(a)] for a in scaled)
    write(path, [{"smiles": SMILES, "coords": coords, "energy": energy, "forces": forces}])


WRITERS = {
    "a.h5": hdf5,
    "a.arrow": arrow,
    "a.xyz": lambda path, data: path.write_text(xyz(data)),
    "a.json": lambda path, data: path.write_text(json.dumps([result(*c) for c in zip(*data, strict=True)])),
    "qdata.txt": lambda path, data: path.write_text(qdata(data, "GRADIENT", -1.0)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_damaged_conformer_is_reported_and_the_rest_is_usable(run, tmp_path, damaged, name):
    WRITERS[name](tmp_path / name, damaged)
    options = ("--molecule", SMILES) if name == "qdata.txt" else ()
    found = run("data", name, "--forces", "--json", *options)
    document = json.loads(found.out)
    assert found.code == 1 and found.err == ""
    [record] = document["records"]
    assert record["n_conformers"] == 2 and record["forces"]
    rejected = {int(p["record"].split()[-1]): p["reason"] for p in document["problems"] if p["kind"] == "rejected"}
    assert sorted(rejected) == sorted(REASONS)
    assert all(words in rejected[n] and name in rejected[n] for n, words in REASONS.items())
    table = run("data", name, "--forces", *options)
    assert table.code == 1 and "1 records with 2 conformers can be used, 6 rejected" in table.out


@pytest.mark.parametrize("name", WRITERS)
def test_a_truncated_file_is_reported_without_a_traceback(run, tmp_path, frames, name):
    WRITERS[name](tmp_path / name, frames)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(0.7 * len(content))])
    options = ("--molecule", SMILES) if name == "qdata.txt" else ()
    found = run("data", name, *options)
    assert found.code in (1, 2) and "copied completely?" in found.out + found.err
