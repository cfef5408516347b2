"""User-defined terms: OpenMM's energies, derivatives, lists, files, and definitions that must be refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import offjax
from offjax import InputError, UnassignedParameterError, UnsupportedError, UserTerm
from offjax.interop.openmm import force_groups
from offjax.parameterize.plugins import force_field as read
from offjax.terms.library import DAMPED_BUCKINGHAM_68, DOUBLE_EXPONENTIAL, MORSE, UREY_BRADLEY
from tests import liquids, samples

ANHARMONIC = UserTerm(
    "CosineAngles", "angle", lambda theta, k, angle: 0.5 * k * (jnp.cos(theta) - jnp.cos(angle)) ** 2,
    {"k": "kJ/mol", "angle": "rad"}, openmm="0.5*k*(cos(theta)-cos(angle))^2",
)  # fmt: skip
SQUARE = UserTerm(
    "SineTorsions", "torsion", lambda phi, k, scale: k * jnp.sin(phi) ** 2 * (1 + scale * jnp.sin(phi)),
    {"k": "kJ/mol"}, {"scale": "dimensionless"}, complete=False, openmm="k*sin(theta)^2*(1+scale*sin(theta))",
)  # fmt: skip
TERMS = [MORSE, UREY_BRADLEY, ANHARMONIC, SQUARE, DOUBLE_EXPONENTIAL, DAMPED_BUCKINGHAM_68]

VALENCE = """
<MorseBonds version="0.3">
  <Bond smirks="[*:1]~[*:2]" id="m1" depth="80 * kilocalories_per_mole" a="2.0/angstrom" length="1.3*angstrom"/>
  <Bond smirks="[*:1]-[#1:2]" id="m2" depth="400 * kilojoules_per_mole" a="20/nanometer" length="1.1*angstrom"/>
</MorseBonds>
<UreyBradleys version="0.3"><UreyBradley smirks="[#1:1]-[*:2]-[#1:3]" id="u1" k="5*kilocalories_per_mole/angstrom**2"
  length="1.8*angstrom"/></UreyBradleys>
<CosineAngles version="0.3"><Angle smirks="[*:1]~[*:2]~[*:3]" id="c1" k="50*kilocalories_per_mole" angle="110*degree"/>
</CosineAngles>
<SineTorsions version="0.3" scale="0.3"><Torsion smirks="[*:1]-[*:2]-[*:3]-[#8:4]" id="s1" k="3.0*kilojoules_per_mole"/>
</SineTorsions>"""
PAIRS = """
<DoubleExponential version="0.3" alpha="16.766" beta="4.427" {cut}>
  <Atom smirks="[*:1]" id="d1" epsilon="0.1*kilocalories_per_mole" r_min="3.4*angstrom"/>
  <Atom smirks="[#1:1]" id="d2" epsilon="0.02*kilocalories_per_mole" r_min="2.4*angstrom"/>
</DoubleExponential>
<DampedBuckingham68 version="0.3" gamma="35.8967/nanometer" scale14="0.75" {cut}>
  <Atom smirks="[*:1]" id="b1" a="30000*kilojoules_per_mole" b="36/nanometer"
    c6="0.001*kilojoules_per_mole*nanometer**6" c8="0.00002*kilojoules_per_mole*nanometer**8"/>
  <Atom smirks="[#1:1]" id="b2" a="9000*kilojoules_per_mole" b="38/nanometer"
    c6="0.0001*kilojoules_per_mole*nanometer**6" c8="0.000002*kilojoules_per_mole*nanometer**8"/>
</DampedBuckingham68>"""
CHARGES = '<Electrostatics version="0.4" cutoff="5.5*angstrom"/>'
CUT = 'cutoff="5.5*angstrom" switch_width="0.8*angstrom"'
BOX = np.diag([1.3, 1.25, 1.2])


def xml(*sections: str) -> str:
    head = '<?xml version="1.0" encoding="utf-8"?><SMIRNOFF version="0.3" aromaticity_model="OEAroModel_MDL">'
    return head + "".join(sections) + "</SMIRNOFF>"


@functools.cache
def vacuum():
    """Propanol with every term; no atom at a minimum."""
    source = xml(VALENCE, PAIRS.format(cut=""))
    molecule = samples.molecule("CCCO")
    return offjax.System.from_smirnoff(source, molecule, user_terms=TERMS), samples.positions("CCCO")


@functools.cache
def liquid():
    """Ethanol and water with charges, PME, in a small box."""
    counts = {"ethanol": 7, "water": 10}
    molecules, x = liquids.liquid(counts, BOX, seed=3)
    given = [liquids.molecule(kind) for kind in counts]
    source = xml(PAIRS.format(cut=CUT), CHARGES)
    made = offjax.System.from_smirnoff(source, molecules, charge_from_molecules=given, box=BOX, user_terms=TERMS)
    return made, x


def by_openmm(system, x, platform="Reference"):
    """Energies by section, and all forces."""
    import openmm

    made = system.to_openmm(split_terms=True)
    context = openmm.Context(made, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform))
    context.setPositions(x)
    energies = {
        name: context.getState(getEnergy=True, groups={n}).getPotentialEnergy()._value
        for n, name in force_groups(made).items()
    }
    return energies, np.array(context.getState(getForces=True).getForces(asNumpy=True)._value)


def test_every_term_agrees_with_openmm():
    system, x = vacuum()
    energies, forces = by_openmm(system, x)
    energy = system.to_jax()
    ours = energy.by_term(system.parameters, x)
    assert set(ours) == set(energies) == {term.section for term in TERMS}
    for name, value in energies.items():
        assert abs(ours[name] - value) < 1e-6 * max(abs(value), 1.0), name
        assert abs(value) > 1e-3
    np.testing.assert_allclose(-jax.grad(energy, 1)(system.parameters, x), forces, atol=1e-6 * forces.std())


def test_a_liquid_agrees_with_openmm():
    system, x = liquid()
    energies, forces = by_openmm(system, x)
    energy = system.to_jax(ewald_tolerance=1e-4)
    ours = energy.by_term(system.parameters, x)
    for name in ("DoubleExponential", "DampedBuckingham68"):  # OpenMM's quadrature of the tail is good to 1e-6
        assert abs(ours[name] - energies[name]) < 1e-6 * abs(energies[name]), name
    tails = {s: parts.get("dispersion") for s, parts in energy.components(system.parameters, x).items()}
    assert tails["DoubleExponential"] < -0.1 and tails["DampedBuckingham68"] < -0.1
    slope = -jax.grad(energy, 1)(system.parameters, x)
    np.testing.assert_allclose(slope, forces, atol=2e-4 * forces.std())  # PME grids of the two platforms differ


def difference(f, h):
    """Central difference of f(step) at zero, Richardson-extrapolated over h and h/2."""
    outer, inner = ((f(s) - f(-s)) / (2 * s) for s in (h, h / 2))
    return (4 * inner - outer) / 3


@pytest.mark.parametrize("case", [vacuum, liquid])
def test_every_parameter_gradient_agrees_with_differences(case):
    system, x = case()
    energy, p = system.to_jax(), system.parameters
    gradient, theta = np.asarray(jax.grad(energy)(p, x).to_vector()), p.to_vector()
    used = np.nonzero(system.used.to_vector())[0]
    for i in used:
        unit = np.eye(len(theta))[i]
        fd = difference(lambda s, unit=unit: float(energy(p.from_vector(theta + s * unit), x)), 1e-3 * theta[i])
        rms = np.sqrt(np.mean(gradient[used] ** 2))
        assert abs(gradient[i] - fd) <= 1e-6 * max(abs(gradient[i]), 1e-3 * rms), p.schema.flat[i]
    assert len(used) > 10


def test_forward_and_reverse_mode_agree(rng):
    """Of a second derivative, mixed in positions and parameters; one term of each kind."""
    source = xml(VALENCE, PAIRS.format(cut="").split("<DampedBuckingham68")[0])
    system, x = (
        offjax.System.from_smirnoff(source, samples.molecule("CCCO"), user_terms=TERMS),
        samples.positions("CCCO"),
    )
    energy, p = system.to_jax(), system.parameters
    v = rng.normal(size=x.shape)

    def along(q):
        return jax.jvp(lambda y: energy(q, y), (x,), (v,))[1]

    forward, reverse = jax.jit(lambda q: (jax.jacfwd(along)(q), jax.grad(along)(q)))(p)
    np.testing.assert_allclose(forward.to_vector(), reverse.to_vector(), rtol=1e-8, atol=1e-8)


def test_a_list_gives_what_all_pairs_give():
    counts = {"ethanol": 9}
    box = np.array([[1.2, 0, 0], [0.3, 1.15, 0], [-0.4, 0.3, 1.15]])
    molecules, x = liquids.liquid(counts, box, seed=3)
    source = xml(PAIRS.format(cut=CUT).split("<DampedBuckingham68")[0])
    system = offjax.System.from_smirnoff(source, molecules, box=box, user_terms=TERMS)
    energy, p = system.to_jax(), system.parameters
    neighbors = energy.neighbor_list(x, skin=0.02)

    @jax.jit
    def both(p, x, box, neighbors):
        slopes = [jax.value_and_grad(energy, (0, 1, 2))(p, x, box, n) for n in (None, neighbors)]
        return [(energy, slope[0].to_vector(), *slope[1:]) for energy, slope in slopes]

    for want, got in zip(*both(p, x, box, neighbors), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-9 * np.max(np.abs(want)))


def test_slots_and_instances_are_another_way_in():
    system, x = vacuum()
    energy, p = system.to_jax(), system.parameters
    want = energy(p, x)
    np.testing.assert_allclose(energy.at_slots(system.slots(p), x), want, rtol=1e-12)
    np.testing.assert_allclose(energy.at_instances(system.instances(p), x), want, rtol=1e-12)
    slopes = jax.grad(lambda slots: energy.at_slots(slots, x))(system.slots(p))
    np.testing.assert_allclose(
        system.vjp(slopes).to_vector(), jax.grad(energy)(p, x).to_vector(), rtol=1e-10, atol=1e-10
    )


def test_parameters_that_are_changed_come_back_from_files(tmp_path):
    system, x = vacuum()
    p = system.parameters
    p = p.select("DoubleExponential/alpha").insert(np.array([15.0]))
    p = p.select("MorseBonds/a", ["m2"]).insert(np.array([21.0]))
    system.to_offxml(tmp_path / "new.offxml", p)
    text = (tmp_path / "new.offxml").read_text()
    assert 'alpha="15.0 * dimensionless' in text and 'a="21.0 * nanometer ** -1"' in text
    again = offjax.System.from_smirnoff(tmp_path / "new.offxml", samples.molecule("CCCO"), user_terms=TERMS)
    np.testing.assert_array_equal(again.parameters.to_vector(), p.to_vector())
    np.testing.assert_array_equal(again.to_jax()(again.parameters, x), system.to_jax()(p, x))
    again.save(tmp_path / "system.h5")
    loaded = offjax.System.load(tmp_path / "system.h5", user_terms=TERMS)
    assert loaded.to_jax()(loaded.parameters, x) == system.to_jax()(p, x) and loaded.digest == again.digest
    with pytest.raises(InputError, match=r"<MorseBonds>, whose function no file holds.*user_terms"):
        offjax.System.load(tmp_path / "system.h5")
    other = UserTerm("MorseBonds", "bond", lambda r, depth: depth * r, {"depth": "kJ/mol/nm"})
    with pytest.raises(InputError, match="is not the definition of <MorseBonds>"):
        offjax.System.load(tmp_path / "system.h5", user_terms=[other, *TERMS[1:]])


def test_a_force_field_read_by_a_plugin_s_handler_is_taken(monkeypatch):
    from openff.toolkit import ForceField
    from openff.toolkit.typing.engines.smirnoff import forcefield

    system, x = vacuum()
    monkeypatch.setattr(forcefield, "load_handler_plugins", lambda: [term.parameter_handler() for term in TERMS])
    plain = ForceField(system.source, load_plugins=True)
    made = offjax.System.from_smirnoff(plain, samples.molecule("CCCO"), user_terms=TERMS)
    assert made.digest == system.digest
    monkeypatch.undo()
    assert "MorseBonds" not in ForceField()._parameter_handler_classes  # definitions are nobody else's business


def test_atoms_without_parameter_and_virtual_sites_take_no_part():
    half = UserTerm(
        "Half", "pair", lambda r, i, j: i.c * j.c / r**12, {"c": "(kJ/mol*nm**12)**0.5"}, complete=False,
        openmm="c1*c2/r^12",
    )  # fmt: skip
    unit = "(kilojoules_per_mole*nanometer**12)**0.5"
    source = xml(
        '<Half version="0.3" cutoff="5.5*angstrom" switch_width="0*angstrom">'
        f'<Atom smirks="[#8:1]" id="h1" c="0.001*{unit}"/></Half>'
    )
    molecules, x = liquids.liquid({"water": 30}, np.diag([1.2] * 3), seed=1)
    system = offjax.System.from_smirnoff(
        ["offjax-sites-1.0.offxml", source], molecules, box=[1.2] * 3, user_terms=[half]
    )
    x = np.asarray(system.place_sites(x))
    assert len(x) == 150
    energies, _ = by_openmm(system, x)
    energy = system.to_jax()
    got = energy.by_term(system.parameters, x)["Half"]
    np.testing.assert_allclose(got, energies["Half"], rtol=1e-6)
    d = x[:90:3][:, None] - x[:90:3][None]
    d -= 1.2 * np.round(d / 1.2)
    r2 = np.sum(d**2, axis=-1)[np.triu_indices(30, 1)]
    direct = energy.components(system.parameters, x)["Half"]["direct"]
    np.testing.assert_allclose(direct, np.sum(1e-6 / r2[r2 < 0.55**2] ** 6), rtol=1e-10)
    neighbors = energy.neighbor_list(x, skin=0.03)
    np.testing.assert_allclose(energy.by_term(system.parameters, x, None, neighbors)["Half"], got, rtol=1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "quartet"}, "kind must be one of pair, bond, urey-bradley"),
        ({"attributes": {}}, "attributes and constants need names"),
        ({"attributes": {"smirks": "nm"}}, "'smirks' cannot be the name"),
        ({"attributes": {"c": "nm", "d": "nm"}}, "does not take these attributes"),
        ({"potential": lambda r, c: jnp.sum(r) * c[0]}, "must act elementwise"),
        ({"kind": "pair", "potential": lambda r, i, j: r * i.c}, "must be symmetric"),
    ],
)
def test_definitions_that_cannot_work_are_refused(change, message):
    definition = {"section": "New", "kind": "bond", "potential": lambda r, c: c * r, "attributes": {"c": "kJ/mol/nm"}}
    with pytest.raises(InputError, match=message):
        UserTerm(**(definition | change))


def test_files_and_definitions_that_do_not_fit_are_refused():
    molecule = samples.molecule("CCCO")
    make = offjax.System.from_smirnoff
    with pytest.raises(UnsupportedError, match=r"<MorseBonds> is not supported.*user_terms"):
        make(xml(VALENCE), molecule)
    with pytest.raises(InputError, match="<MorseBonds> twice"):
        make(xml(VALENCE), molecule, user_terms=[MORSE, MORSE])
    with pytest.raises(InputError, match="<vdW> is a section of SMIRNOFF"):
        make(xml(VALENCE), molecule, user_terms=[UserTerm("vdW", "bond", lambda r, c: c * r, {"c": "kJ/mol/nm"})])
    with pytest.raises(InputError, match="depth has the unit 'kcal/mol', but potentials are written in nm"):
        wrong = UserTerm("MorseBonds", "bond", lambda r, depth: depth, {"depth": "kcal/mol"})
        make(xml(VALENCE), molecule, user_terms=[wrong, *TERMS[1:]])
    with pytest.raises(UnassignedParameterError, match=r"<MorseBonds> for 8 of 11.*complete=False"):
        only = xml(VALENCE.replace('"[*:1]~[*:2]"', '"[#6:1]~[#8:2]"').replace('"[*:1]-[#1:2]"', '"[#6:1]-[#6:2]"'))
        make(only.replace("[#6:1]-[#6:2]", "[#6:1]-[#6X4:2]"), molecule, user_terms=TERMS)
    with pytest.raises(UnsupportedError, match='scale13="0.5"'):
        make(xml(PAIRS.format(cut='scale13="0.5"')), molecule, user_terms=TERMS)
    with pytest.raises(UnsupportedError, match="another cutoff or switch_width"):
        make(xml(PAIRS.format(cut="").replace("beta=", 'cutoff="8*angstrom" beta=')), molecule, user_terms=TERMS)
    with pytest.raises(InputError, match="alpha"):
        make(xml(PAIRS.format(cut="").replace('alpha="16.766"', "")), molecule, user_terms=TERMS)
    with pytest.raises(InputError, match="[Ii]ncompatible.*alpha|alpha.*tolerance"):
        second = xml(PAIRS.format(cut="").replace("16.766", "17.0"))
        make([xml(PAIRS.format(cut="")), second], molecule, user_terms=TERMS)


def test_an_openmm_expression_that_differs_from_the_function_is_refused():
    molecule, source = samples.molecule("CO"), xml(VALENCE.split("<UreyBradleys")[0])
    for expression, message in (
        (None, "has no OpenMM expression"),
        ("depth*(1-exp(-a*(r-length)))", r"gives .* kJ/mol and the function .* at r=0.08, depth="),
        ("depth*sin(missing)", "OpenMM cannot use the expression"),
    ):
        changed = UserTerm("MorseBonds", "bond", MORSE.potential, MORSE.attributes, openmm=expression)
        system = offjax.System.from_smirnoff(source, molecule, user_terms=[changed])
        with pytest.raises(InputError, match=message):
            system.to_openmm()


def test_the_generated_handlers_read_and_write():
    made = read([xml(VALENCE, PAIRS.format(cut=""))], TERMS)
    again = read([made.to_string()], TERMS)
    assert again.to_string() == made.to_string()


def test_a_batch_gives_the_energies_forces_and_gradients_of_its_systems(rng):
    source = xml(VALENCE, PAIRS.format(cut="").split("<DampedBuckingham68")[0], CHARGES)
    smiles = ["CCO", "C"]
    systems = [
        offjax.System.from_smirnoff(
            source, samples.molecule(s), charge_from_molecules=[samples.molecule(s)], user_terms=TERMS
        )
        for s in smiles
    ]
    batch = offjax.SystemBatch.from_systems(systems)
    xs = [np.stack([samples.positions(s, seed) for seed in range(2)]) for s in smiles]
    conformers, p = batch.pack(xs), systems[0].parameters
    single = [[float(s.to_jax()(p, y)) for y in x] for s, x in zip(systems, xs, strict=True)]
    for energies in (batch.energies(p, conformers), batch.plain(conformers).energies(p, conformers.positions)):
        np.testing.assert_allclose(energies, np.ravel(single), rtol=1e-10)

    @jax.jit
    def loss(p):
        energies, forces = batch.energies_and_forces(p, conformers)
        return jnp.mean(energies**2) + jnp.mean(forces**2)

    theta, v = p.to_vector(), rng.normal(size=p.schema.size)
    slope = np.vdot(jax.grad(loss)(p).to_vector(), v * theta)
    fd = difference(lambda s: float(loss(p.from_vector(theta * (1 + s * v)))), 1e-4)
    assert abs(slope - fd) < 1e-6 * abs(fd)


def test_torsions_with_a_cusp_have_finite_gradients_in_a_batch():
    """|sin(phi/2)| has no derivative at phi = 0, where no torsion of these molecules is: nor may one of padding be."""
    cusp = UserTerm(
        "Cusps", "torsion", lambda phi, k: k * jnp.sqrt(2 - 2 * jnp.cos(phi)), {"k": "kJ/mol"}, complete=False
    )
    source = xml(
        '<Cusps version="0.3"><Torsion smirks="[*:1]-[*:2]-[*:3]-[*:4]" id="p1" k="3*kilojoules_per_mole"/></Cusps>'
    )
    smiles = ["CCCO", "CCO", "CO"]
    systems = [offjax.System.from_smirnoff(source, samples.molecule(s), user_terms=[cusp]) for s in smiles]
    batch, p = offjax.SystemBatch.from_systems(systems), systems[0].parameters
    conformers = batch.pack([samples.positions(s) for s in smiles])

    def loss(evaluate):
        def of(p):
            energies, forces = evaluate(p)
            return jnp.sum(energies**2) + jnp.sum(forces**2)

        return jax.grad(of)(p).to_vector()

    plain = batch.plain(conformers)
    expected = loss(lambda p: plain.energies_and_forces(p, conformers.positions))
    assert np.all(np.isfinite(expected)) and np.any(expected != 0)
    np.testing.assert_allclose(loss(lambda p: batch.energies_and_forces(p, conformers)), expected, rtol=1e-10)
