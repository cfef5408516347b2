"""The nonbonded energy, part by part: pairs in direct space, 1-4 pairs, and what periodic boxes add to them.

Every part is a function of arrays. Pairs in direct space are all pairs (:func:`direct`, the definition) or those of a
neighbour list (:func:`listed`).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from offjax import geometry
from offjax.constants import REACTION_FIELD_DIELECTRIC
from offjax.nonbonded import blocks, dispersion, ewald, periodic, pme
from offjax.nonbonded.ewald import Ewald
from offjax.nonbonded.neighbors import NeighborList
from offjax.nonbonded.series import inverse_root
from offjax.terms import electrostatics, vdw
from offjax.terms.user import UserTerm

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class Treatment:
    """OpenMM's nonbonded method, the cutoff and switching distance (nm), the parameters of the Ewald sums, the
    dielectric constant beyond the cutoff of a reaction field, and the pair potentials of the user."""

    method: str = "NoCutoff"
    cutoff: float = math.inf
    switch: float | None = None
    coulomb: Ewald | None = None
    dispersion: Ewald | None = None
    reaction_field_dielectric: float = REACTION_FIELD_DIELECTRIC
    user_pairs: tuple[UserTerm, ...] = ()

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
    ``separated`` (n, 2) are the atoms three bonds apart, for the user's potentials with their ``user_scales``.
    ``user_classes`` are for each of these the class of every particle (particles of one class have equal parameters;
    those that take no part have the number of classes) and how many particles each class has.
    """

    full: Int[Array, "full 2"] | None
    scaled: Int[Array, "scaled 2"]
    vdw_scale: Float[Array, " scaled"]
    coulomb_scale: Float[Array, " scaled"]
    exceptions: Int[Array, "exception 2"]
    separated: Int[Array, "separated 2"]
    user_scales: Float[Array, " user"]
    user_classes: tuple[tuple[Int[Array, " particle"], Float[Array, " class"]], ...]


@dataclass(frozen=True, eq=False)
class Particles:
    """sigma (nm), epsilon (kJ/mol), charge (e) of every particle; None where the force field has no such section.

    ``user[n]`` are the parameters of ``Treatment.user_pairs[n]``, see :meth:`offjax.terms.user.UserTerm.of_particles`.
    """

    sigma: Float[Array, " particle"] | None
    epsilon: Float[Array, " particle"] | None
    charge: Float[Array, " particle"] | None
    user: tuple[tuple[Float[Array, " particle"], ...], ...] = ()


TOGETHER = "all pairs"
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
    """``{"vdW": {part: energy}, "Electrostatics": {part: energy}}``, kJ/mol, and one item for each pair potential of
    the user; the parts of a section add up to it.

    ``x`` (n_particles, 3) nm; ``box`` (3, 3) nm, or None for methods that are not periodic; ``total`` sums an array.
    With ``neighbors``, the direct part is a sum over the list (``accumulate`` as there), in one pass over the pairs
    under the name :data:`TOGETHER` if ``together``. With a box that is not reduced, or too small for the cutoff, and
    with positions so far away that they have no digits left within the cutoff, every periodic part is NaN.
    """
    if treatment.periodic:
        serves = periodic.admissible(box, treatment.cutoff) & periodic.resolved(x, treatment.cutoff)
        box = box * jnp.where(serves, 1.0, jnp.nan)
    if neighbors is None:
        near = direct(treatment, particles, x, box, pairs.full)
    else:
        near = listed(treatment, particles, x, box, neighbors, accumulate, together)
        own = neighbors.excludes(pairs.exceptions)  # a list of another System would count other pairs
        near = {section: jnp.where(own, energy, jnp.nan) for section, energy in near.items()}
    found = [
        ("direct", near),
        ("exceptions", scaled(treatment, particles, x, pairs)),
        *long_range(treatment, particles, x, box, pairs.exceptions, accumulate),
        ("dispersion", _user_tails(treatment, particles, box, pairs)),
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
        return {
            **pair_potentials(treatment, r2, *_pair_parameters(treatment, particles, i, j)),
            **_user_potentials(treatment, particles, r2, i, j),
        }
    # beyond the cutoff r is replaced before it is used; the comparison keeps NaN inside
    outside = r2 >= treatment.cutoff**2
    r2 = jnp.where(outside, treatment.cutoff**2, r2)
    energies = {
        **pair_potentials(treatment, r2, *_pair_parameters(treatment, particles, i, j)),
        **{s: _switched(treatment, r2, u) for s, u in _user_potentials(treatment, particles, r2, i, j).items()},
    }
    return {section: jnp.where(outside, 0.0, u) for section, u in energies.items()}


def _user_potentials(treatment: Treatment, particles: Particles, r2, i, j) -> dict[str, Array]:
    """Energy of each pair in the potentials of the user, without cutoff and switching."""
    chosen = zip(treatment.user_pairs, particles.user, strict=True)
    return {t.section: t.pair(r2, tuple(v[i] for v in values), tuple(v[j] for v in values)) for t, values in chosen}


def _switched(treatment: Treatment, r2, u):
    """A potential times the switching function, if there is one."""
    if treatment.switch is None:
        return u
    return u * vdw.switching(jnp.sqrt(r2), treatment.switch, treatment.cutoff)


def listed(
    treatment: Treatment, particles: Particles, x, box, neighbors: NeighborList, accumulate: str | None, together: bool
) -> dict[str, Array]:
    """Energy of all pairs of a neighbour list by section, or of all sections in one pass over the pairs."""
    sections = tuple(
        name for name, value in (("vdW", particles.sigma), ("Electrostatics", particles.charge)) if value is not None
    ) + tuple(term.section for term in treatment.user_pairs)
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
        """What a pair needs of each particle: sigma and sqrt(epsilon), charge, what the user's potentials take."""
        lennard_jones = (particles.sigma, geometry.safe_sqrt(particles.epsilon)) if "vdW" in self.sections else ()
        charge = (particles.charge,) if "Electrostatics" in self.sections else ()
        chosen = zip(self.treatment.user_pairs, particles.user, strict=True)
        return (*lennard_jones, *charge, *(v for t, values in chosen if t.section in self.sections for v in values))

    def __call__(self, r2, first, second):
        both = iter(zip(first, second, strict=True))
        lennard_jones = c6 = product = None
        if "vdW" in self.sections:
            sigma, root = next(both), next(both)
            lennard_jones = 0.5 * (sigma[0] + sigma[1]), root[0] * root[1]
            c6 = 4.0 * (sigma[0] * sigma[1]) ** 3 * lennard_jones[1]
        if "Electrostatics" in self.sections:
            charge = next(both)
            product = charge[0] * charge[1]
        terms = [*pair_potentials(self.treatment, r2, lennard_jones, c6, product, polynomials=True).values()]
        for term in self.treatment.user_pairs:
            if term.section in self.sections:
                mine, theirs = zip(*itertools.islice(both, 1 + len(term.names)), strict=True)
                terms.append(_switched(self.treatment, r2, term.pair(r2, mine, theirs)))
        return sum(terms)


def pair_potentials(
    treatment: Treatment, r2, lennard_jones, c6, charge_product, polynomials: bool = False
) -> dict[str, Array]:
    """Energy of fully interacting pairs at squared distances ``r2`` within the cutoff, kJ/mol.

    ``lennard_jones``: (sigma, epsilon) of the pairs or None; ``c6``: products of dispersion coefficients, for LJPME;
    ``charge_product`` or None. ``polynomials`` take the place of the special functions of Ewald sums, to rounding.
    """
    cutoff, energies = treatment.cutoff, {}
    if lennard_jones is not None:
        if treatment.dispersion is None and polynomials:
            u = vdw.potential(1.0, lennard_jones[0] * inverse_root(r2), lennard_jones[1])
        elif treatment.dispersion is None:
            u = vdw.potential(r2, *lennard_jones)
        else:
            of_pair = vdw.ewald_direct_polynomial if polynomials else vdw.ewald_direct_potential
            u = of_pair(r2, *lennard_jones, c6, treatment.dispersion.alpha, cutoff)
        energies["vdW"] = _switched(treatment, r2, u)
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
    i, j = pairs.separated[:, 0], pairs.separated[:, 1]
    r2 = geometry.dot(x[j] - x[i], x[j] - x[i])
    apart = _user_potentials(treatment, particles, r2, i, j).items()
    return {**energies, **{s: scale * u for (s, u), scale in zip(apart, pairs.user_scales, strict=True)}}


def long_range(
    treatment: Treatment,
    particles: Particles,
    x,
    box,
    exceptions: Int[Array, "exception 2"],
    accumulate: str | None = None,
) -> list[tuple[str, dict[str, Array]]]:
    """What a periodic box adds to the pairs: (part, energies by section).

    Self energies and excluded pairs are computed in the type ``accumulate``: they are large, cancel each other, and are
    alike in all molecules, so that what rounding does to them adds up.
    """
    if not treatment.periodic:
        return []
    found: list[tuple[str, dict[str, Array]]] = []
    i, j = exceptions[:, 0], exceptions[:, 1]
    wide = x.dtype if accumulate is None else accumulate
    difference = x.astype(wide)[j] - x.astype(wide)[i]
    r2 = geometry.dot(difference, difference)
    if particles.charge is not None and treatment.coulomb is not None:
        q, alpha = particles.charge, treatment.coulomb.alpha
        exact = q.astype(wide)
        back = electrostatics.ewald_excluded_potential(r2, exact[i] * exact[j], alpha)
        background = ewald.background_energy(q, alpha, periodic.volume(box))
        found += [
            ("reciprocal", {"Electrostatics": pme.reciprocal_energies(x, q, box, treatment.coulomb)}),
            ("exclusions", {"Electrostatics": back}),
            ("self", {"Electrostatics": ewald.self_energies(exact, alpha)}),
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
    exact = c6.astype(wide)
    return [
        *found,
        ("reciprocal", {"vdW": pme.dispersion_energies(x, c6, box, treatment.dispersion)}),
        ("exclusions", {"vdW": vdw.ewald_excluded_potential(r2, exact[i] * exact[j], alpha)}),
        ("self", {"vdW": ewald.dispersion_self_energies(exact, alpha)}),
    ]


def _user_tails(treatment: Treatment, particles: Particles, box, pairs: Pairs) -> dict[str, Array]:
    """The long-range correction of the user's potentials, by section.

    The parameters of a class are the mean over its particles.
    """
    if not treatment.periodic:
        return {}
    tails = {}
    for term, values, (of, counts) in zip(treatment.user_pairs, particles.user, pairs.user_classes, strict=True):
        if term.long_range_correction and len(counts):
            n = len(counts)
            means = [jax.ops.segment_sum(v, of, num_segments=n) / counts for v in values]
            first, second = tuple(v[:, None] for v in means), tuple(v[None, :] for v in means)
            tails[term.section] = dispersion.numerical_long_range_energy(
                lambda r2, term=term, first=first, second=second: term.pair(r2, first, second),
                counts, len(of), periodic.volume(box), treatment.cutoff, treatment.switch,
            )  # fmt: skip
    return tails


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
