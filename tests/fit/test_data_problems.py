"""A fit says which reference data it does without."""

import numpy as np
import pytest

from offjax.errors import InputError
from offjax.fit import FitConfig, driver

from .conftest import write_spice


def test_a_fit_reports_the_records_that_it_cannot_use(records, make_config, tmp_path):
    bad = records["ethane"] | {"energies": np.full(3, np.nan)}
    write_spice(tmp_path / "bad.h5", records | {"ethane": bad})
    strict = make_config()
    strict.write_text(strict.read_text().replace(str(FitConfig.load(strict).data[0].path), str(tmp_path / "bad.h5")))
    with pytest.raises(InputError, match="'ethane', dft_total_energy: 3 values are not finite"):
        driver.prepare(FitConfig.load(strict))
    strict.write_text(strict.read_text().replace("[charges]", 'on_error = "report"\n[charges]'))
    config = FitConfig.load(strict)
    data = driver.prepare(config)
    assert [r.name for r in data.records] == ["formaldehyde", "methanol"]
    [problem] = data.header(config)["problems"]
    assert problem[1:3] == ["ethane", "rejected"] and "not finite" in problem[3]

    write_spice(tmp_path / "bad.h5", {"ethane": bad})
    with pytest.raises(InputError, match="no record can be used; 1 problems, the first: .*'ethane'"):
        driver.prepare(config)
