"""A SystemBatch gives what single energies give, differentiates once and fast, and compiles few programs."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import offjax
from offjax import geometry
from offjax.batching import coordinates
from offjax.batching.half_planes import half_planes
from tests import samples

CONSTRAINED = "openff-2.2.1.offxml"
SMILES = [
    "CCO",
    "CC#N",
    "C",
    "[Na+]",
    "NC(=O)c1ccccc1",
    "O",
    "CC(=O)[O-]",
    "C[N+](C)(C)C",
    "CS(=O)(=O)N",
    "FC(F)(Cl)Br",
    "C1CC1",
    "O=C=O",
    "CC#CC",
    "CSSC",
    "[O-][N+](=O)c1ccncc1",
    "COP(=O)(O)O",
]
COUNTS = [3, 1, 2, 2, 5, 1, 0, 4, 2, 1, 17, 2, 3, 1, 2, 1]


@pytest.fixture(scope="module")
def batch():
    return offjax.SystemBatch.from_systems([samples.system(s) for s in SMILES])


@pytest.fixture(scope="module")
def arrays():
    return [conformers(s, n) for s, n in zip(SMILES, COUNTS, strict=True)]


@pytest.fixture(scope="module")
def conf(batch, arrays):
    return batch.pack(arrays)


@pytest.fixture(scope="module")
def p(batch):
    """Parameters off their loaded values; phases away from 0 and pi too."""
    loaded = batch.systems[0].parameters
    vector = loaded.to_vector()
    rng = np.random.default_rng(3)
    return loaded.from_vector(vector * (1 + 0.02 * rng.normal(size=vector.shape)))


def conformers(smiles, n):
    flat = [samples.positions(smiles, seed=seed) for seed in range(n)]
    return np.array(flat).reshape(n, -1, 3) if n else np.zeros((0, samples.molecule(smiles).n_atoms, 3))


def loss(energies, forces, seed=5):
    """Of the kind a fit to energies and forces uses, every row with a target and weight of its own."""
    rng = np.random.default_rng(seed)
    e0, f0 = rng.normal(scale=10, size=energies.shape), rng.normal(scale=300, size=forces.shape)
    w = rng.uniform(0.5, 1.5, size=energies.shape)
    return jnp.sum(w * (energies - e0) ** 2) + 1e-3 * jnp.sum((forces - f0) ** 2)


def assert_close(got, expected, tolerance=1e-8):
    """Within ``tolerance`` of the root mean square."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    assert np.all(np.isfinite(got))
    scale = np.sqrt(np.mean(expected**2)) if expected.size else 0.0
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(scale, 1e-3))


def assert_same_gradient(got, expected):
    for section, attribute in expected.schema.slices:
        assert_close(got[section][attribute], expected[section][attribute])


@pytest.mark.parametrize("force_field", ["openff_unconstrained-2.2.1.offxml", CONSTRAINED])
def test_energies_and_forces_are_those_of_the_single_systems(force_field):
    chosen = ["CCO", "O", "CC#N"]
    systems = [samples.system(s, force_field) for s in chosen]
    batch = offjax.SystemBatch.from_systems(systems)
    arrays = [conformers(s, 2) for s in chosen]
    conf = batch.pack(arrays)
    p = systems[0].parameters
    energies, forces = batch.energies_and_forces(p, conf)
    assert_close(batch.energies(p, conf), energies, 1e-12)
    for system, x, u, f in zip(systems, arrays, batch.unpack(energies, conf), batch.unpack(forces, conf), strict=True):
        expected, gradient = jax.jit(jax.vmap(jax.value_and_grad(system.to_jax(), 1), (None, 0)))(p, x)
        assert np.all(np.abs(u - expected) <= 1e-9 * np.maximum(np.abs(expected), 1))
        assert_close(f, -gradient)


def test_ragged_conformers_keep_their_order(batch, arrays, conf):
    assert conf.n_conformers == sum(COUNTS)
    np.testing.assert_array_equal(conf.molecule, np.repeat(np.arange(len(SMILES)), COUNTS))
    assert bool(jnp.all(conf.mask)) and bool(jnp.all(conf.row_mask))
    assert [len(v) for v in batch.unpack(conf.molecule, conf)] == COUNTS
    for x, same in zip(arrays, batch.unpack(conf.positions, conf), strict=True):
        np.testing.assert_array_equal(x, same)
    np.testing.assert_array_equal(batch.flatten(arrays, conf), conf.positions)
    np.testing.assert_array_equal(batch.flatten([np.full(n, i) for i, n in enumerate(COUNTS)], conf), conf.molecule)
    sizes = np.bincount(conf.conformer)
    np.testing.assert_array_equal(sizes, [len(x[0]) for x in arrays for _ in x])


@pytest.fixture(scope="module")
def reference(batch, conf, p):
    """Energies, forces, and the gradients of the loss in parameters and positions, by the plain path."""
    plain = batch.plain(conf)

    def value(p, x):
        energies, forces = plain.energies_and_forces(p, x)
        return loss(energies, forces), (energies, forces)

    return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(p, conf.positions)


def test_all_molecules_have_the_plain_energies_and_forces(batch, conf, p, reference):
    energies, forces = batch.energies_and_forces(p, conf)
    (_, expected), _ = reference
    assert np.all(np.abs(energies - expected[0]) <= 1e-9 * np.maximum(np.abs(expected[0]), 1))
    assert_close(forces, expected[1])


def test_the_loss_gradient_is_that_of_automatic_differentiation(batch, conf, p, reference):
    value, gradient = jax.jit(jax.value_and_grad(lambda p, c: loss(*batch.energies_and_forces(p, c))))(p, conf)
    (expected, _), (of_parameters, _) = reference
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert_same_gradient(gradient, of_parameters)


def test_the_energy_gradient_at_the_loaded_phases_is_that_of_automatic_differentiation(batch, conf):
    """Phases of 0 and pi: dU/dphase is k sin(n phi - phase), not zero."""
    p = batch.systems[0].parameters
    w = np.random.default_rng(1).normal(size=conf.n_conformers)
    plain = batch.plain(conf)
    gradient = jax.jit(jax.grad(lambda p: w @ batch.energies(p, conf)))(p)
    assert np.count_nonzero(gradient["ProperTorsions"]["phase"]) > 10
    assert_same_gradient(gradient, jax.jit(jax.grad(lambda p: w @ plain.energies(p, conf.positions)))(p))


def test_the_loss_gradient_is_that_of_finite_differences(batch, conf, p):
    value = jax.jit(lambda p, c: loss(*batch.energies_and_forces(p, c)))
    gradient = np.asarray(jax.jit(jax.grad(value))(p, conf).to_vector())
    vector = p.to_vector()
    for path in ("Bonds/k", "Bonds/length", "Angles/angle", "ProperTorsions/k", "ProperTorsions/phase", "vdW/epsilon"):
        indices = p.select(path).indices
        i = indices[np.argmax(np.abs(gradient[indices]))]

        def central(h, i=i):
            up, down = vector.copy(), vector.copy()
            up[i], down[i] = vector[i] + h, vector[i] - h
            return (value(p.from_vector(up), conf) - value(p.from_vector(down), conf)) / (up[i] - down[i])

        h = 1e-3 * abs(vector[i])
        difference = (4 * central(h / 2) - central(h)) / 3
        np.testing.assert_allclose(gradient[i], difference, rtol=1e-6)


def test_forward_mode_gives_the_jacobian(batch, conf, p):
    batch, conf = batch.select([0, 4, 14]), conf.select([0, 4, 14])
    plain, free = batch.plain(conf), p.select(["Bonds/k", "ProperTorsions/phase", "vdW/rmin_half"])
    used = np.asarray(batch.systems[0].used.to_vector())[free.indices] > 0
    chosen = offjax.Selection(p, free.indices[used])
    v = jnp.asarray(chosen.to_vector())
    got = jax.jit(jax.jacfwd(lambda v, c: batch.energies_and_forces(chosen.insert(v), c)))(v, conf)
    expected = jax.jit(jax.jacfwd(lambda v, x: plain.energies_and_forces(chosen.insert(v), x)))(
        v, conf.positions[: int(conf.row_mask.sum())]
    )
    assert_close(got[0][conf.mask], expected[0][conf.mask])
    assert_close(got[1][conf.row_mask], expected[1])
    row = jax.jit(jax.jacrev(lambda v, c: batch.energies(chosen.insert(v), c)))(v, conf)
    assert_close(row, got[0])


def test_positions_can_be_differentiated(batch, conf, p, reference):
    x = conf.positions
    gradient = jax.jit(jax.grad(lambda x, c: jnp.sum(batch.energies(p, c.with_positions(x)))))(x, conf)
    assert_close(gradient, -batch.energies_and_forces(p, conf)[1], 1e-12)
    gradient = jax.jit(jax.grad(lambda x, c: loss(*batch.energies_and_forces(p, c.with_positions(x)))))(x, conf)
    assert_close(gradient, reference[1][1])


def test_a_second_derivative_is_refused_by_name(batch, conf, p):
    with pytest.raises(offjax.DifferentiationError, match="plain"):
        jax.grad(lambda s: jax.grad(lambda s: jnp.sum(batch.energies(scaled(p, s), conf)))(s))(1.0)


def scaled(p, s):
    return p.replace("Bonds", "k", s * jnp.asarray(p["Bonds"]["k"]))


def test_plain_has_second_derivatives(batch, conf, p):
    batch, conf = batch.select([0]), conf.select([0])
    plain = batch.plain(conf)
    energy = lambda s: jnp.sum(plain.energies(scaled(p, s), conf.positions))  # noqa: E731
    assert jax.jit(jax.grad(jax.grad(energy)))(1.0) == 0.0  # linear in the force constants


def carbon_dioxide(bend):
    """Linear, or nearly so."""
    oxygen = [a.atomic_number == 8 for a in samples.molecule("O=C=O").atoms]
    x = np.zeros((3, 3))
    x[oxygen] = [[-0.12, bend, 0], [0.12, 0, bend]]
    return x


def butyne():
    """But-2-yne with its four carbon atoms on a line."""
    molecule = samples.molecule("CC#CC")
    x = samples.positions("CC#CC", displacement=0.0)
    carbon = [i for i, a in enumerate(molecule.atoms) if a.atomic_number == 6]
    shift = np.array([[-0.205, 0, 0], [-0.06, 0, 0], [0.06, 0, 0], [0.205, 0, 0]]) - x[carbon]
    for i, d in zip(carbon, shift, strict=True):
        bonded = [b.atom2_index if b.atom1_index == i else b.atom1_index for b in molecule.atoms[i].bonds]
        x[[i, *(j for j in bonded if j not in carbon)]] += d
    return x


def test_degenerate_terms_have_the_finite_plain_derivatives():
    """Linear angles, collinear torsions, epsilon = 0 and sigma = 0, in reverse and in forward mode."""
    batch = offjax.SystemBatch.from_systems([samples.system(s) for s in ("O=C=O", "CC#CC", "CCO")])
    linear = np.array([carbon_dioxide(0.0), carbon_dioxide(1e-9), carbon_dioxide(1e-4)])
    conf = batch.pack([linear, butyne(), samples.positions("CCO")], check_bonds=False)
    plain, loaded = batch.plain(conf), batch.systems[0].parameters

    def value(function):
        def total(p, c):
            out = function(p, c)
            return loss(*out), out

        return jax.jit(jax.value_and_grad(total, has_aux=True))

    fast, slow = value(batch.energies_and_forces), value(plain.energies_and_forces)
    push = jax.jit(lambda p, d, c: jax.jvp(lambda p: batch.energies_and_forces(p, c), (p,), (d,))[1])
    ones = loaded.from_vector(np.ones(loaded.schema.size))
    for attribute in (None, "epsilon", "rmin_half"):
        p = loaded
        if attribute is not None:
            values = np.array(p["vdW"][attribute])
            values[::2] = 0.0
            p = p.replace("vdW", attribute, values)
        (_, out), gradient = fast(p, conf)
        (_, expected), expected_gradient = slow(p, conf.positions)
        for got, wanted in zip(out, expected, strict=True):
            assert_close(got, wanted)
        assert_same_gradient(gradient, expected_gradient)
        for tangent in push(p, ones, conf):
            assert bool(jnp.all(jnp.isfinite(tangent)))


def test_a_system_may_hold_several_molecules():
    pair = [samples.molecule("O"), samples.molecule("CCO")]
    dimer = offjax.System.from_smirnoff("openff_unconstrained-2.2.1.offxml", pair, charge_from_molecules=pair)
    x = np.concatenate([samples.positions("O"), samples.positions("CCO") + [0.4, 0, 0]])
    batch = offjax.SystemBatch.from_systems([samples.system("CC#N"), dimer])
    conf = batch.pack([samples.positions("CC#N"), x])
    energies, forces = batch.energies_and_forces(dimer.parameters, conf)
    expected, gradient = jax.value_and_grad(dimer.to_jax(), 1)(dimer.parameters, x)
    np.testing.assert_allclose(energies[1], expected, rtol=1e-10)
    assert_close(batch.unpack(forces, conf)[1][0], -gradient)


def test_single_precision_is_asked_for_and_kept(batch, arrays, p):
    conf = batch.pack([x.astype(np.float32) for x in arrays])
    energies, forces = batch.energies_and_forces(p, conf)
    assert conf.dtype == energies.dtype == forces.dtype == np.float32
    double = batch.energies_and_forces(p, batch.pack(arrays))
    np.testing.assert_allclose(energies, double[0], rtol=1e-4, atol=0.05)
    assert_close(forces, double[1], 1e-3)
    assert (
        jax.grad(lambda v: jnp.sum(batch.energies(p.from_vector(v), conf)))(jnp.asarray(p.to_vector())).dtype == float
    )
    with pytest.raises(offjax.InputError, match="one dtype"):
        batch.pack([x.astype(np.float32 if i else np.float64) for i, x in enumerate(arrays)])


def test_double_precision_without_x64_is_refused(batch, arrays):
    with jax.enable_x64(False), pytest.raises(offjax.PrecisionError, match="molecule 0"):
        batch.pack(arrays)


def test_a_minibatch_gives_the_values_of_the_whole(batch, arrays, conf, p):
    chosen = [10, 3, 4, 6, 0]
    mini, small = batch.select(chosen), conf.select(chosen)
    whole = batch.unpack(batch.energies_and_forces(p, conf)[1], conf)
    energies, forces = mini.energies_and_forces(p, small)
    for i, f in zip(chosen, mini.unpack(forces, small), strict=True):
        assert_close(f, whole[i], 1e-12)
    assert not np.any(energies[~small.mask]) and not np.any(forces[~small.row_mask])
    assert bool(jnp.all(jnp.diff(small.mask.astype(int)) <= 0))
    again = mini.pack([arrays[i] for i in chosen])
    assert_close(mini.unpack(mini.energies(p, again), again)[0], mini.unpack(energies, small)[0], 1e-12)


def test_minibatches_of_one_size_share_their_shapes(batch, conf, p):
    rng = np.random.default_rng(0)
    traces = []

    @jax.jit
    def value(p, c):
        traces.append(1)
        energies, forces = batch.energies_and_forces(p, c)
        return jnp.sum(energies) + jnp.sum(forces**2)

    for _ in range(8):
        value(p, conf.select(rng.choice(len(SMILES), 5, replace=False)))
    for _ in range(4):
        mini = batch.select(rng.choice(len(SMILES), 5, replace=False))
        value(p, mini.pack([conformers(SMILES[batch.systems.index(s)], 2) for s in mini.systems]))
    assert len(traces) == 2


def test_batch_and_conformers_are_arguments_of_jitted_functions(batch, conf, p):
    energies = jax.jit(lambda b, p, c: b.energies(p, c))(batch, p, conf)
    assert_close(energies, batch.energies(p, conf), 1e-12)
    rebuilt = jax.tree.unflatten(jax.tree.structure(conf), jax.tree.leaves(conf))
    assert_close(batch.energies(p, rebuilt), energies, 1e-12)
    with pytest.raises(offjax.InputError, match="select"):
        rebuilt.select([0])


def test_wrong_input_is_refused_by_molecule(batch, arrays, conf, p):
    def changed(i, value):
        return [value if n == i else x for n, x in enumerate(arrays)]

    nan = arrays[0].copy()
    nan[1, 2, 0] = np.nan
    for wrong, message in (
        (arrays[:-1], "16 molecules"),
        (changed(4, arrays[4][:, :-1]), r"molecule 4 .*expected positions \(n_conformers, 16, 3\)"),
        (changed(0, nan), "molecule 0 .*conformer 1 are not finite"),
        (changed(1, arrays[1] * 10), "molecule 1 .*angstrom"),
        ([x[:0] for x in arrays], "no conformer at all"),
    ):
        with pytest.raises(offjax.InputError, match=message):
            batch.pack(wrong)
    with pytest.raises(offjax.InputError, match="another force field"):
        batch.energies(samples.system("CCO", CONSTRAINED).parameters, conf)
    with pytest.raises(offjax.InputError, match="another force field"):
        offjax.SystemBatch.from_systems([samples.system("CCO"), samples.system("CCO", CONSTRAINED)])
    with pytest.raises(offjax.InputError, match="at least one"):
        offjax.SystemBatch.from_systems([])
    with pytest.raises(offjax.InputError, match="0 to 15"):
        batch.select([16])
    with pytest.raises(offjax.InputError, match="expected shape"):
        batch.unpack(np.zeros(3), conf)


def test_quantities_are_converted(batch, arrays, conf, p):
    from openff.units import unit

    angstrom = [x * 10 * unit.angstrom for x in arrays]
    assert_close(batch.energies(p, batch.pack(angstrom)), batch.energies(p, conf), 1e-10)


COUNT = """
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
import offjax
from tests import samples
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, duration, **kw: compiled.append(1) if name == "/jax/core/compile/backend_compile_duration" else None
)
for smiles in (["CCO"], ["CCO", "CC#N", "C", "O=C=O", "CSSC", "NC(=O)c1ccccc1"]):
    first = len(compiled)
    batch = offjax.SystemBatch.from_systems([samples.system(s) for s in smiles])
    conf = batch.pack([samples.positions(s)[None].repeat(4, 0) for s in smiles])
    p = batch.systems[0].parameters
    def loss(p, conf, e0, f0):
        energies, forces = batch.energies_and_forces(p, conf)
        return ((energies - e0) ** 2).sum() + ((forces - f0) ** 2).sum()
    gradient = jax.jit(jax.value_and_grad(loss))
    energies, forces = batch.energies_and_forces(p, conf)
    targets = np.zeros(energies.shape), np.zeros(forces.shape)
    gradient(p, conf, *targets)
    second = len(compiled)
    for scale in (1.01, 1.02):
        q = p.from_vector(scale * p.to_vector())
        batch.energies_and_forces(q, conf)
        gradient(q, conf, *targets)
    print(second - first, len(compiled) - second)
"""


def test_few_programs_are_compiled_whatever_the_number_of_molecules():
    """In a fresh process, for one molecule and then for six; none for other parameters."""
    ran = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    counts = [tuple(map(int, line.split())) for line in ran.stdout.splitlines()]
    assert len(counts) == 2 and counts[0] == counts[1]
    assert counts[0][0] <= 4 and counts[0][1] == 0


SHARED = """
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 3)
import offjax
from tests import samples
smiles = ["CCO", "O=C=O", "CSSC"]
batch = offjax.SystemBatch.from_systems([samples.system(s) for s in smiles])
arrays = [samples.positions(s)[None].repeat(700 // n, 0) for n, s in enumerate(smiles, 1)]
p = batch.systems[0].parameters

def loss(p, conf):
    energies, forces = batch.energies_and_forces(p, conf)
    return (energies**2).sum() + 1e-3 * (forces**2).sum()

@jax.jit
def derivatives(conf):
    value, (dp, dx) = jax.value_and_grad(lambda p, x: loss(p, conf.with_positions(x)), (0, 1))(p, conf.positions)
    return value, dp.to_vector(), dx, jax.jvp(lambda p: loss(p, conf), (p,), (p,))[1]

one = batch.pack(arrays, devices=jax.local_devices()[:1])
all_of_them = batch.pack(arrays)
print(len(one.packed.devices()), len(all_of_them.packed.devices()))
for a, b in zip(*(derivatives(c.select([2, 0])) for c in (one, all_of_them))):
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-9 * np.abs(a).max())
one, all_of_them = (batch.unpack(batch.energies_and_forces(p, c)[1], c) for c in (one, all_of_them))
for a, b in zip(one, all_of_them):
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-9)
"""


def test_several_devices_share_the_chunks():
    """In a process with three CPU devices: what one gives, in all derivatives, minibatches too."""
    ran = subprocess.run([sys.executable, "-c", SHARED], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["1", "3"]


STAYING = """
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 3)
import offjax
from tests import samples
smiles = ["CCO", "O=C=O", "CSSC"]
batch = offjax.SystemBatch.from_systems([samples.system(s) for s in smiles])

@jax.jit
def loss(p, conf, energies0, forces0):
    energies, forces = batch.energies_and_forces(p, conf)
    return ((energies - energies0) ** 2).sum() + 1e-3 * ((forces - forces0) ** 2).sum()

for counts in ((699, 350, 234), (699, 350, 233)):
    arrays = [samples.positions(s)[None].repeat(n, 0) for n, s in zip(counts, smiles)]
    conf = batch.pack(arrays)
    reference = batch.flatten([x[:, 0, 0] for x in arrays], conf), batch.flatten(arrays, conf)
    p = conf.replicate(batch.systems[0].parameters)
    known = loss(p, conf, *reference)
    with jax.transfer_guard("disallow"):
        again = loss(p, conf, *reference)
    assert known == again
    print(conf.n_rows % 3, reference[1].addressable_shards[0].data.shape[0] / conf.n_rows)
"""


def test_reference_values_lie_where_the_conformers_do():
    """Equal shares of the rows if their number allows it; at each call nothing is moved from device to device."""
    ran = subprocess.run([sys.executable, "-c", STAYING], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [f"0 {1 / 3}", "2 1.0"]


@pytest.mark.parametrize("smiles", [["O"], ["[Cl-]"], ["C"], ["[Cl-]", "O"]])
def test_batches_of_only_tiny_molecules(smiles):
    systems = [samples.system(s, "openff-2.2.1.offxml") for s in smiles]
    batch = offjax.SystemBatch.from_systems(systems)
    p, x = systems[0].parameters, [samples.positions(s) for s in smiles]
    energies, forces = batch.energies_and_forces(p, batch.pack(x))
    expected = [float(s.to_jax()(p, y)) for s, y in zip(systems, x, strict=True)]
    np.testing.assert_allclose(energies, expected, rtol=1e-9, atol=1e-9)
    assert forces.shape == (sum(map(len, x)), 3) and np.all(np.isfinite(forces))


def test_a_parameter_that_is_not_a_number_spoils_only_molecules_that_use_it():
    """Bonds/k of the row b1 is the first entry of the vector, with which tables are padded; neither molecule has it."""
    smiles = ["CO", "c1ccccc1"]
    systems = [samples.system(s) for s in smiles]
    batch, p = offjax.SystemBatch.from_systems(systems), systems[0].parameters
    conformers = batch.pack([samples.positions(s) for s in smiles])
    k = p["Bonds"]["k"].copy()
    k[0] = np.nan
    spoiled = p.replace("Bonds", "k", k)
    for values in batch.energies_and_forces(spoiled, conformers):
        assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(batch.plain(conformers).energies(spoiled, conformers.positions)))
    for section in ("Angles", "ProperTorsions", "ImproperTorsions"):  # all that benzene has and methanol has not
        columns = [np.unique(s.assignment[section]["k"].to_scipy().indices) for s in systems]
        values = p.to_vector().copy()
        values[np.setdiff1d(columns[1], columns[0])] = np.nan
        energies, forces = batch.energies_and_forces(p.from_vector(values), conformers)
        assert np.isnan(energies[1]) and np.isfinite(energies[0])
        assert np.all(np.isfinite(forces[:6])) and np.any(np.isnan(forces[6:]))


def test_an_angle_of_coinciding_atoms_is_the_one_of_the_plain_path():
    s, x = samples.system("CO"), samples.positions("CO")
    x[2] = x[0]  # a hydrogen on its carbon: the angles with it are not defined, and 0 by convention
    batch = offjax.SystemBatch.from_systems([s])
    [energy] = batch.energies(s.parameters, batch.pack([x], check_bonds=False))
    assert energy == pytest.approx(float(s.to_jax()(s.parameters, x)), rel=1e-12)


def test_half_planes_give_the_torsion_angles_and_their_gradients():
    """Torsions in chains, in rings of three and of impropers; some angles that span their half-planes are missing."""
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.normal(size=(6, 3)))
    torsions = np.array(
        [[0, 1, 2, 3], [1, 2, 0, 3], [1, 2, 3, 4], [1, 3, 4, 2], [1, 4, 2, 3], [5, 2, 1, 0], [0, 1, 3, 5]]
    )
    angles = np.array([[0, 1, 2], [3, 2, 1], [2, 1, 3], [4, 1, 2], [3, 1, 4], [2, 0, 1]])
    (planes,), missing = half_planes([torsions], angles)
    known = np.concatenate([angles, missing])
    assert len(missing) == len({(min(i, k), j, max(i, k)) for i, j, k in missing.tolist()})
    assert not {tuple(a) for a in missing.tolist()} & {tuple(a) for a in angles.tolist()}
    assert set(planes.side.reshape(-1).tolist()) == {0, 1, 2}

    def arms(x):
        return [tuple((x[known[:, end]] - x[known[:, 1]]).T) for end in (0, 2)]

    def of_planes(x):
        vectors = arms(x)
        inverse = coordinates.inverse_lengths_of_angle(*vectors)
        normal = jnp.stack(coordinates.angle(vectors, inverse)[1].normal)
        reach = jnp.stack(coordinates.levers(vectors, inverse).reach)
        first, second = planes.angle.T
        arm = jnp.where(planes.side[:, 0] == 1, jnp.stack(vectors[1])[:, first], jnp.stack(vectors[0])[:, first])
        height = reach[planes.side[:, 0], first]
        return coordinates.dihedral(normal[:, first], normal[:, second], arm, height, *planes.sign.T)

    phi = geometry.dihedral(*(x[torsions[:, m]] for m in range(4)))
    cosine, sine = of_planes(x)
    np.testing.assert_allclose(cosine, np.cos(phi), atol=1e-14)
    np.testing.assert_allclose(sine, np.sin(phi), atol=1e-14)

    dx = jnp.asarray(rng.normal(size=x.shape))
    _, change = jax.jvp(lambda x: geometry.dihedral(*(x[torsions[:, m]] for m in range(4))), (x,), (dx,))
    vectors, moved = arms(x), arms(dx)
    inverse = coordinates.inverse_lengths_of_angle(*vectors)
    normal, levers = coordinates.angle(vectors, inverse)[1].normal, coordinates.levers(vectors, inverse)
    first, last = (coordinates.dot(normal, arm) for arm in moved)
    turns = np.array([a * first + b * last for a, b in zip(levers.first, levers.last, strict=True)])
    each = planes.sign * turns[planes.side, planes.angle]
    np.testing.assert_allclose(each[:, 0] - each[:, 1], change, rtol=1e-12)
