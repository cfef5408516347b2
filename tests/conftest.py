"""What all tests share: double precision, as the command line and the fitting drivers use it."""

from pathlib import Path

import jax
import numpy as np
import pytest

jax.config.update("jax_enable_x64", True)
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
