"""Fits whose molecules are shared by Dask workers in other processes."""

import os
import signal

import dask
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offjax import InputError
from offjax.fit import FitConfig, distributed, driver, run

WORKERS = "\n[workers]\ncount = 2\nshards = 3\n"


@pytest.fixture(scope="module")
def both(data_file, tmp_path_factory):
    """The objective in this process, and the same computed by two workers."""
    from .conftest import config_text

    folder = tmp_path_factory.mktemp("shared")
    (folder / "out").mkdir()
    path = folder / "fit.toml"
    path.write_text(config_text(data_file, prior="20.0") + WORKERS)
    config = FitConfig.load(path)
    still = {"distributed.scheduler.work-stealing": False}  # idle workers take no shards from those that compile
    with jax.enable_x64(True), dask.config.set(still):
        prepared = driver.prepare(config)
        with distributed.shared(config, prepared) as objective:
            yield prepared.objective(config), objective


def test_sums_over_shards_are_the_objective(both, rng):
    alone, shared = both
    x = jnp.asarray(rng.normal(scale=0.1, size=len(alone.start)))
    for method in ("value_and_gradient", "gauss_newton", "parts"):
        found = (jax.tree.leaves(getattr(objective, method)(x)) for objective in (alone, shared))
        for a, b in zip(*found, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-9 * np.abs(a).max())
    value, gradient = jax.jit(jax.value_and_grad(shared.scalar))(x, None)
    np.testing.assert_allclose(value, alone.value(x), rtol=1e-12)
    np.testing.assert_allclose(gradient, alone.value_and_gradient(x)[1], rtol=1e-10, atol=1e-9)


def test_a_point_is_computed_once(both, monkeypatch):
    _, shared = both
    submitted = []
    submit = shared.client.submit
    monkeypatch.setattr(shared.client, "submit", lambda *a, **k: submitted.append(a) or submit(*a, **k))
    x = jnp.full(len(shared.start), 0.01)
    value = shared.value(x)
    assert shared.value(x) == value and len(submitted) == 3
    assert sum(shared.parts(x)[:3]) == value and len(submitted) == 6  # energies and forces, which workers remember
    np.testing.assert_allclose(jax.jit(shared.scalar)(x, None), value, rtol=1e-12)
    assert len(submitted) == 9
    y = x + 0.01
    shared.value_and_gradient(y)  # its sums come with it; the point before is remembered
    assert shared.value(y) == sum(shared.parts(y)[:3]) and len(submitted) == 15
    assert shared.value(x) == value and len(submitted) == 15
    z = x + 0.02
    assert sum(shared.parts(z)[:3]) == shared.value(z) and len(submitted) == 18


def test_workers_remember_the_points_of_the_shards_they_hold(both):
    _, shared = both
    x = np.full(len(shared.start), 0.03)
    shared.value_and_gradient(x)
    remembered = [shared.client.submit(remembers, shard, x, pure=False) for shard in shared.held]
    assert shared.client.gather(remembered) == [True] * 3
    held = shared.client.run(lambda: distributed._objective.cache_info().currsize)
    assert sum(held.values()) == 3 and max(held.values()) == 2


def remembers(shard, x):
    """On a worker: whether it has computed a point."""
    return distributed._objective(shard.path)._known(x) is not None


def test_a_dead_worker_costs_its_tasks_only(both):
    _, shared = both
    x = jnp.zeros(len(shared.start))
    before = shared.gauss_newton(x)
    pids = shared.client.run(os.getpid)
    assert len(set(pids.values()) - {os.getpid()}) == 2
    os.kill(next(iter(pids.values())), signal.SIGKILL)
    for away in (1.0, 2.0):  # the last two points are remembered
        shared.gauss_newton(x + away)
    for a, b in zip(before, shared.gauss_newton(x), strict=True):
        np.testing.assert_array_equal(a, b)


def test_molecules_that_kill_workers_are_named(make_config, monkeypatch):
    def die(file, x):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(distributed, "ALLOWED_FAILURES", 0)
    config = FitConfig.load(make_config(prior="20.0", extra="\n[workers]\nshards = 2\n"))
    config.output.directory.mkdir()
    with jax.enable_x64(True):
        prepared = driver.prepare(config)
        with distributed.shared(config, prepared) as objective:
            assert sorted(sum(objective.contents, [])) == sorted(record.name for record in prepared.records)
            with pytest.raises(
                InputError, match=r"1 workers died .* same \d molecules \((methanol|ethane|formaldehyde)"
            ):
                objective._all(die, objective.start)


@pytest.mark.parametrize("method", ["levenberg-marquardt", "l-bfgs"])
def test_a_whole_fit(method, make_config):
    options = {"method": method, "iterations": 4, "prior": "20.0"}
    alone = run(FitConfig.load(make_config(**options, output="alone", name="alone.toml")))
    shared = run(FitConfig.load(make_config(**options, output="shared", name="shared.toml", extra=WORKERS)))
    np.testing.assert_allclose(shared.fitted.to_vector(), alone.fitted.to_vector(), rtol=1e-6)
    assert not list(shared.directory.glob("workers-*"))


def test_errors_name_the_key(make_config):
    with pytest.raises(InputError, match=r"minibatch cannot be combined with \[workers\]"):
        FitConfig.load(make_config(method="adam", extra=WORKERS), {"optimizer.minibatch": 2})
    with pytest.raises(InputError, match="workers.address"):
        run(FitConfig.load(make_config(extra='\n[workers]\naddress = "tcp://127.0.0.1:1"\n')))
    with pytest.raises(InputError, match=r"workers.options: .*'memroy'"):
        run(FitConfig.load(make_config(extra='\n[workers]\ncount = 2\noptions = {memroy = "2GB"}\n')))


DIES = """
import os, pathlib
def dask_setup(worker):
    starts = pathlib.Path({marker!r})
    n = len(starts.read_text()) if starts.exists() else 0
    starts.write_text("x" * (n + 1))
    if n < {times}:
        os._exit(1)
"""


@pytest.mark.parametrize("times", [1, 100])
def test_workers_that_die_as_they_start(times, make_config, tmp_path):
    script, marker = tmp_path / "dies.py", tmp_path / "starts"
    script.write_text(DIES.format(marker=str(marker), times=times))
    extra = f"\n[workers]\ncount = 1\nshards = 1\noptions = {{preload = {str(script)!r}}}\n"
    config = FitConfig.load(make_config(prior="20.0", extra=extra))
    config.output.directory.mkdir()
    with jax.enable_x64(True):
        prepared = driver.prepare(config)
        if times == 1:
            with distributed.shared(config, prepared) as objective:
                assert float(objective.value(objective.start)) > 0
            assert len(marker.read_text()) >= 2  # a nanny may try again by itself
        else:
            with (
                pytest.raises(InputError, match="workers: processes died as they started, 3 times"),
                distributed.shared(config, prepared),
            ):
                pass
            assert len(marker.read_text()) >= 3
