"""Fits of a network that corrects the force field: what it adds, its derivatives, drivers, files and refusals."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offjax import InputError, UnsupportedError, md
from offjax.fit import FitConfig, FitResult, driver, posterior, run
from offjax.fit.distributed import shared
from offjax.md.neural import BehlerParrinello, Corrected, ElementNetwork, SymmetryFunctions

from .conftest import config_text

NETWORK = """
[split]
folds = 2
holdout_fold = 1

[network]
cutoff = 0.3
radial = 3
angular = [2]
hidden = [4]
scale = 0.3
{more}
"""

LEARNING = """
prior = 20.0
[objective]
force_scale = 20.0
"""


@pytest.fixture
def make(make_config):
    """``make(method="l-bfgs", more="", extra="", **options)`` -> a FitConfig with a small network."""

    def made(method="l-bfgs", more="", extra="", **options):
        options = {"prior": '"15%"'} | options
        return FitConfig.load(make_config(method=method, extra=NETWORK.format(more=more) + extra, **options))

    return made


@pytest.fixture
def prepared(make):
    config = make()
    data = driver.prepare(config)
    return config, data, data.objective(config)


def somewhere(objective, seed=3):
    return jnp.asarray(np.random.default_rng(seed).normal(scale=0.4, size=len(objective)))


def test_energies_and_forces_are_those_of_corrected_systems(prepared):
    _, data, objective = prepared
    x = somewhere(objective)
    energies, forces = data.unpack(objective.parts(x))
    p, network = objective.data.at(x), objective.network(x)
    for m, (record, system) in enumerate(zip(data.records, data.systems, strict=True)):
        each = jax.jit(jax.vmap(jax.value_and_grad(Corrected(system.to_jax()), 1), (None, 0)))
        numbers = system.topology.atomic_numbers
        u, g = each((p, network.for_atoms(numbers)), record.positions)
        np.testing.assert_allclose(energies[m], u, rtol=1e-12)
        np.testing.assert_allclose(forces[m], -g, rtol=1e-10, atol=1e-8)
        without, _ = each((p, data.network.for_atoms(numbers)), record.positions)
        assert np.abs(u - without).max() > 0.1  # the network does something


def test_a_fit_begins_at_the_force_field(prepared):
    _, data, objective = prepared
    energies, forces = data.unpack(objective.parts(jnp.zeros(len(objective))))
    for m, (record, system) in enumerate(zip(data.records, data.systems, strict=True)):
        each = jax.jit(jax.vmap(jax.value_and_grad(system.to_jax(), 1), (None, 0)))
        u, g = each(system.parameters, record.positions)
        np.testing.assert_allclose(energies[m], u, rtol=1e-12)
        np.testing.assert_allclose(forces[m], -g, rtol=1e-10, atol=1e-8)


def test_the_gradient_against_differences(prepared):
    _, data, objective = prepared
    x = somewhere(objective)
    value, gradient = objective.value_and_gradient(x)
    parts = objective.parts(x)
    np.testing.assert_allclose(value, parts.value, rtol=1e-13)
    k = len(data.free)
    np.testing.assert_allclose(parts.prior, 0.5 * np.sum((np.asarray(objective.data.prior) * np.asarray(x)) ** 2))
    np.testing.assert_allclose(objective.data.prior[k:], 0.3)  # scale / width of the weights' prior
    for seed in range(3):
        v = np.random.default_rng(seed).normal(size=len(x))
        v[:k] *= seed != 1  # once the weights alone, once the force field alone
        v[k:] *= seed != 2
        h = 1e-5
        slope = (objective.value(x + h * v) - objective.value(x - h * v)) / (2 * h)
        np.testing.assert_allclose(slope, gradient @ v, rtol=1e-6)


def test_minibatches_have_the_mean_of_the_whole(make):
    config = make("adam")
    config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"minibatch": 1})})
    config = config.model_copy(update={"split": config.split.model_copy(update={"holdout_fold": None})})
    data = driver.prepare(config)
    objective = data.objective(config)
    x = somewhere(objective)
    value, gradient = objective.value_and_gradient(x)
    found = [objective.value_and_gradient(x, part) for part in objective.minibatches(2)]
    assert len(found) == 3 and len(objective.data.targets.conformers.packed.devices()) == 1
    np.testing.assert_allclose(np.mean([v for v, _ in found]), value, rtol=1e-12)
    np.testing.assert_allclose(np.mean([g for _, g in found], axis=0), gradient, rtol=1e-9, atol=1e-9)


def test_workers_share_the_network(make):
    config = make(extra="[workers]\nshards = 2")
    data = driver.prepare(config)
    own = data.objective(config)
    x = somewhere(own)
    config.output.directory.mkdir(parents=True)
    with shared(config, data) as objective:
        value, gradient = objective.value_and_gradient(x)
        expected = own.value_and_gradient(x)
        np.testing.assert_allclose(value, expected[0], rtol=1e-12)
        np.testing.assert_allclose(gradient, expected[1], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(objective.parts(x).energies, own.parts(x).energies, rtol=1e-12)


def test_a_network_learns_what_is_missing(make, tmp_path):
    """The data are of changed bonds and angles; the network learns them without these, and ends where it resumes."""
    path = tmp_path / "alone.toml"
    text = config_text("DATA", method="adam", iterations=60, output="alone")
    whole = make()
    head, rest = text.split("[[parameters]]", 1)
    body = head.replace('"DATA"', f'"{whole.data[0].path}"') + "[optimizer]" + rest.split("[optimizer]", 1)[1]
    path.write_text("parameters = []\n" + body + NETWORK.format(more=LEARNING))
    result = run(FitConfig.load(path))
    train = result.metrics["train"]
    assert train["force_rmse_fitted"] < 0.7 * train["force_rmse_initial"]
    np.testing.assert_array_equal(result.fitted.to_vector(), result.initial.to_vector())

    # what is written is what was fitted
    again = FitResult.load(result.directory)
    kept = ElementNetwork.load(result.directory / "network.npz")
    for one, other in zip(jax.tree.leaves(result.network), jax.tree.leaves(again.network), strict=True):
        np.testing.assert_array_equal(one, other)
    assert kept.elements == (1, 6, 8)
    for molecule in again.molecules:
        own = kept.for_atoms(molecule.system.topology.atomic_numbers)
        each = jax.jit(jax.vmap(Corrected(molecule.system.to_jax()), (None, 0)))
        u = each((again.fitted, own), molecule.positions)
        np.testing.assert_allclose(u - u.mean(), molecule.energies_fitted, atol=1e-9)
    assert "network.npz" in (result.directory / "fitted.offxml").read_text()

    with pytest.raises(UnsupportedError, match=r"\[network\]"):
        posterior(result)

    # a fit that goes on from it starts where it ended, and one that is interrupted goes on exactly
    more = FitConfig.load(path, {"network": {"start": str(result.directory / "network.npz")}, "output.directory": "b"})
    data = driver.prepare(more)
    objective = data.objective(more)
    energies, _ = data.unpack(objective.parts(jnp.zeros(len(objective))))
    for molecule, u in zip(result.molecules, energies, strict=True):
        np.testing.assert_allclose(u - u.mean(), molecule.energies_fitted, atol=1e-9)
    assert FitConfig.model_validate(more.model_dump(mode="json")) == more.model_copy(update={"source": None})
    run(FitConfig.load(path, {"optimizer.max_iterations": 20, "output.directory": "c"}))
    resumed = run(FitConfig.load(path, {"output.directory": "c"}), resume=True)
    for one, other in zip(jax.tree.leaves(result.network), jax.tree.leaves(resumed.network), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "levenberg-marquardt"}, "l-bfgs"),
        ({"more": "radials = 3"}, "did you mean radial"),
        ({"more": 'start = "network.npz"'}, "leave out the one or the other"),
    ],
)
def test_configurations_that_cannot_be(make, options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_other_kinds_of_data_are_refused(make_config):
    path = make_config(method="l-bfgs", extra=NETWORK.format(more=""))
    path.write_text(path.read_text().replace("[charges]", 'kind = "hessians"\n[charges]'))
    with pytest.raises(InputError, match="corrects data of kind"):
        FitConfig.load(path)


def test_files_that_are_no_networks(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        ElementNetwork.load(tmp_path / "network.npz")
    (tmp_path / "network.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a network"):
        ElementNetwork.load(tmp_path / "network.npz")


def test_elements(tmp_path):
    symmetry = SymmetryFunctions(0.4, ((50.0, 0.1),), ((1.0, 2, -1),))
    network = ElementNetwork.create(symmetry, [6, 1, 8, 1], md.free().displacement, key=jax.random.key(1), hidden=(3,))
    assert network.elements == (1, 6, 8)
    weights = jax.tree.map(lambda a: a + 0.3, network.network)
    network = replace(network, network=weights)
    numbers = [8, 1, 1, 0]
    x = jnp.asarray([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.1, 0.02], [0.01, 0.01, 0.0]])
    # a virtual site is not seen, and species that a molecule does not have change nothing
    water = network.for_atoms(numbers)
    np.testing.assert_allclose(water(x), network.for_atoms(numbers[:3])(x[:3]), rtol=1e-12)
    assert np.all(jax.jit(jax.grad(water))(x)[3] == 0)
    by_hand = BehlerParrinello(symmetry, md.free().displacement, key=jax.random.key(2), hidden=(3,), species=[2, 0, 0])
    by_hand = jax.tree.unflatten(jax.tree.structure(by_hand), jax.tree.leaves(weights))
    np.testing.assert_allclose(water(x), by_hand(x[:3]), rtol=1e-12)
    with pytest.raises(InputError, match=r"\[7\]"):
        network.for_atoms([7])
    network.save(tmp_path / "network.npz")
    kept = ElementNetwork.load(tmp_path / "network.npz")
    assert kept.network.symmetry == symmetry
    assert kept.for_atoms(numbers)(x) == water(x)
