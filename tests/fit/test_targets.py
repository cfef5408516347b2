"""Data beside energies, forces and torsion profiles: exact deviations, Jacobians, and fits that find the truth."""

import shutil
from dataclasses import replace
from functools import cache

import cloudpickle
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import offjax
from offjax import constants
from offjax.fit import FitConfig, FitResult, conflicts, distributed, run, summary, uncertainty
from offjax.fit import config as fit_config
from offjax.fit.driver import prepare
from offjax.fit.result import MoleculeResult
from offjax.fit.shards import accumulated
from offjax.fit.targets import internal, modes
from offjax.fit.targets.gradients import MinimumGradients
from offjax.fit.targets.interactions import InteractionEnergies
from offjax.fit.targets.potentials import ElectrostaticPotentials
from offjax.fit.targets.vibrations import matched
from offjax.interop.records import Record
from offjax.md import normal_modes
from offjax.report import page as report
from tests import sites
from tests.fit.conftest import conformers, write_spice

SMILES = {
    "methanol": "[C:1]([O:2][H:6])([H:3])([H:4])[H:5]",
    "formaldehyde": "[C:1](=[O:2])([H:3])[H:4]",
}
BLOCKS = [
    {"path": "Bonds/length", "prior": float("inf"), "scale": 0.02},
    {"path": "Angles/angle", "prior": float("inf"), "scale": 5.0},
    {"path": "Bonds/k", "prior": float("inf"), "scale": 50.0, "transform": "log"},
    {"path": "Angles/k", "prior": float("inf"), "scale": 10.0, "transform": "log"},
]
KINDS = ["optimized-geometries", "minimum-gradients", "hessians", "vibrations"]
TIGHT = {"optimized_geometries": {"tolerance": 1e-6}, "vibrations": {"tolerance": 1e-6}}


def changed(p):
    """The parameters behind the data: bonds longer or shorter by 1 %, angles by 2 degrees, stiffer angles."""
    length, angle = np.array(p["Bonds"]["length"]), np.array(p["Angles"]["angle"])
    p = p.replace("Bonds", "length", length * (1 + 0.01 * (-1.0) ** np.arange(len(length))))
    p = p.replace("Angles", "k", 1.05 * np.asarray(p["Angles"]["k"]))
    return p.replace("Angles", "angle", angle + 2 * constants.DEGREE * (-1.0) ** np.arange(len(angle)))


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """The programs here are many and run for milliseconds: they are not optimised."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def systems():
    from openff.toolkit import Molecule

    with jax.enable_x64(True):
        found = []
        for name, smiles in SMILES.items():
            molecule = Molecule.from_mapped_smiles(smiles)
            molecule.name = name
            molecule.assign_partial_charges("gasteiger")
            found.append(
                offjax.System.from_smirnoff(
                    "openff-2.2.1.offxml", molecule, charge_from_molecules=[molecule]
                ).without_constraints()
            )
    return found


@pytest.fixture(scope="module")
def minima(systems, tmp_path_factory):
    """A file with the minima of the changed parameters."""
    from openff.toolkit import Molecule

    with jax.enable_x64(True):
        batch = offjax.SystemBatch.from_systems(systems)
        starts = [conformers(Molecule.from_mapped_smiles(s), 1, 1) for s in SMILES.values()]
        packed = batch.pack(starts)
        found = batch.minimize(changed(systems[0].parameters), packed, tolerance=1e-7)
        assert np.all(found.converged)
        positions = batch.unpack(found.positions, packed)
    path = tmp_path_factory.mktemp("minima") / "minima.h5"
    records = {
        name: {
            "smiles": smiles,
            "numbers": system.topology.atomic_numbers,
            "positions": x,
            "energies": np.zeros(1),
            "forces": np.zeros_like(x),
        }
        for (name, smiles), system, x in zip(SMILES.items(), systems, positions, strict=True)
    }
    write_spice(path, records)
    return path


@pytest.fixture(scope="module")
def hessians(systems, minima):
    """The same file with the Hessians of the changed parameters."""
    path = minima.with_name("hessians.h5")
    shutil.copy(minima, path)
    with jax.enable_x64(True), h5py.File(path, "a") as file:
        for name, system in zip(SMILES, systems, strict=True):
            x = file[name]["conformations"][0] * constants.BOHR
            values = hessian(system, changed(system.parameters), x)
            file[name].create_dataset("dft_total_hessian", data=values[None]).attrs["units"] = "kj/mol/nm^2"
    return path


def hessian(system, p, x):
    """By JAX, of the energy of one System."""
    return np.asarray(hessian_of(system)(p, x)).reshape(x.size, x.size)


@cache
def hessian_of(system):
    """Compiled once a System."""
    return jax.jit(jax.hessian(system.to_jax(), argnums=1))


def config(path, directory, kinds, blocks=BLOCKS, **tables):
    content = {
        "force_field": "openff-2.2.1.offxml",
        "data": [{"path": str(path), "kind": kind} for kind in kinds],
        "charges": {"method": "gasteiger"},
        "parameters": blocks,
        "optimizer": {"max_iterations": 20, "objective_tolerance": 0.0, "gradient_tolerance": 1e-9},
        "output": {"directory": str(directory)},
    }
    return FitConfig.from_dict(content | tables)


def found_at(objective, p):
    """What each kind of data gives at other values of the free parameters."""
    x = objective.free.x(np.asarray(p.to_vector())[objective.free.selection.indices])
    pairs = zip(objective.data.components, objective.parts(jnp.asarray(x)).components, strict=True)
    return {component.kind: at.found for component, at in pairs}


def check_derivatives(objective, x, rtol=1e-5):
    """J^T r and J^T J of every component agree with differences of its residuals."""
    direction = jnp.asarray(np.random.default_rng(3).normal(size=len(x)))

    def residuals(y):
        pairs = zip(objective.data.components, objective.parts(y).components, strict=True)
        return [component.weighted(at.found.deviations) for component, at in pairs]

    def slopes(h):
        ends = zip(residuals(x + h * direction), residuals(x - h * direction), strict=True)
        return [(a - b) / (2 * h) for a, b in ends]

    columns = [(4 * a - b) / 3 for a, b in zip(slopes(0.01), slopes(0.02), strict=True)]
    blocks = objective.component_normals(x)
    for r, column, (value, gradient, matrix) in zip(residuals(x), columns, blocks, strict=True):
        assert float(value) == pytest.approx(0.5 * float(r @ r))
        size = float(jnp.linalg.norm(column))
        assert float(gradient @ direction) == pytest.approx(float(r @ column), rel=rtol, abs=rtol * size)
        assert float(direction @ matrix @ direction) == pytest.approx(size**2, rel=rtol)
    total = objective.gauss_newton(x)
    assert float(total[0]) == pytest.approx(float(objective.value(x)), rel=1e-9)


@pytest.mark.slow
def test_reverse_mode_agrees_with_the_jacobian(hessians, tmp_path):
    chosen = config(hessians, tmp_path / "fit", KINDS, **TIGHT)
    with jax.enable_x64(True):
        data = prepare(chosen)
        objective = data.objective(chosen)
        x = 0.3 * jnp.asarray(np.random.default_rng(2).normal(size=len(data.free)))
        _, gradient, _ = objective.gauss_newton(x)
        _, reverse = objective.value_and_gradient(x)
        np.testing.assert_allclose(gradient, reverse, rtol=1e-6, atol=1e-6 * np.abs(reverse).max())


def test_internal_coordinates_are_those_of_the_bonds(systems):
    methanol, formaldehyde = (internal.coordinates(s, np.eye(s.n_particles, 3)[None]) for s in systems)
    assert [len(methanol[k]) for k in ("bond", "angle", "torsion", "improper")] == [5, 7, 3, 0]
    assert [len(formaldehyde[k]) for k in ("bond", "angle", "torsion", "improper")] == [3, 3, 0, 1]
    assert formaldehyde["improper"].tolist() == [[1, 0, 2, 3]]
    assert {tuple(t) for t in methanol["torsion"]} == {(2, 0, 1, 5), (3, 0, 1, 5), (4, 0, 1, 5)}


def test_optimized_geometries(minima, tmp_path):
    chosen = config(minima, tmp_path / "fit", ["optimized-geometries"], **TIGHT)
    with jax.enable_x64(True):
        data = prepare(chosen)
        objective = data.objective(chosen)
        # at the parameters behind the data nothing deviates
        truth = found_at(objective, changed(data.free.selection.parameters))["optimized-geometries"]
        assert np.max(np.abs(truth.deviations)) < 1e-4 and int(truth.unconverged) == 0
        x = 0.3 * jnp.asarray(np.random.default_rng(2).normal(size=len(data.free)))
        check_derivatives(objective, x)
        posterior = uncertainty.laplace(objective, x)
        assert [kind.name for kind in posterior.kinds] == ["optimized-geometries"]
        np.testing.assert_allclose(posterior.fitted, objective.gauss_newton(x)[2], rtol=1e-9)
        check_pulls(data, chosen, x, objective.gauss_newton(x)[1])

        # the next minimisations begin at these minima, and stay there
        before = objective.parts(x)
        objective.settle(x)
        assert objective.parts(x) is before
        for shift in (0.1, 0.2):
            objective.parts(x + shift)
        again = objective.parts(x)
        assert again is not before and float(again.value) == float(before.value)
        np.testing.assert_array_equal(again.components[0].found.positions, objective.starts[1])


def check_pulls(data, chosen, x, gradient):
    """The pulls of all places add up to minus the gradient of what has no prior."""
    pulls = conflicts.analyse(data, chosen, x, top=0).pulls
    slopes = dict(zip(map(str, data.free.selection.labels), np.asarray(gradient), strict=True))
    assert {str(p.label) for p in pulls} == set(slopes)
    for pull in pulls:
        assert -(pull.up + pull.down) == pytest.approx(slopes[str(pull.label)], rel=1e-6, abs=1e-7)
    # a split that takes all places of one entry has the entry's row of J^T J
    model = conflicts._Model(data, chosen, x)
    whole = []
    for j in range(len(data.free))[:3]:
        own = np.array([n for n, slot in enumerate(model.slots) if slot.entry == j])
        whole.append(conflicts.Proposal([j], own, "", own))
    for proposal, (xy, yy) in zip(whole, model.curvature(whole), strict=True):
        [j] = proposal.entries
        scale = np.abs(model.hessian).max()
        np.testing.assert_allclose(xy[0], model.hessian[j], rtol=1e-6, atol=1e-9 * scale)
        np.testing.assert_allclose(yy[0, 0], model.hessian[j, j], rtol=1e-6, atol=1e-9 * scale)


@pytest.mark.slow
def test_geometries_hessians_and_vibrations(systems, hessians, tmp_path):
    chosen = config(hessians, tmp_path / "fit", KINDS, **TIGHT)
    with jax.enable_x64(True):
        data = prepare(chosen)
        start = data.free.selection.parameters
        objective = data.objective(chosen)
        # at the parameters behind the data nothing deviates
        truth = found_at(objective, changed(start))
        assert sorted(truth) == sorted(KINDS)
        for kind, found in truth.items():
            assert np.max(np.abs(found.deviations)) < 1e-4, kind
            assert int(found.unconverged) == 0
        found = found_at(objective, start)

        # the five bonds of methanol come after the three of formaldehyde; s = 0.005 nm
        geometry = found["optimized-geometries"]
        x, reference = np.asarray(geometry.positions)[4:], data.records[1].positions[0]
        bonds = internal.coordinates(data.systems[1], x[None])["bond"]
        after, before = (np.linalg.norm(y[bonds[:, 1]] - y[bonds[:, 0]], axis=1) for y in (x, reference))
        np.testing.assert_allclose(geometry.deviations[3:8], (after - before) / (0.005 * np.sqrt(5)), atol=1e-12)
        assert float(geometry.errors["bond"][1]) == pytest.approx(np.mean((after - before) ** 2))
        assert np.isnan(geometry.errors["improper"][1]) and 0 < float(geometry.errors["position"][1]) < 0.01**2

        methanol, formaldehyde = systems
        forces = -jax.grad(methanol.to_jax(), argnums=1)(start, reference)
        assert float(found["minimum-gradients"].errors["gradient"][1]) == pytest.approx(np.mean(forces**2))

        # the mean square of all elements of the mass-weighted Hessian, without translations and rotations
        masses = np.asarray(methanol.topology.masses)
        outside = modes.rigid_motions(reference, masses)
        free = np.eye(18) - outside @ outside.T
        root = np.repeat(np.sqrt(masses), 3)
        difference = hessian(methanol, start, reference) - hessian(methanol, changed(start), reference)
        difference = free @ (difference / np.outer(root, root)) @ free
        assert float(found["hessians"].errors["hessian"][1]) == pytest.approx(np.sum(difference**2) / 12**2, rel=1e-6)

        # frequencies of formaldehyde at its minimum, in the order of the reference
        masses = np.asarray(formaldehyde.topology.masses)
        own = normal_modes(lambda x: formaldehyde.to_jax()(start, x), np.asarray(geometry.positions)[:4], masses)
        measured = np.asarray(own.frequencies)[6:] * modes.WAVENUMBER
        [component] = [c for c in data.components if c.kind == "vibrations"]
        target = component.target
        shift = np.asarray(found["vibrations"].deviations)[:6] / np.asarray(target.factor)[0, :6]
        np.testing.assert_allclose(np.sort(shift + np.asarray(target.wavenumbers)[0, :6]), measured, rtol=1e-6)

        x = 0.3 * jnp.asarray(np.random.default_rng(2).normal(size=len(data.free)))
        check_derivatives(objective, x)
        posterior = uncertainty.laplace(objective, x)
        assert [kind.name for kind in posterior.kinds] == KINDS
        np.testing.assert_allclose(posterior.fitted, objective.gauss_newton(x)[2], rtol=1e-9)

    result = run(chosen)
    train = result.metrics["train"]
    assert train["energy_rmse_initial"] is None
    for quantity in ("bond", "angle", "position", "gradient", "hessian", "frequency"):
        assert train[f"{quantity}_rmse_fitted"] < 0.02 * train[f"{quantity}_rmse_initial"], quantity
    again = FitResult.load(tmp_path / "fit")
    assert [m.kind for m in again.molecules] == [kind for kind in KINDS for _ in range(2)]
    assert again.molecules[0].errors_fitted == result.molecules[0].errors_fitted


def test_modes_are_matched_once_each_by_the_largest_overlap():
    score = jnp.array([[0.9, 0.8, 0.0], [0.7, 0.1, 0.0], [-1.0, -1.0, -1.0]])
    assert matched(score).tolist() == [0, 1, -1]


def test_translations_and_rotations_are_no_vibrations():
    water = sites.molecule("O")
    system = offjax.System.from_smirnoff("tip3p.offxml", [water])
    given = {"frequencies": np.zeros((1, 9)), "modes": np.zeros((1, 9, 3, 3))}
    record = Record("a", "[O:1]([H:2])[H:3]", "", WATER[None], np.zeros(1), None, "here", properties=given)
    with pytest.raises(offjax.InputError, match="9 frequencies, but the molecule has 3 vibrations"):
        modes.of_records([system], [record])
    kept = record.take([0, 0])
    assert kept.n_conformers == 2 and kept.properties["modes"].shape == (2, 9, 3, 3)


def test_a_linear_molecule_has_five_rigid_motions():
    x = np.array([[0.0, 0.0, -0.1], [0.0, 0.0, 0.0], [0.0, 0.0, 0.1]])
    assert modes.rigid_motions(x, np.ones(3)).shape == (9, 5)


DIMER = "[O:1]([H:2])[H:3].[O:4]([H:5])[H:6]"
WATER = np.array([[0.0, 0.0, 0.0], [0.0957, 0.0, 0.0], [-0.024, 0.0927, 0.0]])


@pytest.fixture(scope="module")
def dimers(tmp_path_factory):
    """Water dimers with interaction energies and potentials of changed parameters; two of them are repulsive."""
    from openff.toolkit import Molecule

    water = [Molecule.from_mapped_smiles("[O:1]([H:2])[H:3]") for _ in range(2)]
    acceptor = np.array([[0.0, 0.0, 0.0], [0.0586, 0.0757, 0.0], [0.0586, -0.0757, 0.0]])
    apart = (0.22, 0.24, 0.26, 0.28, 0.32, 0.4)
    x = np.stack([np.concatenate([WATER, acceptor + [d, 0.0, 0.0]]) for d in apart])
    rng = np.random.default_rng(5)
    directions = rng.normal(size=(len(x), 40, 3))
    grid = x.mean(axis=1)[:, None] + directions / np.linalg.norm(directions, axis=-1, keepdims=True) * 0.8
    with jax.enable_x64(True):
        both = offjax.System.from_smirnoff("openff-2.2.1.offxml", water)
        one = offjax.System.from_smirnoff("openff-2.2.1.offxml", water[0])
        p = of_water(both.parameters)
        whole, single = both.to_jax(), one.to_jax()
        interaction = np.array([whole(p, y) - single(p, y[:3]) - single(p, y[3:]) for y in x])
        charge = np.tile(both.slots(p)["Electrostatics"]["charge"], 2)
    distance = np.linalg.norm(grid[:, :, None] - x[:, None], axis=-1)
    path = tmp_path_factory.mktemp("dimers") / "dimers.h5"
    datasets = {
        "conformations": (x, "nm"),
        "interaction_energy": (interaction, "kj/mol"),
        "esp_grid": (grid, "nm"),
        "esp": (constants.COULOMB * np.sum(charge / distance, axis=-1), "kj/mol/e"),
    }
    with h5py.File(path, "w") as file:
        for label, part in (("a: near", slice(0, 3)), ("b: far", slice(3, 6))):
            group = file.create_group(label)
            group.create_dataset("smiles", data=[DIMER], dtype=h5py.string_dtype())
            for name, (values, units) in datasets.items():
                group.create_dataset(name, data=values[part]).attrs["units"] = units
    return path, interaction


def of_water(p):
    """TIP3P with other charges and a deeper well."""
    chosen = p.select("LibraryCharges/charge", "*tip3p*")
    p = chosen.insert(np.asarray(chosen.to_vector()) * 1.1)
    chosen = p.select("vdW/epsilon", "*tip3p*O")
    return chosen.insert(np.asarray(chosen.to_vector()) * 1.3)


class AtOnce:
    """A Dask client that computes in this process."""

    def submit(self, function, *arguments, **how):
        return function(*arguments)

    def gather(self, values):
        return values


def check_shards(data, chosen, whole, x):
    """The sums of two shards, one with each dimer, are the objective, and errors stand where they belong."""
    shards = [np.array([0, 2]), np.array([1, 3])]
    files = []
    for k, members in enumerate(shards):
        batch = offjax.SystemBatch.from_systems([data.systems[m] for m in members])
        records = [data.records[m] for m in members]
        shard = distributed.Shard(batch, records, data.weights[members], chosen, data.free)
        files.append(chosen.output.directory.parent / f"shard-{k}")
        files[-1].write_bytes(cloudpickle.dumps(shard))
    shared = distributed.DistributedObjective(
        data.targets,
        data.free,
        1.0,
        data.components,
        shards=shards,
        contents=[[] for _ in shards],
        files=files,
        client=AtOnce(),
        jobs=None,
    )
    for a, b in zip(shared.gauss_newton(x), whole.gauss_newton(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
    assert float(shared.value(x)) == pytest.approx(float(whole.value(x)))
    value, gradient = shared.value_and_gradient(x)
    assert float(value) == float(shared.parts(x).value) == float(shared.value(x))
    np.testing.assert_allclose(gradient, whole.value_and_gradient(x)[1], rtol=1e-10, atol=1e-10)
    for a, b in zip(shared.parts(x).components, whole.parts(x).components, strict=True):
        assert float(a.value) == pytest.approx(float(b.value))
        np.testing.assert_allclose(a.losses, b.losses)
        for quantity, squares in b.errors.items():
            np.testing.assert_allclose(a.errors[quantity], squares)


def check_parts(data, chosen, whole, x):
    """So are the sums of parts that one process computes one after the other."""
    chosen = chosen.model_copy(update={"objective": chosen.objective.model_copy(update={"parts": 2})})
    parts = accumulated(chosen, replace(data, folder=chosen.output.directory.parent))
    for method in ("gauss_newton", "value_and_gradient"):
        for a, b in zip(getattr(parts, method)(x), getattr(whole, method)(x), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
    for a, b in zip(parts.parts(x).components, whole.parts(x).components, strict=True):
        np.testing.assert_allclose(a.losses, b.losses)


def check_minibatches(data, chosen, whole, x):
    """The mean over the parts of an epoch is the objective; each has a share of every kind."""
    adam = chosen.optimizer.model_copy(update={"method": "adam", "minibatch": 2})
    objective = data.objective(chosen.model_copy(update={"optimizer": adam}))
    parts = objective.minibatches(0)
    assert [[c.kind for c in part.components] for part in parts] == [[c.kind for c in whole.data.components]] * 2
    found = [objective.value_and_gradient(x, part) for part in parts]
    value, gradient = whole.value_and_gradient(x)
    assert float(sum(v for v, _ in found)) / 2 == pytest.approx(float(value))
    np.testing.assert_allclose(sum(g for _, g in found) / 2, gradient, rtol=1e-9, atol=1e-9)
    assert {id(part) for part in objective.minibatches(1)} == set(map(id, parts))


def test_interaction_energies_and_electrostatic_potentials(dimers, tmp_path):
    path, interaction = dimers
    kinds = ["interaction-energies", "electrostatic-potentials"]
    blocks = [
        {"path": "LibraryCharges/charge", "prior": float("inf"), "scale": 0.1},
        {"path": "vdW/epsilon", "patterns": ["*tip3p*O"], "prior": float("inf"), "scale": 0.05},
    ]
    charges = {"charges": {"method": "force-field"}}
    chosen = config(path, tmp_path / "fit", kinds, blocks, **charges)
    with jax.enable_x64(True):
        data = prepare(chosen)
        start = data.free.selection.parameters
        objective = data.objective(chosen)
        for kind, found in found_at(objective, of_water(start)).items():
            assert np.max(np.abs(found.deviations)) < 1e-9, kind
        # a repulsive dimer counts relative to its repulsion
        [target] = [c.target for c in data.components if c.kind == "interaction-energies"]
        assert interaction.max() > 5 and interaction.min() < -1
        widths = np.hypot(2.0, np.maximum(interaction, 0.0))
        np.testing.assert_allclose(target.factor, 1 / (widths * np.sqrt(3)))
        x = 0.5 * jnp.asarray(np.random.default_rng(2).normal(size=len(data.free)))
        here = objective.parts(x)
        objective.parts(0.5 * x)
        assert objective.parts(x) is here  # where an optimiser stands after a trial that is rejected
        check_derivatives(objective, x)
        check_shards(data, chosen, objective, x)
        check_parts(data, chosen, objective, x)
        check_minibatches(data, chosen, objective, x)
        # charges have no places; the oxygen of water has one in each dimer, and only one dimer's energies count
        found = conflicts.analyse(data, chosen, x, top=0)
        [pull], labels = found.pulls, list(data.free.selection.labels)
        slope = objective.value_and_gradient(x)[1][labels.index(pull.label)]
        assert -(pull.up + pull.down) == pytest.approx(float(slope), rel=1e-6)
        assert {atoms for _, atoms, _ in pull.places} == {(0,)} and len(found.left_out) == len(labels) - 1

    result = run(chosen)
    np.testing.assert_allclose(
        result.fitted.to_vector()[result.selection.indices],
        of_water(result.initial).to_vector()[result.selection.indices],
        rtol=1e-5,
    )
    train = result.metrics["train"]
    for quantity in ("interaction", "potential"):
        assert train[f"{quantity}_rmse_fitted"] < 1e-4 * train[f"{quantity}_rmse_initial"]
    again = FitResult.load(tmp_path / "fit")
    assert again.molecules[0].system.topology.n_molecules == 2
    assert again.molecules[0].system.digest == result.molecules[0].system.digest  # library charges stay parameters
    page = report.html(again)
    assert "interaction energies" in page
    assert [row[0] for row in summary(again)] == ["energy", "force", "interaction", "potential"]


def test_virtual_sites_carry_charges():
    chloromethane = sites.molecule("CCl")
    x = chloromethane.conformers[0].m_as("nanometer")
    grid = x.mean(axis=0) + np.array([[0.5, 0.1, 0.0], [-0.2, 0.5, 0.3], [0.0, -0.4, 0.4]])
    with jax.enable_x64(True):
        one, two = (
            offjax.System.from_smirnoff(sites.force_field(), parts, charge_from_molecules=[chloromethane])
            for parts in ([chloromethane], [chloromethane] * 2)
        )
        p, single, whole = one.parameters, one.to_jax(), two.to_jax()
        assert one.n_particles > one.topology.n_atoms
        particles = single.place_sites(p, x)
        charges = one.slots(p)["Electrostatics"]["charge"]
        distance = np.linalg.norm(grid[:, None] - np.asarray(particles)[None], axis=-1)
        expected = constants.COULOMB * np.sum(np.asarray(charges) / distance, axis=1)
        properties = {"grid": grid[None], "potential": np.zeros((1, 3))}
        record = Record("a", chloromethane.to_smiles(mapped=True), "", x[None], np.zeros(1), None, "here")
        record = replace(record, properties=properties)
        target = ElectrostaticPotentials.of([one], [record], fit_config.ElectrostaticPotentials(scale=2.0))
        found = target.evaluate(p).deviations
        np.testing.assert_allclose(found, expected / 2.0 / np.sqrt(3), rtol=1e-10)

        both = np.concatenate([x, x + [0.0, 0.0, 0.45]])
        record = replace(record, positions=both[None], properties={"interaction": np.zeros(1)})
        target = InteractionEnergies.of([two], [record], fit_config.InteractionEnergies(scale=2.0))
        expected = whole(p, both) - single(p, both[: len(x)]) - single(p, both[len(x) :])
        np.testing.assert_allclose(target.evaluate(p).deviations, [expected / 2.0], rtol=1e-9)

        record = replace(record, positions=x[None], properties={})
        target = MinimumGradients.of([one], [record], fit_config.MinimumGradients(scale=100.0))
        gradient = jax.grad(single, argnums=1)(p, jnp.asarray(x))
        assert float(target.evaluate(p).errors["gradient"][0]) == pytest.approx(np.mean(gradient**2))
        rows = target.jacobian(p, target.evaluate(p), jnp.arange(3))  # of parameters as a System has them: NumPy
        assert isinstance(p.to_vector(), np.ndarray) and rows.shape == (target.record.size, 3)

        # what a result stores, so that increments are not applied twice when it is read
        result = MoleculeResult("a", record.smiles, "", "train", one, *[np.zeros(0)] * 7)
        given = chloromethane.partial_charges.m_as("elementary_charge")
        np.testing.assert_allclose(result.charges, given, rtol=1e-14)
