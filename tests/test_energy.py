"""PotentialEnergy: exact values, gradients against finite differences, transformations, precision, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import offjax
from offjax import InputError, PrecisionError, UnsupportedError
from offjax.constants import COULOMB
from tests.samples import molecule, positions, system

SMILES = "NC=O"


@pytest.fixture(scope="module")
def case():
    s = system(SMILES)
    return s, s.to_jax(), s.parameters, positions(SMILES)


def richardson(function, v, i, h):
    """Central differences at h and h/2, extrapolated: the error is of order h^4."""

    def central(h):
        d = np.zeros_like(v)
        d[i] = h
        return (function(v + d) - function(v - d)) / (2 * h)

    return (4 * central(h / 2) - central(h)) / 3


def test_two_ions_are_coulomb_plus_lennard_jones():
    sodium, chloride = molecule("[Na+]"), molecule("[Cl-]")
    s = offjax.System.from_smirnoff("openff-2.2.1.offxml", [sodium, chloride])
    r = 0.31
    terms = s.to_jax().by_term(s.parameters, np.array([[0.0, 0, 0], [0, r, 0]]))
    assert terms["Electrostatics"] == pytest.approx(-COULOMB / r, rel=1e-15)
    (s1, s2), (e1, e2) = s.slots(s.parameters)["vdW"].values()
    sigma, epsilon = (s1 + s2) / 2, np.sqrt(e1 * e2)
    assert terms["vdW"] == pytest.approx(4 * epsilon * ((sigma / r) ** 12 - (sigma / r) ** 6), rel=1e-13)
    assert terms["Bonds"] == 0.0


def test_every_parameter_gradient_agrees_with_differences(case):
    s, energy, p, x = case
    gradient = np.asarray(jax.grad(energy)(p, x).to_vector())
    theta = p.to_vector()
    values = jax.jit(jax.vmap(lambda v: energy(p.from_vector(v), x)))
    used = np.nonzero(s.used.to_vector())[0]
    h = np.maximum(1e-3 * np.abs(theta[used]), 1e-4)
    shifted = [theta + np.outer(h * f, np.ones(1)) * np.eye(len(theta))[used] for f in (1, -1, 0.5, -0.5)]
    a, b, c, d = (np.asarray(values(v)) for v in shifted)
    difference = (4 * (c - d) / h - (a - b) / (2 * h)) / 3
    flat = s.parameters.schema.flat
    sections = np.array([flat[i].section for i in used])
    for section in set(sections):
        chosen = sections == section
        g, fd = gradient[used][chosen], difference[chosen]
        scale = np.maximum(np.abs(g), np.sqrt(np.mean(g**2)))
        assert np.all(np.abs(g - fd) <= 1e-6 * scale + 1e-9), section
    unused = np.setdiff1d(np.arange(len(theta)), used)
    assert np.all(gradient[unused] == 0)


def test_forces_and_hessian_agree_with_differences(case):
    _, energy, p, x = case
    flat = jax.jit(lambda v: energy(p, v.reshape(x.shape)))
    slope = jax.jit(jax.grad(flat))
    gradient = np.asarray(slope(x.ravel()))
    fd = np.array([richardson(flat, x.ravel(), i, 1e-4) for i in range(x.size)])
    assert np.allclose(gradient, fd, atol=1e-6 * np.sqrt(np.mean(gradient**2)))
    hessian = np.asarray(jax.jit(jax.hessian(flat))(x.ravel()))
    for i in (0, 7, 14):
        assert np.allclose(hessian[i], richardson(slope, x.ravel(), i, 1e-4), atol=1e-6 * np.abs(hessian).max())
    assert np.allclose(hessian, hessian.T, atol=1e-9 * np.abs(hessian).max())


def test_mixed_second_derivatives_in_all_modes_agree(case, rng):
    _, energy, p, x = case
    w = rng.normal(size=x.shape)
    tangent = p.from_vector(rng.normal(size=p.schema.size) * 1e-3 * np.abs(p.to_vector()))

    def along(q, y):
        return jnp.vdot(jax.grad(energy, 1)(q, y), w)

    reverse = jax.jit(jax.grad(along))(p, x).to_vector() @ tangent.to_vector()
    forward = jax.jit(lambda p, t: jax.jvp(lambda q: along(q, x), (p,), (t,))[1])(p, tangent)
    assert reverse == pytest.approx(float(forward), rel=1e-10)


def test_one_vjp_gives_parameters_and_forces(case):
    _, energy, p, x = case
    value, pullback = jax.vjp(energy, p, x)
    dp, dx = pullback(jnp.ones_like(value))
    assert np.allclose(dp.to_vector(), jax.grad(energy)(p, x).to_vector())
    assert np.allclose(dx, jax.jacfwd(energy, 1)(p, x), atol=1e-9 * np.abs(dx).max())
    assert np.allclose(dx.sum(0), 0, atol=1e-9 * np.abs(dx).max())


def test_transformations_take_the_object_itself(case):
    _, energy, p, x = case
    value = energy(p, x)
    assert jax.jit(energy)(p, x) == pytest.approx(float(value), rel=1e-14)
    assert jax.checkpoint(energy)(p, x) == pytest.approx(float(value), rel=1e-14)
    batch = np.stack([x, x + 0.001 * np.sin(np.arange(x.size)).reshape(x.shape)])
    assert np.allclose(jax.vmap(energy, (None, 0))(p, batch), [energy(p, y) for y in batch], rtol=1e-14)
    assert hash(energy) != hash(system(SMILES).to_jax()) and energy == energy
    assert sum(energy.by_term(p, x).values()) == pytest.approx(float(value), rel=1e-14)


def test_systems_of_equal_shape_share_a_program():
    compiled = jax.jit(lambda energy, p, x: energy(p, x))
    for smiles in ("CCO", "CCO"):
        s = system(smiles)
        compiled(s.to_jax(), s.parameters, positions(smiles))
    assert compiled._cache_size() == 1


def test_float32_stays_float32_and_is_close(case):
    _, energy, p, x = case
    single = energy(p, x.astype(np.float32))
    assert single.dtype == jnp.float32
    assert single == pytest.approx(float(energy(p, x)), rel=1e-4)
    gradient = jax.grad(energy, 1)(p, x.astype(np.float32))
    assert gradient.dtype == jnp.float32 and np.all(np.isfinite(gradient))


def test_accumulate_sums_in_float64(case):
    s, energy, p, x = case
    mixed = s.to_jax(accumulate="float64")(p, x.astype(np.float32))
    assert mixed.dtype == jnp.float64
    assert mixed == pytest.approx(float(energy(p, x.astype(np.float32).astype(np.float64))), rel=1e-5)


def test_float64_without_x64_is_refused(case):
    _, energy, p, x = case
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(PrecisionError, match="jax_enable_x64"):
            energy(p, x)
        assert energy(p, x.astype(np.float32)).dtype == jnp.float32
    finally:
        jax.config.update("jax_enable_x64", True)


def test_quantities_are_accepted(case):
    import openmm.unit
    from openff.units import Quantity

    _, energy, p, x = case
    value = float(energy(p, x))
    assert energy(p, Quantity(10 * x, "angstrom")) == pytest.approx(value, rel=1e-12)
    assert energy(p, openmm.unit.Quantity(10 * x, openmm.unit.angstrom)) == pytest.approx(value, rel=1e-12)


DEGENERATE = {
    "all at the origin": np.zeros((6, 3)),
    "on a line": np.outer(np.arange(6), [0.1, 0.05, 0.02]),
    "excluded atoms coincide": None,
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_valence_derivatives_are_finite_at_degenerate_geometries(case, name):
    _, energy, p, x = case
    y = DEGENERATE[name]
    if y is None:
        y = x.copy()
        y[1] = y[0]

    def valence(q, y):
        terms = energy.by_term(q, y)
        chosen = (
            set(terms)
            if name == "excluded atoms coincide"
            else {"Bonds", "Angles", "ProperTorsions", "ImproperTorsions"}
        )
        return sum(terms[k] for k in chosen)

    dp, dx = jax.jit(jax.grad(valence, (0, 1)))(p, y)
    assert np.all(np.isfinite(dp.to_vector())) and np.all(np.isfinite(dx))
    assert np.all(np.isfinite(jax.jit(jax.jacfwd(valence, 1))(p, y)))
    forward = jax.jit(lambda p, y: jax.jvp(lambda q: valence(q, y), (p,), (p,))[1])
    assert np.isfinite(forward(p, y))
    assert np.all(np.isfinite(jax.jit(jax.hessian(valence, 1))(p, y)))


@pytest.mark.parametrize("attribute", ["epsilon", "sigma"])
def test_zero_lennard_jones_parameters_have_finite_derivatives(attribute):
    s = system("CO")
    x = positions("CO")
    slots = s.slots(s.parameters)
    slots["vdW"][attribute] = np.zeros_like(slots["vdW"][attribute])
    energy = s.to_jax()
    for mode in (jax.jacrev, jax.jacfwd):
        gradient = jax.jit(mode(energy.at_slots))(slots, x)
        assert all(np.all(np.isfinite(v)) for v in jax.tree.leaves(gradient))


def test_one_atom_has_no_energy():
    s = offjax.System.from_smirnoff("openff-2.2.1.offxml", [molecule("[Cl-]")])
    energy = s.to_jax()
    assert energy(s.parameters, np.zeros((1, 3))) == 0.0
    assert np.all(np.asarray(jax.grad(energy)(s.parameters, np.zeros((1, 3))).to_vector()) == 0)


@pytest.mark.parametrize("switch", [None, 0.35])
def test_cutoff_is_openmm_s(switch):
    """Reaction field, switching and uncut exceptions, against a NonbondedForce on the Reference platform."""
    import openmm

    smiles = "CCCCCCO"
    s, x = system(smiles), positions(smiles)
    reference = s.to_openmm()
    for force in reference.getForces():
        if isinstance(force, openmm.NonbondedForce):
            force.setNonbondedMethod(openmm.NonbondedForce.CutoffNonPeriodic)
            force.setCutoffDistance(0.45)
            if switch:
                force.setUseSwitchingFunction(True)
                force.setSwitchingDistance(switch)
    context = openmm.Context(reference, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(x)
    state = context.getState(getEnergy=True, getForces=True)
    energy = s.to_jax(nonbonded_method="CutoffNonPeriodic", cutoff=0.45, switch=switch)
    value, gradient = jax.value_and_grad(energy, 1)(s.parameters, x)
    assert value == pytest.approx(state.getPotentialEnergy()._value, abs=1e-6)
    forces = np.array(state.getForces(asNumpy=True)._value)
    assert np.allclose(-gradient, forces, atol=1e-6 * np.sqrt(np.mean(forces**2)))
    assert value != pytest.approx(float(s.to_jax()(s.parameters, x)), abs=1e-3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"nonbonded_method": "PME"}, InputError, "needs a periodic box"),
        (
            {"nonbonded_method": "magic"},
            UnsupportedError,
            "supported are NoCutoff, CutoffNonPeriodic, CutoffPeriodic, PME, LJPME",
        ),
        ({"cutoff": 0.9}, InputError, "cutoff and switch need"),
        ({"nonbonded_method": "CutoffNonPeriodic", "cutoff": -1.0}, InputError, "cutoff must be positive"),
        ({"nonbonded_method": "CutoffNonPeriodic", "cutoff": 0.5, "switch": 0.6}, InputError, "switch must lie"),
        ({"nonbonded_method": "CutoffNonPeriodic", "cutoff": "9 angstrom"}, InputError, "got the text '9 angstrom'"),
        ({"pme_grid": (8, 8, 8)}, InputError, "need nonbonded_method PME or LJPME"),
        ({"dispersion_grid": (8, 8, 8)}, InputError, "need nonbonded_method LJPME"),
        ({"accumulate": "float16"}, InputError, "accumulate"),
    ],
)
def test_options_that_are_not_supported_raise_by_name(options, error, message):
    with pytest.raises(error, match=message):
        system("CCO").to_jax(**options)


def test_more_atoms_than_all_pairs_can_serve_are_refused(monkeypatch):
    monkeypatch.setattr("offjax.energy.MAX_ATOMS", 5)
    with pytest.raises(UnsupportedError, match="9 particles without cutoff"):
        system("CCO").to_jax()


def test_a_box_without_periodic_energy_is_refused_by_name():
    ethanol = molecule("CCO")
    boxed = offjax.System.from_smirnoff(
        "openff-2.2.1.offxml", [ethanol], charge_from_molecules=[ethanol], box=[3.0, 3.0, 3.0]
    )
    assert "PME 0.9 nm" in repr(boxed.to_jax())
    assert np.isfinite(boxed.to_jax(nonbonded_method="NoCutoff")(boxed.parameters, positions("CCO")))
    energy = system("CCO").to_jax()
    with pytest.raises(UnsupportedError, match="not periodic"):
        energy(system("CCO").parameters, positions("CCO"), box=np.eye(3))
    with pytest.raises(InputError, match="reduced form"):
        offjax.System.from_smirnoff("openff-2.2.1.offxml", [molecule("O")], box=np.ones((3, 3)))


@pytest.mark.parametrize("shape", [(8, 3), (9, 2), (27,), (2, 9, 3)])
def test_wrong_shapes_are_refused(shape):
    s = system("CCO")
    with pytest.raises(InputError, match=r"positions must have shape \(9, 3\)"):
        s.to_jax()(s.parameters, np.zeros(shape))


def test_cutoffs_may_be_quantities():
    from openff.units import Quantity

    energy = system("CCO").to_jax(nonbonded_method="CutoffNonPeriodic", cutoff=Quantity(8.0, "angstrom"))
    assert "CutoffNonPeriodic 0.8 nm" in repr(energy)


def test_a_parameter_that_is_not_a_number_spoils_its_own_section_only():
    s, x = system("C=O"), positions("C=O")
    p = s.parameters
    for section, attribute in (("Bonds", "k"), ("Angles", "angle")):
        values = np.full_like(p[section][attribute], np.nan)
        spoiled = jax.tree.map(jnp.asarray, p.replace(section, attribute, values))
        energies = s.to_jax().by_term(spoiled, x)
        assert [name for name, value in energies.items() if np.isnan(value)] == [section]
        slots = [(a, b) for a, d in s.slots(spoiled).items() for b, v in d.items() if np.isnan(v).any()]
        assert slots == [(section, attribute)]
