"""Four- and five-site water, and a mixture with ions, in periodic boxes: OpenMM, Interchange, derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import offjax
from tests import liquids
from tests.interop import oracle

BOX = np.diag([1.82, 1.85, 1.9])
CASES = {
    "four sites": ({"water": 64}, ("tip4p_fb.offxml",), {"cutoff": 0.75, "switch": 0.65}),
    "five sites": ({"water": 64}, ("tip5p.offxml",), {"cutoff": 0.75}),
    "mixture": (
        {"sodium": 3, "water": 30, "ethanol": 6, "chloride": 2},
        ("openff-2.2.1.offxml", "opc.offxml"),
        {"cutoff": 0.75, "nonbonded_method": "LJPME"},
    ),
}


@functools.cache
def case(name):
    """(System, energy, positions of the atoms)."""
    counts, files, options = CASES[name]
    molecules, x = liquids.liquid(counts, BOX, jitter=0.01)
    given = [liquids.molecule("ethanol")] if "ethanol" in counts else None
    system = offjax.System.from_smirnoff(files, molecules, charge_from_molecules=given, box=BOX)
    return system, system.to_jax(**options), x


@jax.jit
def evaluate(energy, p, x, box):
    """(U, (dU/dtheta, dU/dx))."""
    return jax.value_and_grad(energy, argnums=(0, 1))(p, x, box)


@pytest.mark.parametrize("name", CASES)
def test_boxes_with_sites_equal_openmm(name):
    system, energy, x = case(name)
    n = len(x)
    assert system.n_particles > n
    made = liquids.openmm_system(system, energy)
    parts, forces = jax.device_get(liquids.nonbonded(energy, system.parameters, x, BOX))
    everything = np.asarray(system.place_sites(x))
    for group, section in enumerate(("vdW", "Electrostatics")):
        u, f = liquids.reference(made, everything, BOX, [4 + group, 14 + group])
        assert sum(parts[section].values()) == pytest.approx(u, rel=1e-7), section
        assert np.abs(forces[group] - f[:n]).max() <= 1e-7 * np.sqrt(np.mean(f[:n] ** 2)), section


def test_the_default_treatment_equals_interchange():
    import openmm
    from openff.toolkit import ForceField, Topology
    from openff.units import Quantity

    molecules, x = liquids.liquid({"water": 64}, BOX, jitter=0.01)
    topology = Topology.from_molecules(molecules)
    topology.box_vectors = Quantity(BOX, "nanometer")
    interchange = ForceField("tip5p.offxml").create_interchange(topology)
    theirs = interchange.to_openmm_system(combine_nonbonded_forces=True)
    u, forces = oracle.evaluate(theirs, x, groups={"all": 0})["all"]
    system = offjax.System.from_smirnoff("tip5p.offxml", topology)
    # the Reference platform takes grids of any size; offjax rounds them up to what other platforms take
    context = openmm.Context(theirs, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))
    [force] = [f for f in theirs.getForces() if isinstance(f, openmm.NonbondedForce)]
    alpha, *grid = force.getPMEParametersInContext(context)
    energy = system.to_jax(pme_grid=tuple(grid))
    assert energy.static.treatment.coulomb.alpha == pytest.approx(alpha)
    mine, (_, slope) = evaluate(energy, system.parameters, x, BOX)
    assert float(mine) == pytest.approx(u, rel=1e-7)
    assert np.abs(slope + forces).max() <= 1e-6 * np.sqrt(np.mean(forces**2))


def test_gradients_in_parameters_and_box_agree_with_differences():
    system, _, x = case("five sites")
    p = system.parameters
    # nothing is left at the cutoff, where a pair's energy would jump in the differences
    energy = system.to_jax(nonbonded_method="PME", cutoff=0.75, switch=0.6, pme_alpha=6.0, pme_grid=(36, 36, 36))
    value = jax.jit(lambda energy, v, box: energy(p.from_vector(v), x, box))
    _, (gradient, _) = evaluate(energy, p, x, BOX)
    gradient, theta, flat = np.asarray(gradient.to_vector()), np.asarray(p.to_vector()), p.schema.flat
    used = np.asarray(system.used.to_vector()) > 0
    steps = {"distance": 1e-4, "outOfPlaneAngle": 1e-2, "charge_increment": 1e-2, "charge": 1e-2}
    chosen = [i for i in np.nonzero(used)[0] if flat[i].section in ("VirtualSites", "LibraryCharges")]
    chosen = [i for i in chosen if flat[i].attribute in steps]
    assert {flat[i].attribute for i in chosen} == set(steps)
    scale = {a: np.sqrt(np.mean([gradient[i] ** 2 for i in chosen if flat[i].attribute == a])) for a in steps}

    def richardson(function, h):
        outer, inner = (function(h) - function(-h)) / (2 * h), (function(h / 2) - function(-h / 2)) / h
        return (4 * inner - outer) / 3

    def difference(i):
        direction = np.eye(len(theta))[i]
        return richardson(lambda t: float(value(energy, theta + t * direction, BOX)), steps[flat[i].attribute])

    for i in chosen:
        allowed = 2e-6 * max(abs(gradient[i]), scale[flat[i].attribute])
        assert gradient[i] == pytest.approx(difference(i), abs=allowed), flat[i]
    pressure = float(jax.jit(lambda energy: jax.grad(lambda s: value(energy, theta, BOX * s))(1.0))(energy))
    assert pressure == pytest.approx(richardson(lambda t: float(value(energy, theta, BOX * (1 + t))), 1e-4), rel=1e-6)


@pytest.mark.slow
def test_a_neighbour_list_of_all_particles_gives_the_sum_over_all_pairs():
    system, energy, x = case("five sites")
    p = system.parameters
    neighbors = energy.neighbor_list(energy.place_sites(p, x), BOX)
    value, (dp, dx) = evaluate(energy, p, x, BOX)
    listed, (listed_dp, listed_dx) = jax.jit(jax.value_and_grad(type(energy).__call__, argnums=(1, 2)))(
        energy, p, x, BOX, neighbors
    )
    assert float(listed) == pytest.approx(float(value), rel=1e-10)
    np.testing.assert_allclose(listed_dx, dx, rtol=0, atol=1e-9 * np.sqrt(np.mean(dx**2)))
    scale = np.abs(dp.to_vector()).max()
    np.testing.assert_allclose(listed_dp.to_vector(), dp.to_vector(), rtol=0, atol=1e-11 * scale)
    with pytest.raises(offjax.InputError, match="place_sites"):
        energy.neighbor_list(x, BOX)


def test_a_site_on_its_parent_has_finite_derivatives_in_both_modes():
    system, energy, x = case("four sites")
    p = system.parameters.replace("VirtualSites", "distance", np.zeros(1))
    u, gradients = evaluate(energy, p, x, BOX)
    assert np.isfinite(u) and all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
    push = p.from_vector(np.ones(p.schema.size))
    forward = jax.jit(lambda energy: jax.jvp(lambda q: energy(q, x, BOX), (p,), (push,))[1])(energy)
    assert float(forward) == pytest.approx(float(jnp.sum(gradients[0].to_vector())), rel=1e-8)
