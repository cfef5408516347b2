"""``<GBSA>``: generalized Born implicit solvent (HCT, OBC1, OBC2) with the ACE surface term or without.

Every atom has an intrinsic radius rho (``radius``) and a screening factor (``scale``); with the offset radius
o = rho - 0.009 nm and the screened radius s = scale o, neighbours j descreen atom i by the integral

    I_i = 1/2 sum_j [1/L - 1/U + (r - s_j^2/r)/4 (1/U^2 - 1/L^2) + ln(L/U)/(2 r)]  over  r + s_j > o_i,
    U = r + s_j,  L = max(o_i, |r - s_j|)

which gives its Born radius B, with psi = o I:

    HCT    1/B = 1/o - I
    OBC1   1/B = 1/o - tanh(0.8 psi + 2.909125 psi^3)/rho
    OBC2   1/B = 1/o - tanh(psi - 0.8 psi^2 + 4.85 psi^3)/rho

and the energy, with the dielectric constants of solute and solvent

    U = -1/(8 pi epsilon_0) (1/solute - 1/solvent) sum_ij q_i q_j / f_ij
        + 4 pi penalty sum_i (rho + r_solvent)^2 (rho/B)^6
    f^2 = r^2 + B_i B_j exp(-r^2/(4 B_i B_j))

over all pairs in both orders and i = j; no pair is excluded. With a cutoff, pairs beyond it count nowhere and 1/f is
shifted by -1/cutoff for i != j. Sources: SMIRNOFF specification, section GBSA; G. D. Hawkins, C. J. Cramer and D. G.
Truhlar, Chem. Phys. Lett. 246, 122 (1995) (HCT); A. Onufriev, D. Bashford and D. A. Case, Proteins 55, 383 (2004)
(OBC1, OBC2); M. Schaefer and M. Karplus, J. Phys. Chem. 100, 1578 (1996) (ACE). OpenMM's GBSAOBCForce, which is what
OBC2 stands for, adds 2 (1/o_i - 1/L) to the bracket where atom i lies inside s_j altogether; its HCT and OBC1 do not.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax.numpy as jnp

from offjax import geometry
from offjax.constants import COULOMB
from offjax.devices import matmul

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


OFFSET = 0.009
"""nm: what is taken off the intrinsic radius."""

MODELS = ("HCT", "OBC1", "OBC2")

TANH = {"OBC1": (0.8, 0.0, 2.909125), "OBC2": (1.0, -0.8, 4.85)}
"""Coefficients of psi, psi^2 and psi^3."""


def descreening(r, offset_radius, screened_radius, inside: bool):
    """The bracket of I for one pair, 1/nm: atom i of ``offset_radius`` o_i, at distance r > 0 of one with s_j; all nm.

    ``inside``: with the addition for atoms that lie inside s_j.
    """
    upper = r + screened_radius
    gap = jnp.abs(r - screened_radius)
    lower = jnp.maximum(offset_radius, gap)
    term = (
        1.0 / lower
        - 1.0 / upper
        + 0.25 * (r - screened_radius**2 / r) * (1.0 / upper**2 - 1.0 / lower**2)
        + 0.5 * jnp.log(lower / upper) / r
    )
    if inside:
        engulfed = offset_radius < screened_radius - r
        term = term + jnp.where(engulfed, 2.0 * (1.0 / offset_radius - 1.0 / lower), 0.0)
    return jnp.where(upper > offset_radius, term, 0.0)


def born_radii(
    r: Float[Array, "atom atom"],
    counted: Float[Array, "atom atom"],
    radius: Float[Array, " atom"],
    scale: Float[Array, " atom"],
    model: str,
) -> Float[Array, " atom"]:
    """Born radii, nm, from distances ``r`` > 0 nm of the pairs that are ``counted`` (bool)."""
    o = radius - OFFSET
    pairs = descreening(r, o[:, None], (scale * o)[None, :], inside=model == "OBC2")
    integral = 0.5 * jnp.sum(jnp.where(counted, pairs, 0.0), axis=1)
    if model == "HCT":
        return 1.0 / (1.0 / o - integral)
    psi = o * integral
    a, b, c = TANH[model]
    return 1.0 / (1.0 / o - jnp.tanh(psi * (a + psi * (b + psi * c))) / radius)


def energies(
    positions: Float[Array, "atom 3"],
    charge: Float[Array, " atom"],
    radius: Float[Array, " atom"],
    scale: Float[Array, " atom"],
    *,
    model: str,
    solvent_dielectric: float,
    solute_dielectric: float,
    surface_area_penalty: float,
    solvent_radius: float,
    cutoff: float = math.inf,
    present: Bool[Array, " atom"] | None = None,
) -> Float[Array, " atom"]:
    """Solvation energy of every atom, kJ/mol, half of each pair's.

    charge in e; radius in nm, above 0.009; scale without unit; surface_area_penalty in kJ/mol/nm^2, zero for no
    surface term; solvent_radius and cutoff in nm. Atoms at one point do not descreen each other. Those that are not
    ``present`` count nowhere, and have the energy zero.
    """
    difference = positions[:, None] - positions[None, :]
    r2 = geometry.dot(difference, difference)
    apart = r2 > 0
    itself = jnp.eye(len(positions), dtype=bool)
    near = ~itself & (r2 <= cutoff**2)
    if present is not None:
        near = near & present[:, None] & present[None, :]
    born = born_radii(jnp.sqrt(jnp.where(apart, r2, 1.0)), near & apart, radius, scale, model)
    product = born[:, None] * born[None, :]
    inverse = 1.0 / jnp.sqrt(r2 + product * jnp.exp(-r2 / (4.0 * product)))
    inverse = jnp.where(near, inverse - 1.0 / cutoff, jnp.where(itself, inverse, 0.0))
    strength = -0.5 * COULOMB * (1.0 / solute_dielectric - 1.0 / solvent_dielectric)
    polar = strength * charge * matmul(inverse, charge)
    surface = 4.0 * math.pi * surface_area_penalty * (radius + solvent_radius) ** 2 * (radius / born) ** 6
    return polar + surface if present is None else jnp.where(present, polar + surface, 0.0)
