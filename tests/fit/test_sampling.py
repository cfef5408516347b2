"""Draws of the posterior: exact moments where it is a Gaussian, and runs that go on where they were stopped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offjax import InputError
from offjax.fit import sampling
from offjax.fit.progress import Silent

pytest.importorskip("blackjax")

COVARIANCE = np.array([[1.0, 0.9, 0.0], [0.9, 1.2, -0.3], [0.0, -0.3, 4.0]])
CENTRE = np.array([0.5, -1.0, 2.0])
FAR = np.full(3, np.inf)


def quadratic(x, precision):
    return 0.5 * (x - CENTRE) @ precision @ (x - CENTRE)


def draw(progress=None, covariance=COVARIANCE, upper=FAR, **options):
    with jax.enable_x64(True):
        precision = jnp.linalg.inv(COVARIANCE)
        return sampling.sample(
            quadratic, precision, CENTRE, covariance, -FAR, upper, progress=progress, warmup=100, **options
        )


@pytest.fixture(scope="module")
def gaussian():
    return draw(draws=500, chains=4, seed=5)


def test_moments_of_a_gaussian_are_exact_within_sampling_error(gaussian):
    x = gaussian.x.reshape(-1, 3)
    effective = sampling.effective(gaussian.x)
    errors = np.sqrt(np.diag(COVARIANCE) / effective)
    assert np.all(np.abs(x.mean(axis=0) - CENTRE) < 4 * errors) and effective.min() > 500
    np.testing.assert_allclose(np.cov(x.T), COVARIANCE, atol=4 * 4.0 * np.sqrt(2 / effective.min()))
    assert 0.7 < gaussian.acceptance.mean() < 0.95 and not gaussian.divergent.any()
    assert sampling.r_hat(gaussian.x).max() < 1.02


def test_effective_draws_of_a_known_process():
    """An autoregressive process x_t = a x_(t-1) + noise has (1 - a) / (1 + a) independent draws for each draw."""
    rng = np.random.default_rng(0)
    for a in (0.0, 0.5, 0.9, -0.5):
        x = np.zeros((4, 20000, 1))
        noise = rng.normal(size=x.shape)
        x[:, 0] = noise[:, 0] / np.sqrt(1 - a**2)
        for t in range(1, x.shape[1]):
            x[:, t] = a * x[:, t - 1] + noise[:, t]
        assert sampling.effective(x)[0] == pytest.approx(80000 * (1 - a) / (1 + a), rel=0.12)
        assert sampling.r_hat(x)[0] < 1.01
    x[0] += 3.0  # one chain elsewhere
    assert sampling.r_hat(x)[0] > 1.1 and sampling.effective(x)[0] < 100


class Stop(Silent):
    """Ctrl-C after some transitions."""

    def __init__(self, after):
        self.left = after

    def advance(self, text=""):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_a_run_that_is_stopped_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "PAUSE", -1.0)
    path = tmp_path / "samples.npz"
    whole = draw(draws=30, chains=2, seed=3)
    for after in (50, 140):
        with pytest.raises(KeyboardInterrupt):
            draw(Stop(after), draws=30, chains=2, seed=3, path=path)
    again = draw(draws=30, chains=2, seed=3, path=path)
    for a, b in zip(whole, again, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="samples of another fit, or with other numbers"):
        draw(draws=31, chains=2, seed=3, path=path)


def test_no_draw_lies_outside_the_bounds():
    upper = np.array([0.6, np.inf, np.inf])
    found = draw(draws=300, chains=2, seed=1, upper=upper)
    assert found.x[..., 0].max() <= 0.6 and found.x[..., 0].min() < -0.5
    # of a Gaussian of width 1 around 0.5 that ends at 0.6, the mean is
    z = 0.1
    expected = 0.5 - np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi) / 0.5398278
    assert abs(found.x[..., 0].mean() - expected) < 0.12
