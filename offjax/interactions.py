"""The nonbonded energy, part by part: pairs in direct space, 1-4 pairs, and what periodic boxes add to them.

Every part is a function of arrays. The pairs are all pairs here; a faster way to sum them replaces :func:`direct`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from offjax import geometry
from offjax.constants import REACTION_FIELD_DIELECTRIC
from offjax.nonbonded import dispersion, ewald, periodic, pme
from offjax.nonbonded.ewald import Ewald
from offjax.terms import electrostatics, vdw


@dataclass(frozen=True)
class Treatment:
    """OpenMM's nonbonded method, the cutoff and switching distance (nm), the parameters of the Ewald sums, and the
    dielectric constant beyond the cutoff of a reaction field."""

    method: str = "NoCutoff"
    cutoff: float = math.inf
    switch: float | None = None
    coulomb: Ewald | None = None
    dispersion: Ewald | None = None
    reaction_field_dielectric: float = REACTION_FIELD_DIELECTRIC

    @property
    def periodic(self) -> bool:
        return self.method in PERIODIC


METHODS = ("NoCutoff", "CutoffNonPeriodic", "CutoffPeriodic", "PME", "LJPME")
PERIODIC = ("CutoffPeriodic", "PME", "LJPME")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Pairs:
    """Which particles interact.

    ``full`` (n, 2) interact fully, within the cutoff; ``scaled`` (n, 2) by their scales, without cutoff and between
    the atoms as they are given, not their images, as in OpenMM; ``exceptions`` (n, 2) are all that are not full: the
    scaled pairs and the excluded ones.
    """

    full: Int[Array, "full 2"]
    scaled: Int[Array, "scaled 2"]
    vdw_scale: Float[Array, " scaled"]
    coulomb_scale: Float[Array, " scaled"]
    exceptions: Int[Array, "exception 2"]


@dataclass(frozen=True, eq=False)
class Particles:
    """sigma (nm), epsilon (kJ/mol), charge (e) of every particle; None where the force field has no such section."""

    sigma: Float[Array, " particle"] | None
    epsilon: Float[Array, " particle"] | None
    charge: Float[Array, " particle"] | None


def components(treatment: Treatment, pairs: Pairs, particles: Particles, x, box, total) -> dict[str, dict[str, Array]]:
    """``{"vdW": {part: energy}, "Electrostatics": {part: energy}}``, kJ/mol; the parts of a section add up to it.

    ``x`` (n_particles, 3) nm; ``box`` (3, 3) nm, or None for methods that are not periodic; ``total`` sums an array.
    With a box that is not reduced, or too small for the cutoff, every periodic part is NaN.
    """
    if treatment.periodic:
        box = box * jnp.where(periodic.admissible(box, treatment.cutoff), 1.0, jnp.nan)
    found = [
        ("direct", direct(treatment, particles, x, box, pairs.full)),
        ("exceptions", scaled(treatment, particles, x, pairs)),
        *long_range(treatment, particles, x, box, pairs.exceptions),
    ]
    parts: dict[str, dict[str, Array]] = {}
    for name, energies in found:
        for section, terms in energies.items():
            parts.setdefault(section, {})[name] = total(terms)
    return parts


def direct(treatment: Treatment, particles: Particles, x, box, pairs: Int[Array, "pair 2"]) -> dict[str, Array]:
    """Energy of each pair by section: cut off, switched, in the nearest image, in direct space, as the method says."""
    i, j = pairs[:, 0], pairs[:, 1]
    difference = x[j] - x[i]
    if treatment.periodic:
        difference = periodic.minimum_image(difference, box)
    r2 = geometry.dot(difference, difference)
    if treatment.cutoff == math.inf:
        return pair_potentials(treatment, r2, *_pair_parameters(treatment, particles, i, j))
    # beyond the cutoff r is replaced before it is used; the comparison keeps NaN inside
    outside = r2 >= treatment.cutoff**2
    r2 = jnp.where(outside, treatment.cutoff**2, r2)
    energies = pair_potentials(treatment, r2, *_pair_parameters(treatment, particles, i, j))
    return {section: jnp.where(outside, 0.0, u) for section, u in energies.items()}


def pair_potentials(treatment: Treatment, r2, lennard_jones, c6, charge_product) -> dict[str, Array]:
    """Energy of fully interacting pairs at squared distances ``r2`` within the cutoff, kJ/mol.

    ``lennard_jones``: (sigma, epsilon) of the pairs or None; ``c6``: products of dispersion coefficients, for LJPME;
    ``charge_product`` or None.
    """
    cutoff, switch = treatment.cutoff, treatment.switch
    energies = {}
    if lennard_jones is not None:
        if treatment.dispersion is None:
            u = vdw.potential(r2, *lennard_jones)
        else:
            u = vdw.ewald_direct_potential(r2, *lennard_jones, c6, treatment.dispersion.alpha, cutoff)
        if switch is not None:
            u = u * vdw.switching(jnp.sqrt(r2), switch, cutoff)
        energies["vdW"] = u
    if charge_product is not None:
        if treatment.coulomb is not None:
            u = electrostatics.ewald_direct_potential(r2, charge_product, treatment.coulomb.alpha)
        elif cutoff < math.inf:
            u = electrostatics.reaction_field_potential(r2, charge_product, cutoff, treatment.reaction_field_dielectric)
        else:
            u = electrostatics.potential(r2, charge_product)
        energies["Electrostatics"] = u
    return energies


def scaled(treatment: Treatment, particles: Particles, x, pairs: Pairs) -> dict[str, Array]:
    """Energy of each scaled pair by section, without cutoff."""
    i, j = pairs.scaled[:, 0], pairs.scaled[:, 1]
    r2 = geometry.dot(x[j] - x[i], x[j] - x[i])
    lennard_jones, _, product = _pair_parameters(treatment, particles, i, j)
    energies = {}
    if lennard_jones is not None:
        energies["vdW"] = pairs.vdw_scale * vdw.potential(r2, *lennard_jones)
    if product is not None:
        energies["Electrostatics"] = electrostatics.potential(r2, pairs.coulomb_scale * product)
    return energies


def long_range(
    treatment: Treatment, particles: Particles, x, box, exceptions: Int[Array, "exception 2"]
) -> list[tuple[str, dict[str, Array]]]:
    """What a periodic box adds to the pairs: (part, energies by section)."""
    if not treatment.periodic:
        return []
    found: list[tuple[str, dict[str, Array]]] = []
    i, j = exceptions[:, 0], exceptions[:, 1]
    r2 = geometry.dot(x[j] - x[i], x[j] - x[i])
    if particles.charge is not None and treatment.coulomb is not None:
        q, alpha = particles.charge, treatment.coulomb.alpha
        back = electrostatics.ewald_excluded_potential(r2, q[i] * q[j], alpha)
        background = ewald.background_energy(q, alpha, periodic.volume(box))
        found += [
            ("reciprocal", {"Electrostatics": pme.reciprocal_energies(x, q, box, treatment.coulomb)}),
            ("exclusions", {"Electrostatics": back}),
            ("self", {"Electrostatics": ewald.self_energies(q, alpha)}),
            ("background", {"Electrostatics": background}),
        ]
    if particles.sigma is None or particles.epsilon is None:
        return found
    if treatment.dispersion is None:
        root = geometry.safe_sqrt(particles.epsilon)
        volume = periodic.volume(box)
        tail = dispersion.long_range_energy(particles.sigma, root, volume, treatment.cutoff, treatment.switch)
        return [*found, ("dispersion", {"vdW": tail})]
    c6, alpha = vdw.dispersion_coefficient(particles.sigma, particles.epsilon), treatment.dispersion.alpha
    return [
        *found,
        ("reciprocal", {"vdW": pme.dispersion_energies(x, c6, box, treatment.dispersion)}),
        ("exclusions", {"vdW": vdw.ewald_excluded_potential(r2, c6[i] * c6[j], alpha)}),
        ("self", {"vdW": ewald.dispersion_self_energies(c6, alpha)}),
    ]


def _pair_parameters(treatment: Treatment, particles: Particles, i, j):
    """((sigma, epsilon), product of dispersion coefficients, charge product) of pairs; None where there is none."""
    lennard_jones = c6 = product = None
    if particles.sigma is not None and particles.epsilon is not None:
        sigma, epsilon = particles.sigma, particles.epsilon
        lennard_jones = vdw.combine(sigma[i], sigma[j], epsilon[i], epsilon[j])
        if treatment.dispersion is not None:
            c = vdw.dispersion_coefficient(sigma, epsilon)
            c6 = c[i] * c[j]
    if particles.charge is not None:
        product = particles.charge[i] * particles.charge[j]
    return lennard_jones, c6, product
