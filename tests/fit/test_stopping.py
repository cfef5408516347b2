"""Early stopping: the fit ends when molecules that it does not train on no longer gain from it, at their best point."""

import json

import numpy as np
import pytest

from offjax.errors import InputError
from offjax.fit import FitConfig, FitResult, driver, fold, run, stopping
from offjax.fit.config import Objective
from offjax.fit.stopping import Kept


def test_the_best_point_is_kept():
    kept = Kept.first(np.zeros(1), 3.0)
    for n, loss in enumerate((2.0, 2.5, 1.0, 1.0, 4.0), start=1):
        kept = kept.after(np.full(1, float(n)), loss)
    assert float(kept.x[0]) == 3.0 and float(kept.loss) == 1.0 and int(kept.waited) == 2
    without = Kept.first(np.zeros(1), None).after(np.ones(1), None).after(np.full(1, 2.0), None)
    assert float(without.x[0]) == 2.0 and int(without.waited) == 0


def test_the_loss_is_that_of_the_objective():
    weights = Objective(energy_weight=2.0, energy_scale=4.0, force_weight=3.0, force_scale=100.0)
    errors = {"energy_rmse": 8.0, "force_rmse": 50.0}
    assert stopping.loss(errors, weights) == pytest.approx(0.5 * (2 * 4 + 3 * 0.25))
    assert stopping.loss(errors | {"force_rmse": None}, weights) == pytest.approx(4.0)
    assert stopping.loss({"energy_rmse": None, "force_rmse": None}, weights) is None


def test_a_fit_ends_at_the_lowest_validation_loss(make_config, tmp_path, records):
    plain = FitConfig.load(make_config(method="adam", prior='"30%"', iterations=60))
    names = {r.name: fold(r.inchikey, 7) for r in driver.prepare(plain).records}
    chosen = names["ethane"]
    assert list(names.values()).count(chosen) == 1
    # steps far too long: the error falls at first, then rises
    path = make_config(
        method="adam",
        prior='"30%"',
        iterations=60,
        extra=f"\n[split]\nfolds = 7\nvalidation_fold = {chosen}\npatience = 2\n",
    )
    path.write_text(path.read_text().replace("[optimizer]", "[optimizer]\nlearning_rate = 1.0"))
    result = run(FitConfig.load(path))
    losses = [entry["validation_loss"] for entry in result.history]
    assert result.stopped == "the validation loss has not fallen for 2 iterations"
    best = int(np.argmin(losses))
    assert 0 < best == len(losses) - 3
    found = result.metrics["validation"]
    assert found["energy_rmse_fitted"] == pytest.approx(result.history[best]["energy_rmse_validation"], rel=1e-9)
    assert found["force_rmse_fitted"] == pytest.approx(result.history[best]["force_rmse_validation"], rel=1e-9)
    assert {m.name: m.split for m in result.molecules}["ethane"] == "validation"
    header = json.loads((result.directory / "log.jsonl").read_text().splitlines()[0])
    assert header["validation"] == ["ethane"] and "ethane" not in header["train"] + header["test"]

    again = run(FitConfig.load(path), resume=True)  # a finished fit stays as it is
    np.testing.assert_array_equal(again.fitted.to_vector(), result.fitted.to_vector())
    assert len(again.history) == len(result.history) and again.stopped == result.stopped
    assert FitResult.load(result.directory).metrics == result.metrics


def test_splits_that_cannot_be(make_config):
    path = make_config()
    for split, message in (
        ({"split.folds": 4, "split.validation_fold": 4}, "validation_fold must be below folds = 4"),
        ({"split.holdout_fold": 1, "split.validation_fold": 1}, "must differ: what ends the fit is not unseen"),
    ):
        with pytest.raises(InputError, match=message):
            FitConfig.load(path, split)
