"""The posterior: exact where the problem is linear, calibrated over many refits where it is not."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offjax.errors import InputError
from offjax.fit import FitConfig, driver, sampling, uncertainty

from .conftest import conformers, molecule, write_spice

N_CONFORMERS, N_ATOMS, REFITS = 10, 6, 200
ENERGY_NOISE, FORCE_NOISE = 0.5, 80.0
"""kJ/mol and kJ/mol/nm."""
PARAMETERS = [
    {"path": "Bonds/k", "patterns": ["b14"], "prior": 40.0},
    {"path": "Bonds/length", "patterns": ["b14"], "prior": 0.01},
    {"path": "Angles/k", "patterns": ["a28"], "prior": 20.0},
    {"path": "Angles/angle", "patterns": ["a28"], "prior": 5.0},
]


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    """Methanol, its C-O bond stretched by a little: one-sided data, which hardly tell k from the length."""
    made = molecule("methanol")
    x = conformers(made, N_CONFORMERS, 3)
    along = x[:, :1] - x[:, 1:2]
    stretch = np.random.default_rng(5).uniform(0.01, 0.03, (N_CONFORMERS, 1, 1))
    x[:, [0, 2, 3, 4]] += stretch * along / np.linalg.norm(along, axis=-1, keepdims=True)
    path = tmp_path_factory.mktemp("posterior") / "methanol.h5"
    numbers = np.array([a.atomic_number for a in made.atoms])
    record = {"smiles": made.to_smiles(mapped=True), "numbers": numbers, "positions": x}
    write_spice(path, {"methanol": record | {"energies": np.zeros(len(x)), "forces": np.zeros(x.shape)}})
    return path


@pytest.fixture(scope="module")
def prepared(data_file):
    """Residuals of unit variance: the weights undo the means over conformers and force components."""
    content = {
        "force_field": "openff-2.2.1.offxml",
        "data": [{"path": str(data_file)}],
        "charges": {"method": "gasteiger"},
        "parameters": PARAMETERS,
        "objective": {
            "energy_scale": ENERGY_NOISE,
            "force_scale": FORCE_NOISE,
            "energy_weight": N_CONFORMERS,
            "force_weight": 3 * N_ATOMS * N_CONFORMERS,
        },
    }
    config = FitConfig.from_dict(content)
    data = driver.prepare(config)
    return config, data, data.objective(config)


def synthetic(objective, truth, rng, energy_noise=ENERGY_NOISE, force_noise=FORCE_NOISE):
    """The data of a force field at ``truth`` with independent noise."""
    targets = objective.data.targets
    at = objective.parts(truth)
    energies, forces = at.energies, at.forces
    energies = targets.relative(energies + energy_noise * rng.normal(size=energies.shape))
    return replace(targets, energies=energies, forces=forces + force_noise * rng.normal(size=forces.shape))


def refit(objective, x):
    """Gauss-Newton to convergence."""
    for _ in range(20):
        _, gradient, hessian = objective.gauss_newton(x)
        step = jnp.linalg.solve(hessian, gradient)
        x = x - step
        if np.abs(step).max() < 1e-9:
            return x
    raise AssertionError("no convergence")


def coverage(prepared, noise, energy_noise, force_noise, seed):
    """Errors of REFITS fits in standard errors: of each parameter, and of a prediction that mixes all of them."""
    config, data, start = prepared
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(REFITS):
        truth = jnp.asarray(rng.normal(size=len(data.free)))  # x is in widths of the priors
        objective = data.objective(config)
        targets = synthetic(start, truth, rng, energy_noise, force_noise)
        objective.data = replace(objective.data, targets=targets)
        x = refit(objective, jnp.zeros(len(truth)))
        p = uncertainty.laplace(objective, x, noise=noise)
        mixed = np.ones(len(truth)) / data.free.scales
        error = objective.theta(x) - start.theta(truth)
        found.append([*(error / p.standard_errors), mixed @ error / np.sqrt(mixed @ p.covariance @ mixed)])
    assert np.abs(p.correlation - np.eye(len(p))).max() > 0.8
    return np.array(found)


@pytest.mark.parametrize(
    "noise, energy_noise, force_noise",
    [("scales", ENERGY_NOISE, FORCE_NOISE), ("residuals", 3 * ENERGY_NOISE, 0.5 * FORCE_NOISE)],
)
def test_intervals_cover_what_they_say(prepared, noise, energy_noise, force_noise):
    z = np.abs(coverage(prepared, noise, energy_noise, force_noise, seed=11))
    for level, width in ((0.6827, 1.0), (0.95, 1.96)):
        sampling = np.sqrt(level * (1 - level) / REFITS)
        covered = np.mean(z < width, axis=0)
        np.testing.assert_allclose(covered, level, atol=3.5 * sampling)
    if noise == "residuals":  # the scales of the configuration would not do
        z = np.abs(coverage(prepared, "scales", energy_noise, force_noise, seed=11))
        assert np.abs(np.mean(z < 1.0, axis=0) - 0.6827).max() > 0.1


def test_draws_of_the_posterior_agree_with_laplace_where_it_is_nearly_gaussian(prepared, tmp_path):
    pytest.importorskip("blackjax")
    config, data, _ = prepared
    objective = data.objective(config)
    truth = jnp.asarray([0.3, -0.2, 0.1, 0.4])
    objective.data = replace(objective.data, targets=synthetic(objective, truth, np.random.default_rng(2)))
    x = refit(objective, jnp.zeros(4))
    found = sampling.of_objective(objective, x, draws=60, chains=2, warmup=20)
    assert found.theta.shape == (2, 60, 4) and found.r_hat.max() < 1.2
    error = (found.mean - found.laplace.theta) / found.laplace.standard_errors
    assert np.abs(error).max() < 5 / np.sqrt(found.effective.min())
    np.testing.assert_allclose(found.standard_deviations, found.laplace.standard_errors, rtol=0.45)
    found.write(tmp_path)
    assert len((tmp_path / "samples.csv").read_text().splitlines()) == 5
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npz")["theta"], found.theta)


def test_the_covariance_is_the_inverse_of_the_fits_matrix(prepared):
    _, data, objective = prepared
    x = jnp.asarray([0.3, -0.2, 0.1, 0.4])
    found = uncertainty.laplace(objective, x)
    _, _, hessian = objective.gauss_newton(x)
    expected = np.linalg.inv(hessian) * np.outer(data.free.scales, data.free.scales)
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-8)
    np.testing.assert_allclose(found.standard_errors**2, np.diag(expected), rtol=1e-8)
    np.testing.assert_allclose(found.learned, 1 - np.diag(expected) / data.free.widths**2, rtol=1e-8)
    eigenvalues, directions = found.spectrum
    np.testing.assert_allclose((directions * eigenvalues) @ directions.T, hessian - np.eye(4), rtol=1e-7, atol=1e-6)
    assert [kind.n_residuals for kind in found.kinds] == [N_CONFORMERS - 1, 3 * N_ATOMS * N_CONFORMERS]
    again = uncertainty.from_gauss_newton(objective, x)
    np.testing.assert_allclose(again.covariance, expected, rtol=1e-8)
    np.testing.assert_allclose(again.spectrum[0], eigenvalues, rtol=1e-7, atol=1e-6)
    draws = found.sample(20000, seed=1)
    np.testing.assert_allclose(draws.std(axis=0), found.standard_errors, rtol=0.03)

    energy, positions = data.systems[0].to_jax(), data.records[0].positions
    value, error = found.propagate(lambda p: {"energies": jax.vmap(energy, (None, 0))(p, positions)})

    def energies(theta):
        return np.asarray(jax.vmap(energy, (None, 0))(found.selection.insert(theta), positions))

    steps = 1e-3 * np.diag(found.standard_errors)
    jacobian = [(energies(found.theta + h) - energies(found.theta - h)) / (2 * h.max()) for h in steps]
    np.testing.assert_allclose(value["energies"], energies(found.theta), rtol=1e-12)
    np.testing.assert_allclose(error["energies"] ** 2, np.diag(np.transpose(jacobian) @ expected @ jacobian), rtol=1e-5)


def test_what_nothing_determines_has_no_error(prepared):
    _, data, objective = prepared
    found = uncertainty.laplace(objective, jnp.zeros(4))
    # the data know the sum of the first two; neither has a prior
    known = np.zeros((4, 4))
    known[:2, :2], known[2, 2] = 4.0, 9.0
    prior = np.array([0.0, 0.0, 1.0, 1.0])
    matrices = {"information": known, "fitted": known + np.diag(prior), "spread": known + np.diag(prior)}
    loose = replace(found, widths=np.where(prior, found.widths, np.inf), prior=prior, **matrices)
    assert np.isinf(loose.standard_errors).tolist() == [True, True, False, False]
    np.testing.assert_allclose(loose.learned[2:], [0.9, 0.0], atol=1e-12)
    assert np.isnan(loose.learned[:2]).all() and loose.n_determined == 2
    with pytest.raises(InputError, match="Bonds/k b14.*no covariance; give them a prior"):
        loose.propagate(lambda p: p["Bonds"]["k"])
    np.testing.assert_allclose(np.abs([c for _, c in loose.direction(1, 2)]), np.sqrt(0.5))

    known[0, 1] = known[1, 0] = 3.9
    tied = replace(found, **{**matrices, "information": known, "fitted": known, "spread": known}, prior=np.zeros(4))
    tied.fitted[3, 3] = 1.0
    assert tied.groups() == [[0, 1]]
    assert tied.table()["group"].tolist()[:2] == [1, 1]


def test_noise_that_cannot_be_estimated_or_is_unknown(prepared):
    _, _, objective = prepared
    with pytest.raises(InputError, match='"scales" or "residuals", got \'chi\''):
        uncertainty.laplace(objective, jnp.zeros(4), noise="chi")


def test_logarithmic_values_and_l1_priors(prepared):
    config, data, objective = prepared
    blocks = [b.model_copy(update={"transform": "log", "prior_form": "l1"} if b.path.endswith("k") else {})
              for b in config.parameters]  # fmt: skip
    names = [record.inchikey for record in data.records]
    free = driver.free_parameters.choose(config.model_copy(update={"parameters": blocks}), data.systems, names)
    changed = replace(data, free=free).objective(config)
    assert changed.free.log.tolist() == changed.free.l1.tolist() == [True, False, True, False]
    truth = jnp.asarray([1.5, 0.4, -0.8, 0.6])
    changed.data = replace(changed.data, targets=synthetic(changed, truth, np.random.default_rng(7)))

    x = jnp.asarray([0.7, -0.2, 0.3, 0.4])
    _, gradient, _ = changed.gauss_newton(x)
    steps = 1e-4 * np.eye(4)
    difference = [float(changed.value(x + h) - changed.value(x - h)) / 2e-4 for h in steps]
    np.testing.assert_allclose(gradient, difference, rtol=1e-5, atol=1e-5 * np.abs(difference).max())
    optimizer = driver.make_optimizer(config)
    state = optimizer.init(changed, jnp.zeros(4))
    for _ in range(60):
        state, info = optimizer.step(changed, state)
        if info.stop:
            break
    assert info.gradient < 1e-3
    found = uncertainty.laplace(changed, state.x)
    factors = free.factors(state.x)
    hessian = np.asarray(changed.gauss_newton(state.x)[2])
    np.testing.assert_allclose(found.covariance, np.linalg.inv(hessian) * np.outer(factors, factors), rtol=1e-6)
    errors = (free.theta(state.x) - free.theta(truth)) / found.standard_errors
    assert np.abs(errors).max() < 4
