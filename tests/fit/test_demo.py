"""The demo's configuration on the project's own reference data."""

from pathlib import Path

import numpy as np
import pytest

from offjax.fit import FitConfig, driver, run
from offjax.interop import spice

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data" / "qm" / "small-molecules.h5"
CONFIG = ROOT / "examples" / "demo" / "fit.toml"

pytestmark = pytest.mark.skipif(not DATA.is_file(), reason="data/qm/small-molecules.h5 is not there")


def test_the_reference_data_are_what_the_demo_promises():
    records = spice.read(DATA)
    assert len(records) >= 12
    elements = {atom.symbol for r in records for atom in r.molecule().atoms}
    assert elements >= {"C", "H", "N", "O", "S", "F", "Cl"}
    for record in records:
        assert record.n_conformers >= 8
        # forces of a molecule that is free in space
        np.testing.assert_allclose(record.forces.sum(axis=1), 0.0, atol=1e-2)


def test_the_demo_fits_at_least_thirty_values_to_three_quarters_of_the_molecules():
    data = driver.prepare(FitConfig.load(CONFIG, {"charges.method": "gasteiger"}))
    assert len(data.free) >= 30
    assert {label.section for label in data.free.selection.labels} == {"Bonds", "Angles", "ProperTorsions"}
    assert 0.6 < data.train.mean() < 0.85
    assert np.all(data.free.instances >= 1)
    reasons = {item.reason for item in data.free.left_out}
    assert reasons <= {"no training molecule uses it", "one-sided derivative (allow_singular = false)"}


@pytest.mark.slow
def test_the_held_out_error_falls(tmp_path):
    result = run(FitConfig.load(CONFIG, {"charges.method": "gasteiger", "output.directory": str(tmp_path)}))
    test = result.metrics["test"]
    assert test["force_rmse_fitted"] < 0.9 * test["force_rmse_initial"]
    assert test["energy_rmse_fitted"] < test["energy_rmse_initial"]
