"""What all tests share: double precision, as the command line and the fitting drivers use it."""

import gc
import os
from pathlib import Path

import jax
import numpy as np
import pytest

jax.config.update("jax_enable_x64", True)
# XLA's older emitters compile in two thirds of the time (with XLA_FLAGS= in the environment the others are tested).
if jax.__version_info__ < (0, 11):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
# Most of the time of the tests is compilation: keep the programs from one run to the next.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture
def rng():
    return np.random.default_rng(20)


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory):
    """Charges are computed afresh in a test run, and cached within it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFFJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """Drops compiled programs between files: each has some memory maps, and XLA aborts beyond the 65,530 of Linux."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()
