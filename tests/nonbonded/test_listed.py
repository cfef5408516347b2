"""Energies of Systems over a neighbour list equal those over all pairs: values, forces, parameters, box."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from openff.toolkit import Molecule

import offjax
from offjax import interactions
from offjax.errors import InputError, NeighborListError, UnsupportedError
from offjax.interactions import Particles
from offjax.nonbonded import blocks
from offjax.nonbonded import neighbors as neighbors_module
from offjax.nonbonded.neighbors import neighbor_list
from offjax.terms import electrostatics, vdw
from tests import liquids
from tests.test_periodic import BOX, build

OPTIONS = {
    "PME": {"cutoff": 0.9, "switch": 0.8},
    "tight PME": {"cutoff": 0.9, "ewald_tolerance": 1e-6},
    "reaction field": {"nonbonded_method": "CutoffPeriodic", "cutoff": 0.9, "switch": 0.7},
    "LJPME": {"nonbonded_method": "LJPME", "cutoff": 0.9},
}

TRICLINIC = np.array([[1.9, 0, 0], [0.4, 1.95, 0], [-0.5, 0.6, 2.0]])


def listed_and_all(energy, p, x, h, neighbors):
    """Energy with all first derivatives over the list, and over all pairs."""
    argnums = (0, 1) if h is None else (0, 1, 2)

    def run(p, x, h, neighbors):
        return jax.value_and_grad(lambda p, x, h: energy(p, x, h, neighbors), argnums)(p, x, h)

    return jax.jit(run)(p, x, h, neighbors), jax.jit(run)(p, x, h, None)


def assert_close(got, want, rtol):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if b.size:
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(np.max(np.abs(b))) + 1e-12)


@pytest.mark.parametrize(
    "options", ["PME", pytest.param("tight PME", marks=pytest.mark.slow), "reaction field", "LJPME"]
)
def test_water(options):
    system, x = build("water")
    energy = system.to_jax(**OPTIONS[options])
    neighbors = energy.neighbor_list(x, BOX, skin=0.05)
    got, want = listed_and_all(energy, system.parameters, x, jnp.asarray(BOX), neighbors)
    assert_close(got, want, 1e-9)
    assert_close(energy.by_term(system.parameters, x, BOX, neighbors), energy.by_term(system.parameters, x, BOX), 1e-9)


@pytest.mark.parametrize("name", ["mixture", pytest.param("salt water", marks=pytest.mark.slow)])
def test_mixtures_with_1_4_pairs_in_a_triclinic_box(name):
    system, x = build(name, TRICLINIC)
    energy = system.to_jax()
    neighbors = energy.neighbor_list(x, TRICLINIC, skin=0.05)
    got, want = listed_and_all(energy, system.parameters, x, jnp.asarray(TRICLINIC), neighbors)
    assert_close(got, want, 1e-9)


def test_polynomials_follow_the_special_functions():
    r2 = jnp.linspace(0.01, 0.81, 500)
    for alpha in (2.0, 3.2, 4.7, 6.5):
        got, want = (
            jax.vmap(jax.value_and_grad(f))(r2)
            for f in (
                lambda r2, a=alpha: electrostatics.ewald_direct_polynomial(r2, 1.0, a, 0.9),
                lambda r2, a=alpha: electrostatics.ewald_direct_potential(r2, 1.0, a),
            )
        )
        assert_close(got, want, 1e-10)
        damped = [f(r2, 0.3, 0.5, 2e-3, alpha, 0.9) for f in (vdw.ewald_direct_polynomial, vdw.ewald_direct_potential)]
        assert_close(*damped, 1e-10)


def test_a_cutoff_without_box():
    system, x = build("ethanol")
    energy = system.to_jax(nonbonded_method="CutoffNonPeriodic", cutoff=0.7, switch=0.6)
    got, want = listed_and_all(energy, system.parameters, x, None, energy.neighbor_list(x, skin=0.1))
    assert_close(got, want, 1e-9)


def test_float32_pairs_with_float64_sums():
    system, x = build("water")
    exact = listed_and_all(system.to_jax(), system.parameters, x, jnp.asarray(BOX), None)[1]
    energy = system.to_jax(accumulate="float64")
    x = x.astype("float32")
    neighbors = energy.neighbor_list(x, BOX, skin=0.05)
    value, (of_p, of_x, _) = listed_and_all(energy, system.parameters, x, jnp.asarray(BOX, "float32"), neighbors)[0]
    np.testing.assert_allclose(value, exact[0], rtol=1e-5)
    forces = exact[1][1]
    assert jnp.sqrt(jnp.mean((of_x - forces) ** 2)) < 1e-4 * jnp.sqrt(jnp.mean(forces**2))


def test_rounding_of_self_energies_and_excluded_pairs_does_not_add_up():
    """They are large, cancel, and are alike in all molecules."""
    system, x = build("water")
    energy = system.to_jax()
    charge = jnp.asarray(system.instances()["Electrostatics"]["charge"])

    def left(dtype, accumulate):
        q, y, box = (jnp.asarray(v, dtype) for v in (charge, x, BOX))
        found = interactions.long_range(
            energy.static.treatment, Particles(None, None, q), y, box, energy.pairs.exceptions, accumulate
        )
        parts = {name: float(jnp.sum(u["Electrostatics"], dtype="float64")) for name, u in found}
        return parts["self"] + parts["exclusions"], parts["self"]

    exact, size = left("float64", None)
    assert abs(left("float32", "float64")[0] - exact) < 2e-8 * abs(size)


def test_lists_that_do_not_fit_are_refused():
    system, x = build("water")
    energy = system.to_jax()
    p = system.parameters
    neighbors = energy.neighbor_list(x, BOX, skin=0.05)
    far = x + np.linspace(0, 0.5, len(x))[:, None]
    with pytest.raises(NeighborListError, match="out of date"):
        energy(p, far, BOX, neighbors)
    assert jnp.isnan(jax.jit(energy)(p, far, BOX, neighbors))
    assert_close(energy(p, far, BOX, neighbors.update(far, BOX)), energy(p, far, BOX), 1e-10)
    with pytest.raises(NeighborListError, match="overflowed"):
        energy(p, x, BOX, energy.neighbor_list(2 * x, 2 * BOX, skin=0.05).update(x, BOX))
    with pytest.raises(InputError, match="headroom must be at least 1"):
        energy.neighbor_list(x, BOX, skin=0.05, headroom=0.9)
    for text in ("3 3 3", [[1, 2], [3]]):
        with pytest.raises(InputError, match=r"a box is|got the text"):
            energy(p, x, text)
    with pytest.raises(InputError, match="three numbers of grid points"):
        system.to_jax(pme_grid=32)
    with pytest.raises(InputError, match="within 0.8 nm"):
        system.to_jax(cutoff=0.8)(p, x, BOX, neighbors)
    with pytest.raises(InputError, match="all pairs"):
        system.to_jax(nonbonded_method="NoCutoff").neighbor_list(x)
    with pytest.raises(InputError, match="neighbor_list"):
        energy(p, x, BOX, [1])


def test_virial_and_parts():
    system, x = build("water")
    energy = system.to_jax()
    neighbors = energy.neighbor_list(x, BOX, skin=0.05)
    assert_close(energy.virial(system.parameters, x, BOX, neighbors), energy.virial(system.parameters, x, BOX), 1e-9)
    assert_close(
        energy.components(system.parameters, x, BOX, neighbors), energy.components(system.parameters, x, BOX), 1e-8
    )


def test_virtual_sites_are_particles_of_the_list():
    counts, box = {"water": 110}, np.eye(3) * 1.9
    molecules, x = liquids.liquid(counts, box)
    system = offjax.System.from_smirnoff("tip4p_fb.offxml", molecules, box=box)
    energy, p = system.to_jax(), system.parameters
    with pytest.raises(InputError, match="place_sites"):
        energy.neighbor_list(x, box)
    neighbors = energy.neighbor_list(energy.place_sites(p, x), box, skin=0.05)
    got, want = listed_and_all(energy, p, x, jnp.asarray(box), neighbors)
    assert_close(got, want, 1e-9)


def test_large_systems_need_a_list(monkeypatch):
    monkeypatch.setattr("offjax.energy.MAX_ATOMS", 300)
    system, x = build("water")
    energy = system.to_jax()
    with pytest.raises(UnsupportedError, match="neighbor_list"):
        energy(system.parameters, x, BOX)
    assert "neighbour lists only" in repr(energy)
    neighbors = energy.neighbor_list(x, BOX, skin=0.05)
    small = energy(system.parameters, x, BOX, neighbors)
    monkeypatch.undo()
    assert_close(small, system.to_jax()(system.parameters, x, BOX), 1e-10)
    with pytest.raises(UnsupportedError, match="cutoff"):
        monkeypatch.setattr("offjax.energy.MAX_ATOMS", 300)
        system.to_jax(nonbonded_method="NoCutoff")


def test_a_list_of_another_system_is_refused():
    """Equal numbers of particles, other exclusions: an error outside jit, NaN inside."""
    water, ion = Molecule.from_smiles("O"), Molecule.from_smiles("[Na+]")
    x = np.random.default_rng(0).uniform(0, 0.8, (6, 3))
    energies = []
    for molecules in ([water] * 2, [ion] * 6):
        system = offjax.System.from_smirnoff("tip3p.offxml", molecules)
        energy = system.to_jax(nonbonded_method="CutoffNonPeriodic", cutoff=0.9)
        energies.append((energy, system.parameters, energy.neighbor_list(x, None)))
    for (energy, p, own), (_, _, foreign) in (energies, energies[::-1]):
        assert np.isfinite(float(jax.jit(energy)(p, x, None, own)))
        assert np.isnan(float(jax.jit(energy)(p, x, None, foreign)))
        with pytest.raises(offjax.InputError, match="another System"):
            energy(p, x, None, foreign)


def test_a_capacity_is_that_of_another_list():
    with pytest.raises(offjax.InputError, match=r"neighbors\.capacity"):
        neighbor_list(np.zeros((4, 3)), cutoff=1.0, skin=0.1, capacity=5)


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 1e-5)])
def test_sums_in_any_order_and_coordinates_of_images_from_either_source(dtype, rtol, monkeypatch):
    """What is there for speed alone changes nothing but rounding. A new function each time, so that all is traced."""
    rng = np.random.default_rng(0)
    h = jnp.asarray(TRICLINIC, dtype)
    x, charge = jnp.asarray(rng.uniform(-3.0, 5.0, (150, 3)), dtype), jnp.asarray(rng.normal(size=150), dtype)
    neighbors = neighbor_list(x, h, cutoff=0.8, skin=0.1)

    def derivatives(compiled):
        def potential(r2, first, second):
            return first[0] * second[0] * (0.64 - r2) ** 2 / (r2 + 0.1)

        def energy(x, h, charge):
            return blocks.pair_energy(potential, neighbors, x, h, (charge,), accumulate="float64")

        return compiled(jax.value_and_grad(energy, (0, 1, 2)))(x, h, charge)

    found = [derivatives(jax.jit), derivatives(blocks.jit)]
    monkeypatch.setattr(blocks, "_IMAGES_IN_CACHE", 0)
    found += [derivatives(jax.jit), derivatives(blocks.jit)]
    distance = x[:, None] - x[None]
    distance = distance - jnp.round(distance @ jnp.linalg.inv(h)) @ h
    images = jnp.asarray(neighbors_module.IMAGES, dtype) @ h
    r2 = jnp.min(jnp.sum((distance[:, :, None] + images) ** 2, axis=-1), axis=-1)
    pairs = jnp.where(r2 < 0.64, charge[:, None] * charge * (0.64 - r2) ** 2 / (r2 + 0.1), 0.0)
    np.testing.assert_allclose(found[0][0], jnp.sum(jnp.triu(pairs, 1)), rtol=10 * rtol)
    for other in found[1:]:
        assert_close(other, found[0], rtol)
