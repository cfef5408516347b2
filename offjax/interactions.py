"""The nonbonded energy, part by part: pairs in direct space, 1-4 pairs, and what periodic boxes add to them.

Every part is a function of arrays. Pairs in direct space are all pairs (:func:`direct`, the definition) or those of a
neighbour list (:func:`listed`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from offjax import geometry
from offjax.constants import REACTION_FIELD_DIELECTRIC
from offjax.nonbonded import blocks, dispersion, ewald, periodic, pme
from offjax.nonbonded.ewald import Ewald
from offjax.nonbonded.neighbors import NeighborList
from offjax.nonbonded.series import inverse_root
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
    scaled pairs and the excluded ones. ``full`` is None where there are too many: neighbour lists only.
    """

    full: Int[Array, "full 2"] | None
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


TOGETHER = "vdW and Electrostatics"
"""The section of direct-space energies that were summed together."""


def components(
    treatment: Treatment,
    pairs: Pairs,
    particles: Particles,
    x,
    box,
    total,
    neighbors: NeighborList | None = None,
    accumulate: str | None = None,
    together: bool = False,
) -> dict[str, dict[str, Array]]:
    """``{"vdW": {part: energy}, "Electrostatics": {part: energy}}``, kJ/mol; the parts of a section add up to it.

    ``x`` (n_particles, 3) nm; ``box`` (3, 3) nm, or None for methods that are not periodic; ``total`` sums an array.
    With ``neighbors``, the direct part is a sum over the list (``accumulate`` as there), in one pass over the pairs
    under the name :data:`TOGETHER` if ``together``. With a box that is not reduced, or too small for the cutoff, every
    periodic part is NaN.
    """
    if treatment.periodic:
        box = box * jnp.where(periodic.admissible(box, treatment.cutoff), 1.0, jnp.nan)
    if neighbors is None:
        near = direct(treatment, particles, x, box, pairs.full)
    else:
        near = listed(treatment, particles, x, box, neighbors, accumulate, together)
        own = neighbors.excludes(pairs.exceptions)  # a list of another System would count other pairs
        near = {section: jnp.where(own, energy, jnp.nan) for section, energy in near.items()}
    found = [
        ("direct", near),
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


def listed(
    treatment: Treatment, particles: Particles, x, box, neighbors: NeighborList, accumulate: str | None, together: bool
) -> dict[str, Array]:
    """Energy of all pairs of a neighbour list by section, or of all sections in one pass over the pairs."""
    sections = tuple(
        name for name, value in (("vdW", particles.sigma), ("Electrostatics", particles.charge)) if value is not None
    )
    groups = {TOGETHER: sections} if together else {name: (name,) for name in sections}
    return {
        name: blocks.pair_energy(
            PairPotential(treatment, group),
            neighbors,
            x,
            box,
            PairPotential(treatment, group).parameters(particles),
            accumulate=accumulate,
        )
        for name, group in groups.items()
    }


@dataclass(frozen=True)
class PairPotential:
    """The direct-space energy of a pair in some sections, as one scalar function for :mod:`offjax.nonbonded.blocks`."""

    treatment: Treatment
    sections: tuple[str, ...]

    def parameters(self, particles: Particles) -> tuple[Array, ...]:
        """What a pair needs of each particle: sigma and sqrt(epsilon), charge."""
        lennard_jones = (particles.sigma, geometry.safe_sqrt(particles.epsilon)) if "vdW" in self.sections else ()
        return (*lennard_jones, *((particles.charge,) if "Electrostatics" in self.sections else ()))

    def __call__(self, r2, first, second):
        lennard_jones = c6 = product = None
        if "vdW" in self.sections:
            sigma, root = zip(first[:2], second[:2], strict=True)
            lennard_jones = 0.5 * (sigma[0] + sigma[1]), root[0] * root[1]
            c6 = 4.0 * (sigma[0] * sigma[1]) ** 3 * lennard_jones[1]
        if "Electrostatics" in self.sections:
            product = first[-1] * second[-1]
        return sum(pair_potentials(self.treatment, r2, lennard_jones, c6, product, polynomials=True).values())


def pair_potentials(
    treatment: Treatment, r2, lennard_jones, c6, charge_product, polynomials: bool = False
) -> dict[str, Array]:
    """Energy of fully interacting pairs at squared distances ``r2`` within the cutoff, kJ/mol.

    ``lennard_jones``: (sigma, epsilon) of the pairs or None; ``c6``: products of dispersion coefficients, for LJPME;
    ``charge_product`` or None. ``polynomials`` take the place of the special functions of Ewald sums, to rounding.
    """
    cutoff, switch = treatment.cutoff, treatment.switch
    energies = {}
    if lennard_jones is not None:
        if treatment.dispersion is None and polynomials:
            u = vdw.potential(1.0, lennard_jones[0] * inverse_root(r2), lennard_jones[1])
        elif treatment.dispersion is None:
            u = vdw.potential(r2, *lennard_jones)
        else:
            of_pair = vdw.ewald_direct_polynomial if polynomials else vdw.ewald_direct_potential
            u = of_pair(r2, *lennard_jones, c6, treatment.dispersion.alpha, cutoff)
        if switch is not None:
            u = u * vdw.switching(jnp.sqrt(r2), switch, cutoff)
        energies["vdW"] = u
    if charge_product is not None:
        if treatment.coulomb is not None and polynomials:
            u = electrostatics.ewald_direct_polynomial(r2, charge_product, treatment.coulomb.alpha, cutoff)
        elif treatment.coulomb is not None:
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
