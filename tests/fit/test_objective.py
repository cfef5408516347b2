"""The objective: its equation, written out in NumPy, and its derivatives."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offjax.fit import FitConfig, driver, metrics
from offjax.fit import objective as objective_module

from .conftest import true_parameters

EXTRA = """
[[parameters]]
path = "ProperTorsions/k"
prior = 0.4

[[parameters]]
path = "vdW/epsilon"
prior = "20%"

[objective]
energy_weight = 2.0
energy_scale = 3.0
force_weight = 0.7
force_scale = 150.0
prior_weight = 0.5
energy_reference = "{reference}"
{temperature}
"""


@pytest.fixture
def prepared(make_config):
    def make(reference="mean", temperature="", split=""):
        path = make_config(prior='"15%"', extra=EXTRA.format(reference=reference, temperature=temperature) + split)
        config = FitConfig.load(path)
        data = driver.prepare(config)
        return config, data, data.objective(config)

    return make


@pytest.mark.parametrize(
    "reference, temperature",
    [("mean", ""), ("min", ""), ("mean", "temperature = 600.0"), ("min", "temperature = 600.0")],
)
def test_the_equation(prepared, reference, temperature):
    _, data, objective = prepared(reference, temperature, "[split]\nfolds = 2\nholdout_fold = 1")
    assert 0 < data.train.sum() < 3
    x = np.random.default_rng(3).normal(scale=0.5, size=len(data.free))
    p = objective.data.at(jnp.asarray(x))
    total = 0.0
    for record, system, train in zip(data.records, data.systems, data.train, strict=True):
        if not train:
            continue
        u, g = jax.vmap(jax.value_and_grad(system.to_jax(), 1), (None, 0))(p, record.positions)
        u, e = np.asarray(u), record.energies
        a = np.ones(len(e)) / len(e)
        if temperature:
            a = np.exp(-(e - e.min()) / (8.31446261815324e-3 * 600.0))
            a /= a.sum()
        du, de = (u - a @ u, e - a @ e) if reference == "mean" else (u - u[e.argmin()], e - e.min())
        total += 2.0 * np.sum(a * ((du - de) / 3.0) ** 2)
        total += 0.7 * np.sum(a * np.mean(((-g - record.forces) / 150.0) ** 2, axis=(1, 2)))
    shift = np.asarray(p.to_vector() - data.free.selection.parameters.to_vector())[data.free.selection.indices]
    total += 0.5 * np.sum((shift / data.free.widths) ** 2)
    np.testing.assert_allclose(objective.value(jnp.asarray(x)), total / 2, rtol=1e-10)


def test_derivatives(prepared):
    _, data, objective = prepared()
    n = len(data.free)
    assert {label.section for label in data.free.selection.labels} == {"Bonds", "Angles", "ProperTorsions", "vdW"}
    x = jnp.asarray(np.random.default_rng(4).normal(scale=0.3, size=n))
    value, gradient = objective.value_and_gradient(x)
    np.testing.assert_allclose(value, objective.value(x), rtol=1e-12)

    def difference(i, h):
        step = h * jnp.eye(n)[i]
        return (objective.value(x + step) - objective.value(x - step)) / (2 * h)

    expected = [(4 * difference(i, 5e-4) - difference(i, 1e-3)) / 3 for i in range(n)]
    scale = np.sqrt(np.mean(np.square(gradient)))
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-6 * scale)
    value, by_jacobian, hessian = objective.gauss_newton(x)
    np.testing.assert_allclose(by_jacobian, gradient, rtol=1e-9, atol=1e-9 * scale)
    residuals = jax.jit(objective_module.residuals)

    def column(direction, h):
        return (residuals(x + h * direction, objective.data) - residuals(x - h * direction, objective.data)) / (2 * h)

    jacobian = np.array([(4 * column(e, 5e-4) - column(e, 1e-3)) / 3 for e in jnp.eye(n)[:3]])
    np.testing.assert_allclose(hessian[:3, :3], jacobian @ jacobian.T, rtol=1e-7, atol=1e-7)


def test_the_true_parameters_have_no_error(prepared):
    _, data, objective = prepared()
    theta = np.asarray(true_parameters(data.free.selection.parameters).to_vector())[data.free.selection.indices]
    parts = objective.parts(jnp.asarray((theta - objective.start) / objective.scales))
    assert parts.energy < 1e-12 and parts.force < 1e-12
    errors = data.errors(parts)["train"]
    assert errors["energy_rmse"] < 1e-6 and errors["force_rmse"] < 1e-6


def test_minibatches_average_to_the_whole(make_config):
    path = make_config(method="adam", prior='"15%"')
    config = FitConfig.load(path, {"optimizer.minibatch": 2})
    data = driver.prepare(config)
    objective = data.objective(config)
    x = jnp.full(len(data.free), 0.2)
    parts = objective.minibatches(0)
    assert len(parts) == 2
    value, gradient = objective.value_and_gradient(x)
    both = [objective.value_and_gradient(x, part) for part in parts]
    np.testing.assert_allclose(np.mean([v for v, _ in both]), value, rtol=1e-12)
    np.testing.assert_allclose(np.mean([g for _, g in both], axis=0), gradient, rtol=1e-10)
    again = [np.asarray(p.targets.energy_factor) for p in objective.minibatches(0)]
    for a, b in zip(again, parts, strict=True):
        np.testing.assert_array_equal(a, b.targets.energy_factor)


TWO_DEVICES = """
import sys
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)
from offjax.fit import FitConfig, driver

config = FitConfig.load(sys.argv[1], {"optimizer.minibatch": 2})
objective = driver.prepare(config).objective(config)
x = np.linspace(-1e-3, 1e-3, len(objective))
known, gradient = objective.value_and_gradient(x)
packed = objective.data.targets
assert len(packed.conformers.packed.devices()) == len(packed.forces.devices()) == 2
parts = [objective.value_and_gradient(x, part)[0] for part in objective.minibatches(0)]
assert len(parts) == 2
print(float(known), float(np.sum(np.asarray(gradient) ** 2)), float(np.mean(parts)))
"""


def test_two_devices_share_the_reference_data_and_minibatches(make_config):
    path = make_config(method="adam", prior="20.0")
    ran = subprocess.run([sys.executable, "-c", TWO_DEVICES, str(path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    config = FitConfig.load(path)
    objective = driver.prepare(config).objective(config)
    value, gradient = objective.value_and_gradient(np.linspace(-1e-3, 1e-3, len(objective)))
    found = [float(v) for v in ran.stdout.split()]
    np.testing.assert_allclose(found, [value, np.sum(np.asarray(gradient) ** 2), value], rtol=1e-10)


def test_rmse_counts_molecules_equally():
    energies = [np.array([1e6, 1e6 + 2.0]), np.array([5.0, 5.0, 5.0, 5.0])]
    reference = [np.array([0.0, 0.0]), np.array([-4e5] * 4)]
    assert metrics.energy_rmse(energies, reference) == pytest.approx(np.sqrt(0.5))
    assert metrics.energy_rmse([], []) is None
    assert metrics.force_rmse([np.ones((1, 2, 3)), np.ones((1, 2, 3))], [np.zeros((1, 2, 3)), None]) == 1.0
