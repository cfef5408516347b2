"""Implicit solvent: exact answers for one ion and far pairs, degenerate geometries, settings of the force field."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import offjax
from offjax.constants import COULOMB
from offjax.fit.targets.interactions import intermolecular
from offjax.terms import gbsa
from tests import sites

WATER = {"solvent_dielectric": 78.5, "solute_dielectric": 1.0, "surface_area_penalty": 0.0, "solvent_radius": 0.14}
SCREENING = 1.0 - 1.0 / 78.5

GENERAL = '<Atom smirks="[*:1]" radius="0.15*nanometer" scale="0.8"/>'
SECTION = '<GBSA version="0.3" gb_model="{model}" sa_model="{surface}" {more}>{atoms}</GBSA>'


def section(model="OBC2", surface="ACE", more="", atoms=GENERAL):
    return SECTION.format(model=model, surface=surface, more=more, atoms=atoms)


def parameterize(text, smiles="CO", extra="", **options):
    from openff.toolkit import ForceField

    made = sites.molecule(smiles)
    chosen = ForceField("openff_unconstrained-2.2.1.offxml", f"{sites.HEAD}{text}{extra}</SMIRNOFF>")
    return offjax.System.from_smirnoff(chosen, made, charge_from_molecules=[made], **options)


def total(x, charge, radius, scale, model="OBC2", **options):
    arrays = (jnp.asarray(v, float) for v in (x, charge, radius, scale))
    return jnp.sum(gbsa.energies(*arrays, model=model, **{**WATER, **options}))


@pytest.mark.parametrize("model", gbsa.MODELS)
def test_one_ion_has_borns_energy_and_its_surface(model):
    born = -0.5 * COULOMB * SCREENING / (0.17 - gbsa.OFFSET)
    assert total(np.zeros((1, 3)), [1], [0.17], [0.8], model=model) == pytest.approx(born, rel=1e-14)
    surface = 4 * math.pi * 2.26 * 0.31**2 * (0.17 / 0.161) ** 6
    u = total(np.zeros((1, 3)), [0], [0.17], [0.8], model=model, surface_area_penalty=2.26)
    assert u == pytest.approx(surface, rel=1e-14)


@pytest.mark.parametrize("model", gbsa.MODELS)
def test_far_charges_are_screened_by_the_solvent(model):
    r, q = 50.0, np.array([1.0, -0.5])
    x = np.array([[0, 0, 0], [r, 0, 0]])
    alone = sum(total(x[[n]], q[[n]], [0.15], [0.8], model=model) for n in (0, 1))
    pair = total(x, q, [0.15, 0.15], [0.8, 0.8], model=model) - alone
    assert pair + COULOMB * q.prod() / r == pytest.approx(COULOMB * q.prod() / (78.5 * r), rel=1e-4)


@pytest.mark.parametrize("model", gbsa.MODELS)
def test_atoms_at_one_point_have_finite_values_and_derivatives_in_both_modes(model):
    x = np.array([[0, 0, 0], [0, 0, 0], [0.2, 0, 0], [0.2, 0, 0.001]])

    def u(x, charge, radius, scale):
        return total(x, charge, radius, scale, model=model, surface_area_penalty=2.0)

    arguments = (jnp.asarray(x), jnp.array([0.3, -0.2, 0.1, 0.0]), jnp.full(4, 0.15), jnp.array([0.8, 0.0, 1.6, 0.8]))
    assert np.isfinite(u(*arguments))
    every = (0, 1, 2, 3)
    reverse, forward = jax.jit(jax.grad(u, every))(*arguments), jax.jit(jax.jacfwd(u, every))(*arguments)
    assert all(np.all(np.isfinite(leaf)) for leaf in reverse)
    assert all(np.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(reverse, forward, strict=True))
    assert np.all(np.isfinite(jax.jit(jax.hessian(u))(*arguments)))


def test_settings_are_those_of_the_file():
    more = 'solvent_dielectric="40" solute_dielectric="2" surface_area_penalty="3*calories/mole/angstroms**2" \
solvent_radius="1.2*angstroms"'
    settings = parameterize(section("HCT", more=more)).gbsa
    assert (settings.model, settings.solvent_dielectric, settings.solute_dielectric) == ("HCT", 40.0, 2.0)
    assert settings.surface_area_penalty == pytest.approx(3 * 0.4184) and settings.solvent_radius == pytest.approx(0.12)
    assert parameterize(section(surface="None")).gbsa.surface_area_penalty == 0.0


def test_slots_are_radius_and_scale_of_the_last_match():
    carbon = '<Atom smirks="[#6:1]" radius="1.7*angstrom" scale="0.72"/>'
    system = parameterize(section(atoms=GENERAL + carbon))
    slots = system.slots()["GBSA"]
    assert slots["radius"].tolist() == pytest.approx([0.17] + [0.15] * 5)
    assert slots["scale"].tolist() == pytest.approx([0.72] + [0.8] * 5)
    assert system.parameters.labels["GBSA"]["scale"][1].unit == "dimensionless"
    assert system.used["GBSA"]["radius"].tolist() == [5, 1]


def test_what_implicit_solvent_cannot_do_raises_by_name():
    with pytest.raises(offjax.UnassignedParameterError, match="<GBSA>.*O1"):
        parameterize(section(atoms='<Atom smirks="[#6,#1:1]" radius="0.15*nanometer" scale="0.8"/>'))
    with pytest.raises(offjax.UnsupportedError, match="<GBSA> with <VirtualSites>"):
        one = sites.SITES + "</VirtualSites>"
        parameterize(section(), "COC", extra=f'<VirtualSites version="0.3" exclusion_policy="parents">{one}')
    dimer = parameterize(section(), "CO.C")
    with pytest.raises(offjax.UnsupportedError, match="<GBSA>: interaction energies"):
        intermolecular(dimer)
    periodic = parameterize(section(), box=[3.0, 3.0, 3.0])
    for export in (periodic.to_jax, periodic.to_openmm):
        with pytest.raises(offjax.UnsupportedError, match="<GBSA> in a periodic box"):
            export()


def test_radii_below_the_offset_are_refused():
    with pytest.raises(offjax.InputError, match=r"GBSA/radius .*0\.005 nm.*above 0\.009 nm"):
        parameterize(section(atoms=GENERAL.replace("0.15", "0.005")))
    system = parameterize(section())
    with pytest.raises(offjax.InputError, match="GBSA/radius is 0.002 nm"):
        system.to_openmm(system.parameters.replace("GBSA", "radius", [0.002]))


def test_files_keep_implicit_solvent(tmp_path):
    system = parameterize(section("OBC1", surface="None"))
    system.save(tmp_path / "solvent.h5")
    loaded = offjax.System.load(tmp_path / "solvent.h5")
    assert loaded.gbsa == system.gbsa
    x = sites.arranged([sites.molecule("CO")])
    assert (
        loaded.to_jax().by_term(loaded.parameters, x)["GBSA"] == system.to_jax().by_term(system.parameters, x)["GBSA"]
    )
    p = system.parameters.replace("GBSA", "scale", [0.75]).replace("GBSA", "radius", [0.16])
    system.to_offxml(tmp_path / "solvent.offxml", p)
    made = sites.molecule("CO")
    again = offjax.System.from_smirnoff(tmp_path / "solvent.offxml", made, charge_from_molecules=[made])
    assert again.gbsa == system.gbsa
    assert np.array_equal(again.parameters.to_vector(), p.to_vector())


SMILES, COUNTS = ("CO", "CC(=O)[O-]", "C"), (2, 1, 0)


@pytest.fixture(scope="module")
def batch():
    """Molecules of different sizes in implicit solvent, and conformers of them: none of the last."""
    from openff.toolkit import ForceField

    more = 'solvent_dielectric="40" solute_dielectric="2"'
    text = section("OBC1", more=more, atoms=GENERAL + '<Atom smirks="[#8:1]" radius="0.13*nanometer" scale="0.7"/>')
    chosen = ForceField("openff_unconstrained-2.2.1.offxml", f"{sites.HEAD}{text}</SMIRNOFF>")
    made = [sites.molecule(s) for s in SMILES]
    batch = offjax.SystemBatch.from_systems(
        [offjax.System.from_smirnoff(chosen, m, charge_from_molecules=[m]) for m in made]
    )
    rng = np.random.default_rng(4)
    arrays = [sites.arranged([m]) + rng.normal(0, 0.003, (n, m.n_atoms, 3)) for m, n in zip(made, COUNTS, strict=True)]
    return batch, arrays


def test_a_batch_has_the_energies_and_derivatives_of_its_molecules(batch):
    batch, arrays = batch
    p, conformers = batch.systems[0].parameters, batch.pack(arrays)
    energies, forces = batch.energies_and_forces(p, conformers)
    expected, slopes, gradient = [], [], 0.0
    for system, x in zip(batch.systems[:2], arrays, strict=False):
        both = jax.vmap(jax.value_and_grad(system.to_jax(), (0, 1)), (None, 0))
        u, (of_p, of_x) = jax.jit(both)(p, x)
        expected.extend(u)
        slopes.extend(of_x)
        gradient += jax.vmap(lambda g: g.to_vector())(of_p).sum(axis=0)
    np.testing.assert_allclose(energies, expected, rtol=1e-12)
    slopes = np.concatenate(slopes)
    np.testing.assert_allclose(forces, -slopes, atol=1e-12 * np.abs(slopes).max())
    plain = jax.jit(batch.plain(conformers).energies)(p, conformers.positions)
    np.testing.assert_allclose(plain, energies, rtol=1e-12)

    def loss(p, conformers, weight):
        u, f = batch.energies_and_forces(p, conformers)
        return jnp.sum(u) + weight * jnp.sum(f**2)

    slope = jax.jit(jax.grad(loss))
    one = p.from_vector(gradient)
    for (name, attribute), values in zip(p.schema.slices, jax.tree.leaves(slope(p, conformers, 0.0)), strict=True):
        np.testing.assert_allclose(values, one[name][attribute], atol=1e-9 * np.abs(one[name][attribute]).max())
    assert all(np.all(one["GBSA"][name] != 0) for name in ("radius", "scale"))

    theta, step = p.to_vector(), np.zeros(p.schema.size)
    for entry in (("GBSA", "radius"), ("GBSA", "scale"), ("vdW", "epsilon")):
        step[p.schema.slices[entry]] = 1e-4 * theta[p.schema.slices[entry]]
    ends = [
        sum(float(jnp.sum(v**2)) for v in batch.energies_and_forces(p.from_vector(theta + s * step), conformers)[1:])
        for s in (-2, -1, 1, 2)
    ]
    difference = (8 * (ends[2] - ends[1]) - (ends[3] - ends[0])) / 12
    total = (slope(p, conformers, 1.0).to_vector() - gradient) @ step
    assert total == pytest.approx(difference, rel=1e-6)


@pytest.mark.slow
def test_a_batch_finds_the_minima_in_solvent(batch):
    batch, arrays = batch
    p, conformers = batch.systems[0].parameters, batch.pack(arrays)
    found = batch.minimize(p, conformers, tolerance=1e-4)
    assert np.all(found.converged)
    energies, forces = batch.energies_and_forces(p, conformers.with_positions(found.positions))
    np.testing.assert_allclose(found.energies, energies, rtol=1e-12)
    assert np.max(np.linalg.norm(forces, axis=1)) < 1.001e-4
    acetate = batch.unpack(found.positions, conformers)[1][0]
    assert batch.systems[1].to_jax().by_term(p, acetate)["GBSA"] < -50
