"""``offjax benchmark`` from files of reference data to its table and page."""

from __future__ import annotations

import csv
import json
import re

import numpy as np

from tests.interop.test_reading import geometry, xyz


def frames(forces):
    """Methanol twice, the second conformer stretched, with a QM force of this size on one atom of the second."""
    x = geometry()
    f = np.zeros((2, 6, 3))
    f[1, 0, 0] = forces
    return np.stack([x, 1.02 * x]), np.array([0.0, 4.184]), f


def test_minima_of_two_force_fields_against_qm(run, tmp_path):
    (tmp_path / "a.xyz").write_text(xyz(frames(0.0)))
    options = ("-f", "openff_unconstrained-2.2.1.offxml", "-f", "openff-2.2.1.offxml", "--charges", "gasteiger")
    result = run("benchmark", "a.xyz", *options, "-o", "page.html", "-t", "table.csv")
    assert result.code == 0, result.err
    # constraints are removed: both files are then the same force field
    rows = [re.split(r" {2,}", line.strip()) for line in result.out.splitlines() if line.strip().startswith("openff")]
    assert [row[0] for row in rows] == ["openff_unconstrained-2.2.1", "openff-2.2.1"] and rows[0][1:] == rows[1][1:]
    assert rows[0][1:3] == ["2", "0"] and 0 < float(rows[0][3]) < 0.1 and rows[0][5] == "-"
    with open("table.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 4 and {row["converged"] for row in table} == {"True"}
    # both conformers end in one minimum, so that the error is all of the QM energy
    assert abs(float(table[1]["dde"]) + 1.0) < 1e-3
    page = (tmp_path / "page.html").read_text()
    assert "Minima against QM" in page and re.search(r"Data a.xyz</dt><dd>SHA-256 [0-9a-f]{64}", page)
    document = json.loads(run("benchmark", "a.xyz", *options[:2], *options[4:], "--json").out)
    assert len(document["conformers"]) == 2 and document["summary"][0]["conformers"] == 2


def test_what_is_no_minimum_is_left_out_and_said(run, tmp_path):
    (tmp_path / "a.xyz").write_text(xyz(tuple(a[1:] for a in frames(100.0))))
    result = run("benchmark", "a.xyz", "--charges", "gasteiger")
    assert result.code == 2 and "no conformer is left to compare" in result.err
    assert "1 conformers are no minima in QM (a force above 50 kJ/mol/nm)" in result.err
    assert "reference data hold no charges" in run("benchmark", "a.xyz", "--charges", "file").err
