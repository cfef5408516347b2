"""Periodic boxes: images, volume and reciprocal vectors of three box vectors (rows of a (3, 3) array, nm)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from offjax.devices import matmul

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

    Box = Float[Array, "3 3"]


def minimum_image(difference: Float[Array, "*batch 3"], box: Box) -> Float[Array, "*batch 3"]:
    """The difference vectors, nm, moved by whole box vectors: c by the z component, then b by y, then a by x.

    For a lower triangular box whose diagonal is at least 2 r_c, the result is the image within r_c wherever there is
    one, and no other image is within r_c: the components of a vector shorter than r_c are less than half the diagonal,
    and every lattice vector is at least as long as the smallest diagonal element. Beyond r_c it may be another image
    than the nearest, as in OpenMM, whose Reference platform does the same. Derivatives are those at fixed images.
    """
    for axis in (2, 1, 0):
        shift = jnp.floor(difference[..., axis : axis + 1] / box[axis, axis] + 0.5)
        difference = difference - shift * box[axis]
    return difference


def volume(box: Box) -> Float[Array, ""]:
    """a . (b x c), nm^3."""
    return matmul(box[0], jnp.cross(box[1], box[2]))


def reciprocal_vectors(box: Box) -> Box:
    """Columns a*, b*, c* with a* . a = 1 and a* . b = 0: the inverse of ``box``, 1/nm.

    ``positions @ reciprocal_vectors(box)`` are fractional coordinates. Written for any three vectors, so that the
    derivative in all nine components is right (a strain of a reduced box is not a reduced box).
    """
    a, b, c = box
    return jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=1) / volume(box)


def admissible(box: Box, cutoff: float) -> Bool[Array, ""]:
    """Whether :func:`minimum_image` is right up to the cutoff: lower triangular, diagonal at least twice the cutoff."""
    wide = jnp.min(jnp.diagonal(box)) >= 2.0 * cutoff * (1.0 - 1e-6)
    return wide & jnp.all(jnp.triu(box, 1) == 0.0)


def resolved(positions: Float[Array, "particle 3"], cutoff: float) -> Bool[Array, ""]:
    """Whether all positions are finite, and near enough to the origin for their rounding to be less than the cutoff."""
    return jnp.all(jnp.abs(positions) * jnp.finfo(positions.dtype).eps < cutoff)
