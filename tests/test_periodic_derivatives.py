"""Periodic energies: derivatives against differences, the virial, transformations, and inputs that must be loud."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import offjax
from offjax import InputError, UnsupportedError
from tests import liquids

BOX = np.array([[1.3, 0, 0], [0.3, 1.25, 0], [-0.4, 0.35, 1.2]])
COUNTS = {"water": 14, "ethanol": 4, "sodium": 2, "chloride": 1}
FILES = ["openff_unconstrained-2.2.1.offxml"]
METHODS = {
    "CutoffPeriodic": {"nonbonded_method": "CutoffPeriodic", "cutoff": 0.55, "switch": 0.45},
    "LJPME": {"nonbonded_method": "LJPME", "cutoff": 0.55},
}
"""Together they have every part; PME has the vdW of the one and the Electrostatics of the other."""


LJPME_IS_SLOW = pytest.mark.parametrize(
    "energy", ["CutoffPeriodic", pytest.param("LJPME", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture(scope="module")
def case():
    """Three kinds of molecules and ions with a net charge in a small triclinic box."""
    molecules, x = liquids.liquid(COUNTS, BOX, seed=3)
    kinds = [liquids.molecule(kind) for kind in COUNTS]
    system = offjax.System.from_smirnoff(FILES, molecules, charge_from_molecules=kinds, box=BOX)
    return system, x


@pytest.fixture(scope="module", params=METHODS)
def energy(request, case):
    return case[0].to_jax(**METHODS[request.param])


@jax.jit
def slopes(energy, p, x, box):
    return jax.grad(energy, (0, 1, 2))(p, x, box)


def difference(f, h):
    """Central difference of f(step) at zero, Richardson-extrapolated over h and h/2."""
    outer, inner = ((f(s) - f(-s)) / (2 * s) for s in (h, h / 2))
    return (4 * inner - outer) / 3


def test_every_parameter_gradient_agrees_with_differences(case, energy):
    system, x = case
    p = system.parameters
    gradient = slopes(energy, p, x, BOX)[0].to_vector()
    theta, flat = p.to_vector(), p.schema.flat
    used = np.nonzero(system.used.to_vector())[0]
    sections = np.array([flat[i].section for i in used])
    for section in ("vdW", "Electrostatics", "LibraryCharges"):
        rows = used[sections == section]
        if not len(rows):
            continue
        rms = np.sqrt(np.mean(gradient[rows] ** 2))
        for i in rows:
            fd = difference(
                lambda s, i=i: float(energy(p.from_vector(theta + s * (np.arange(len(theta)) == i)), x, BOX)),
                2e-3 * abs(theta[i]) if theta[i] else 1e-4,
            )
            if theta[i] != 0.0:  # the derivative in an epsilon of zero is zero by convention
                assert abs(gradient[i] - fd) <= 1e-6 * max(abs(gradient[i]), rms), str(flat[i])


@LJPME_IS_SLOW
def test_charge_slots_agree_with_differences(case, energy):
    """Charges are offsets here (given with the molecules): differentiate the slots."""
    system, x = case
    slots = system.slots(system.parameters)
    charge = slots["Electrostatics"]["charge"]
    at = jax.jit(lambda q: energy.at_slots({**slots, "Electrostatics": {"charge": q}}, x))
    gradient = np.asarray(jax.jit(jax.grad(lambda q: at(q)))(charge))
    rms = np.sqrt(np.mean(gradient**2))
    for i in range(len(charge)):
        fd = difference(lambda s, i=i: float(at(charge + s * (np.arange(len(charge)) == i))), 1e-3)
        assert abs(gradient[i] - fd) <= 1e-6 * max(abs(gradient[i]), rms)


def test_forces_agree_with_differences(case, energy, rng):
    system, x = case
    p = system.parameters
    gradient = np.asarray(slopes(energy, p, x, BOX)[1])
    rms = np.sqrt(np.mean(gradient**2))
    for _ in range(5):
        d = rng.normal(size=x.shape)
        fd = difference(lambda s, d=d: float(energy(p, x + s * d, BOX)), 2e-6)
        assert abs(np.sum(gradient * d) - fd) <= 1e-6 * rms * np.sqrt(d.size)


def test_box_gradients_agree_with_differences(case, energy):
    system, x = case
    p = system.parameters
    gradient = np.asarray(slopes(energy, p, x, BOX)[2])
    for i, j in zip(*np.tril_indices(3), strict=True):
        d = np.zeros((3, 3))
        d[i, j] = 1.0
        fd = difference(lambda s, d=d: float(energy(p, x, BOX + s * d)), 2e-6)
        assert abs(gradient[i, j] - fd) <= 1e-6 * max(abs(gradient[i, j]), np.sqrt(np.mean(gradient**2)))


@LJPME_IS_SLOW
def test_the_virial_agrees_with_strained_boxes(case, energy):
    """All nine components: the strained box is turned until it is lower triangular again, which costs no energy."""
    system, x = case
    p = system.parameters
    virial = np.asarray(energy.virial(p, x))
    assert np.allclose(virial, virial.T, atol=1e-8 * np.abs(virial).max())

    def strained(s, i, j):
        strain = np.eye(3)
        strain[i, j] += s
        q, r = np.linalg.qr((BOX @ strain).T)
        turn = q * np.sign(np.diag(r))
        lower = BOX @ strain @ turn
        return float(energy(p, x @ strain @ turn, np.tril(lower)))

    for i in range(3):
        for j in range(3):
            fd = difference(lambda s, i=i, j=j: strained(s, i, j), 2e-6)
            assert abs(-virial[i, j] - fd) <= 1e-6 * np.abs(virial).max(), (i, j)


def test_pressure_is_the_derivative_in_the_volume(case, energy):
    system, x = case
    p = system.parameters
    volume = np.prod(np.diag(BOX))
    fd = difference(lambda s: float(energy(p, x * (1 + s) ** (1 / 3), BOX * (1 + s) ** (1 / 3))), 5e-6) / volume
    assert np.trace(np.asarray(energy.virial(p, x))) / (3 * volume) == pytest.approx(-fd, rel=1e-6)


# --- what must not change the energy, and what must -------------------------------------------------------------------


def test_the_parts_add_up(case, energy):
    system, x = case
    parts, terms = energy.components(system.parameters, x), energy.by_term(system.parameters, x)
    for section, found in parts.items():
        assert sum(found.values()) == pytest.approx(float(terms[section]), rel=1e-13)
    assert sum(terms.values()) == pytest.approx(float(energy(system.parameters, x)), rel=1e-13)


def test_molecules_outside_the_box_and_moved_origins_change_nothing(case, energy, rng):
    system, x = case
    p = system.parameters
    reference = float(energy(p, x))
    sizes = np.diff(system.topology.offsets)
    shift = np.repeat(rng.integers(-3, 4, (len(sizes), 3)), sizes, axis=0) @ BOX
    assert energy(p, x + shift) == pytest.approx(reference, rel=1e-10)
    if energy.static.treatment.coulomb is None:  # a grid is not quite invariant
        assert energy(p, x + np.array([0.123, -4.5, 0.7])) == pytest.approx(reference, rel=1e-10)


@LJPME_IS_SLOW
def test_excluded_atoms_may_coincide(case, energy):
    """Both hydrogens of a water on its oxygen: no bonded term here, and the excluded pairs stay finite."""
    system, x = case
    first = next(n for n, u in enumerate(system.topology.copies) if system.topology.molecules[u].n_atoms == 3)
    atoms = system.topology.offsets[first] + np.arange(3)
    broken = x.copy()
    broken[atoms] = broken[atoms[0]]

    def nonbonded(y):
        parts = energy.components(system.parameters, y)
        return sum(sum(section.values()) for section in parts.values())

    assert np.all(np.isfinite(jax.jit(jax.grad(nonbonded))(broken)))
    assert np.isfinite(jax.jit(lambda y: jax.jvp(nonbonded, (y,), (jnp.ones_like(y),))[1])(broken))
    assert np.isfinite(jax.jit(nonbonded)(broken))


@pytest.mark.parametrize("atom", [0, 20, -1])
def test_not_a_number_is_never_silent(case, energy, atom):
    system, x = case
    broken = x.copy()
    broken[atom, 1] = np.nan
    terms = energy.by_term(system.parameters, broken)
    assert np.isnan(terms["vdW"]) and np.isnan(terms["Electrostatics"])
    assert np.isnan(energy(system.parameters, broken))


def test_another_box_is_another_argument_of_the_same_program(case):
    system, x = case
    energy = system.to_jax(**METHODS["LJPME"])
    compiled = jax.jit(lambda energy, p, x, box: energy(p, x, box))
    values = [float(compiled(energy, system.parameters, x, s * BOX)) for s in (1.0, 1.01, 1.02)]
    assert compiled._cache_size() == 1
    assert values[0] == pytest.approx(float(energy(system.parameters, x)), rel=1e-12)
    assert values[1] == pytest.approx(float(energy(system.parameters, x, 1.01 * BOX)), rel=1e-12)
    assert len(set(values)) == 3


def test_transformations_take_a_box(case):
    system, x = case
    energy, p = system.to_jax(**METHODS["CutoffPeriodic"]), system.parameters
    boxes = np.stack([BOX, 1.01 * BOX])
    both = jax.jit(jax.vmap(energy, (None, 0, 0)))(p, np.stack([x, x + 0.01]), boxes)
    assert np.allclose(both, [energy(p, x), energy(p, x + 0.01, 1.01 * BOX)], rtol=1e-12)
    edges = np.array([1.3, 1.25, 1.2])
    assert energy(p, x, edges) == pytest.approx(float(energy(p, x, np.diag(edges))), rel=1e-14)
    assert jax.jit(energy)(p, x, edges) == pytest.approx(float(energy(p, x, edges)), rel=1e-12)
    forward = jax.jit(lambda p, x, b, t: jax.jvp(lambda b: energy(p, x, b), (b,), (t,))[1])(p, x, BOX, BOX)
    reverse = np.sum(np.asarray(slopes(energy, p, x, BOX)[2]) * BOX)
    assert forward == pytest.approx(reverse, rel=1e-9)


@pytest.mark.slow
def test_second_derivatives_agree_with_differences(case, rng):
    """Along one direction of positions and box at once, forward over reverse and reverse over reverse."""
    system, x = case
    energy, p = system.to_jax(**METHODS["LJPME"]), system.parameters
    t = (rng.normal(size=x.shape), np.tril(rng.normal(size=(3, 3))))

    @jax.jit
    def products(x, box):
        slope = jax.grad(lambda v: energy(p, *v))
        return (
            slope((x, box)),
            jax.jvp(slope, ((x, box),), (t,))[1],
            jax.grad(lambda v: sum(jnp.vdot(a, b) for a, b in zip(slope(v), t, strict=True)))((x, box)),
        )

    _, forward, reverse = products(x, BOX)
    sides = [products(x + s * 1e-7 * t[0], BOX + s * 1e-7 * t[1])[0] for s in (1, -1)]
    for a, b, up, down in zip(forward, reverse, *sides, strict=True):
        assert np.allclose(a, b, rtol=0, atol=1e-9 * np.abs(a).max())
        assert np.allclose(a, (up - down) / 2e-7, rtol=0, atol=1e-5 * np.abs(a).max())


@pytest.mark.slow
def test_float32_and_float64_sums(case):
    system, x = case
    p, single, options = system.parameters, x.astype(np.float32), METHODS["LJPME"]
    terms = system.to_jax(**options).by_term(p, single.astype(np.float64))
    exact, scale = sum(map(float, terms.values())), sum(abs(float(v)) for v in terms.values())
    mixed = system.to_jax(**options, accumulate="float64")(p, single)
    plain = system.to_jax(**options)(p, single)
    assert (plain.dtype, mixed.dtype) == (jnp.float32, jnp.float64)
    assert abs(mixed - exact) < 1e-5 * scale
    assert abs(plain - exact) < 1e-4 * scale


# --- errors -----------------------------------------------------------------------------------------------------------


def test_boxes_that_do_not_serve_are_refused_or_give_nan(case):
    system, x = case
    energy, p = system.to_jax(**METHODS["CutoffPeriodic"]), system.parameters
    with pytest.raises(InputError, match="more than half of the box"):
        energy(p, x, 0.8 * BOX)
    with pytest.raises(InputError, match="more than half of the box"):
        energy(p, x, jnp.asarray(0.8 * BOX))
    with pytest.raises(InputError, match="reduced form"):
        energy(p, x, BOX.T)
    with pytest.raises(InputError, match="shape"):
        jax.jit(energy)(p, x, np.ones((2, 3)))
    assert np.isnan(jax.jit(energy)(p, x, 0.8 * BOX))
    assert np.isnan(jax.jit(energy)(p, x, BOX.T))
    assert np.isnan(slopes(energy, p, x, 0.8 * BOX)[1]).any()
    with pytest.raises(UnsupportedError, match="periodic box"):
        system.to_jax(nonbonded_method="NoCutoff").virial(p, x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, InputError, "0.9 nm is more than half of the box"),
        ({"nonbonded_method": "Ewald", "cutoff": 0.5}, UnsupportedError, "'Ewald' is not supported"),
        ({"nonbonded_method": "LJPME", "cutoff": 0.5, "switch": 0.4}, InputError, "LJPME has no switching"),
        ({"cutoff": 0.5, "ewald_tolerance": 0.5}, InputError, "ewald_tolerance must lie between"),
        ({"cutoff": 0.5, "pme_grid": (5, 20, 20)}, InputError, "at least 6"),
        ({"cutoff": 0.5, "pme_grid": (20, 20)}, InputError, "three numbers"),
        ({"cutoff": 0.5, "pme_alpha": -1.0}, InputError, "pme_alpha must be positive"),
        (
            {"nonbonded_method": "CutoffPeriodic", "cutoff": 0.5, "pme_alpha": 3.0},
            InputError,
            "need nonbonded_method PME",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(case, options, error, message):
    with pytest.raises(error, match=message):
        case[0].to_jax(**options)
