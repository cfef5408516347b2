"""Fits whose data are computed in parts that take turns in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offjax import InputError
from offjax.fit import FitConfig, driver, run
from offjax.fit.shards import AccumulatedObjective, accumulated
from offjax.interop import reading, spill


def test_spilled_arrays_are_what_they_were(tmp_path, rng):
    arrays = [rng.normal(size=shape) for shape in ((3, 4, 3), (0, 5, 3), (2,), (1, 1))]
    found = spill.spill(arrays, tmp_path)
    for a, b in zip(arrays, found, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.shape == b.shape and not b.flags.writeable
    assert spill.spill([], tmp_path) == [] and not list(tmp_path.iterdir())
    del found, b


@pytest.mark.parametrize("block", [0, 1000, spill.BLOCK])
def test_records_that_lie_in_files(block, data_file, tmp_path, monkeypatch):
    monkeypatch.setattr(spill, "BLOCK", block)
    here, there = reading.read(data_file), reading.read(data_file, folder=tmp_path)
    assert [r.digest for r in there.records] == [r.digest for r in here.records] and len(here.records) == 3
    assert there.problems == here.problems
    assert not any(a.flags.owndata or a.flags.writeable for r in there.records for a in (r.positions, r.forces))


@pytest.fixture(scope="module")
def prepared(data_file, tmp_path_factory):
    from .conftest import config_text

    folder = tmp_path_factory.mktemp("parts")
    path = folder / "fit.toml"
    path.write_text(config_text(data_file, prior="20.0") + "\n[objective]\nparts = 2\n")
    config = FitConfig.load(path)
    with jax.enable_x64(True):
        yield config, driver.prepare(config, folder=folder)


def test_parts_add_up_to_the_objective(prepared, rng, tmp_path):
    config, data = prepared
    alone, parts = data.objective(config), accumulated(config, data)
    assert isinstance(parts, AccumulatedObjective) and len(parts.shards) == 2
    x = jnp.asarray(rng.normal(scale=0.1, size=len(alone)))
    for method in ("value_and_gradient", "gauss_newton"):
        for a, b in zip(getattr(alone, method)(x), getattr(parts, method)(x), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-9 * np.abs(a).max())
    whole, pieces = alone.parts(x), parts.parts(x)
    np.testing.assert_allclose(pieces.value, whole.value, rtol=1e-12)
    for a, b in zip(data.unpack(whole), data.unpack(pieces), strict=True):
        for own, other in zip(a, b, strict=True):
            np.testing.assert_allclose(other, own, rtol=1e-10, atol=1e-9)
    assert data.errors(pieces)["train"] == pytest.approx(data.errors(whole)["train"], rel=1e-9)


def test_a_frame_of_other_parts_is_refused(prepared):
    _, data = prepared
    counts = [r.n_conformers for r in data.records]
    frame = data.batch.frame([[0]], counts)
    with pytest.raises(InputError, match="than the frame has room for"):
        data.batch.pack([r.positions for r in data.records], frame=frame)


def test_parts_share_one_program(prepared):
    config, data = prepared
    objective = accumulated(config, data)
    shapes = []
    for stored in objective._stored:
        with stored.loaded() as one:
            shapes.append([leaf.shape for leaf in jax.tree.leaves(one.data)])
        assert one.data is None  # nothing of it stays in memory
    assert len(shapes) == 2 and shapes[0] == shapes[1]


PARTS = "\n[objective]\nparts = 3\n"


@pytest.mark.parametrize("method", ["levenberg-marquardt", "l-bfgs", "adam"])
def test_a_whole_fit_resumed(method, make_config):
    options = {"method": method, "iterations": 4, "prior": "20.0"}
    alone = run(FitConfig.load(make_config(**options, output="alone", name="alone.toml")))
    config = make_config(**options, output="parts", name="parts.toml", extra=PARTS)
    run(FitConfig.load(config, {"optimizer.max_iterations": 2}))
    parts = run(FitConfig.load(config), resume=True)
    np.testing.assert_allclose(parts.fitted.to_vector(), alone.fitted.to_vector(), rtol=1e-6)
    for a, b in zip(alone.molecules, parts.molecules, strict=True):
        np.testing.assert_allclose(b.forces_fitted, a.forces_fitted, rtol=1e-5, atol=1e-3)
    assert not list(parts.directory.glob("parts-*"))


def test_what_parts_do_not_go_with_is_refused(make_config):
    for extra, words in (("\n[workers]\ncount = 2\n", r"\[workers\]"), ("\n[network]\n", r"\[network\]")):
        with pytest.raises(InputError, match=f"objective.parts cannot be combined with {words}"):
            FitConfig.load(make_config(method="l-bfgs", extra=PARTS + extra))
    with pytest.raises(InputError, match="objective.parts cannot be combined with optimizer.minibatch"):
        FitConfig.load(make_config(method="adam", extra=PARTS), {"optimizer.minibatch": 2})
