"""``<VirtualSites>``: where massless particles stand relative to the atoms that they are attached to.

A site of any SMIRNOFF kind stands at a fixed point of a frame that its orientation atoms span. With a_1 the parent
(the atom tagged ``:1``), a_2, a_3, a_4 the other tagged atoms and [v] = v / |v|:

    ===================  ==============================  ==============
    kind                 x                               y
    ===================  ==============================  ==============
    BondCharge           [a_2 - a_1]
    MonovalentLonePair   [a_2 - a_1]                     a_3 - a_1
    DivalentLonePair     [(a_2 + a_3)/2 - a_1]           a_2 - a_1
    TrivalentLonePair    [(a_2 + a_3 + a_4)/3 - a_1]
    ===================  ==============================  ==============

    z = [x cross y],  y' = z cross x
    r = a_1 + distance (cos(inPlaneAngle) cos(outOfPlaneAngle) x + sin(inPlaneAngle) cos(outOfPlaneAngle) y'
                        + sin(outOfPlaneAngle) z)

Kinds without an ``inPlaneAngle`` have it at pi, kinds without an ``outOfPlaneAngle`` at 0: a positive distance points
away from the other atoms. Source: SMIRNOFF specification, section VirtualSites; the frames are those of OpenMM's
LocalCoordinatesSite as OpenFF Interchange fills it, so that OpenMM puts its particles at the same points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from offjax import geometry

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


KINDS = ("BondCharge", "MonovalentLonePair", "DivalentLonePair", "TrivalentLonePair")
"""The types of the specification; a site's ``kind`` is an index into this tuple."""

N_ATOMS = (2, 3, 3, 4)
"""Number of orientation atoms of each kind; index arrays are filled up with the parent to four columns."""

X_WEIGHTS = np.array([[-1, 1, 0, 0], [-1, 1, 0, 0], [-1, 1 / 2, 1 / 2, 0], [-1, 1 / 3, 1 / 3, 1 / 3]])
"""(kind, atom): the direction of x before normalisation, as weights of the orientation atoms."""

Y_WEIGHTS = np.array([[0.0, 0, 0, 0], [-1, 0, 1, 0], [-1, 1, 0, 0], [0, 0, 0, 0]])
"""(kind, atom): the direction of y; zero for the kinds that stand on the x axis, so that y' and z vanish exactly."""


def local_positions(
    distance: Float[Array, " site"], outOfPlaneAngle: Float[Array, " site"], inPlaneAngle: Float[Array, " site"]
) -> Float[Array, "site 3"]:
    """Coordinates in the frame (x, y', z), nm. ``distance`` in nm, angles in rad."""
    radius = distance * jnp.cos(outOfPlaneAngle)
    return jnp.stack(
        [radius * jnp.cos(inPlaneAngle), radius * jnp.sin(inPlaneAngle), distance * jnp.sin(outOfPlaneAngle)], axis=-1
    )


def positions(
    x: Float[Array, "atom 3"],
    atoms: Int[Array, "site 4"],
    kind: Int[Array, " site"],
    distance: Float[Array, " site"],
    outOfPlaneAngle: Float[Array, " site"],
    inPlaneAngle: Float[Array, " site"],
) -> Float[Array, "site 3"]:
    """Position of every site, nm, from the positions ``x`` of the atoms, nm; differentiable in all of its arguments.

    Where a direction does not exist (coinciding atoms, or three collinear ones for y' and z) it counts as zero with
    zero derivative, as in OpenMM.
    """
    corners = x[atoms]
    parent = corners[:, 0]
    arms = corners - parent[:, None]
    along = _unit(jnp.einsum("sa,sad->sd", jnp.asarray(X_WEIGHTS, x.dtype)[kind], arms, precision="highest"))
    aside = jnp.einsum("sa,sad->sd", jnp.asarray(Y_WEIGHTS, x.dtype)[kind], arms, precision="highest")
    normal = _unit(jnp.cross(along, aside))
    axes = jnp.stack([along, jnp.cross(normal, along), normal], axis=1)
    return parent + jnp.einsum(
        "sk,skd->sd", local_positions(distance, outOfPlaneAngle, inPlaneAngle), axes, precision="highest"
    )


def _unit(v: Float[Array, "site 3"]) -> Float[Array, "site 3"]:
    """v / |v|, or zero."""
    length = geometry.norm(v)[:, None]
    return v / jnp.where(length > 0, length, 1.0)
