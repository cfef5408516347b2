"""Spaces: how the difference of two points is measured and how a point is moved, in any number of dimensions.

A :class:`Space` is the pair of pure functions (displacement, shift), the convention of jax-md. Coordinates are real
(Cartesian) lengths, never fractions of a box. Everything broadcasts over leading axes, so that
``displacement(x[:, None], x[None, :])`` has all pairs. Boxes are ordinary arguments: all is differentiable in them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from offjax.errors import InputError

Points = Float[Array, "*batch dimension"]


class Space(NamedTuple):
    """``displacement(a, b, box=None)`` is the vector from b to a; ``shift(x, dx, box=None)`` is the moved point."""

    displacement: Callable
    shift: Callable


@cache
def free() -> Space:
    """Euclidean space without walls: a - b and x + dx."""

    def displacement(a: Points, b: Points, box=None) -> Points:
        _no_box(box)
        return a - b

    def shift(x: Points, dx: Points, box=None) -> Points:
        _no_box(box)
        return x + dx

    return Space(displacement, shift)


def periodic(box=None, *, wrap: bool = True) -> Space:
    """A space that repeats itself: displacements to the nearest image, and points moved back into the box.

    The nearest image is found by subtracting multiples of the rows, the last row first, as OpenMM does: exact for
    distances of at most half of the smallest diagonal element.

    Parameters
    ----------
    box
        The side of a cube, the sides (dimension,) of an orthorhombic box, or the rows (dimension, dimension) of a
        triclinic one: lower triangular with a positive diagonal and off-diagonal elements of at most half the
        diagonal element of their column, OpenMM's reduced form. It may be traced. A ``box`` given to ``displacement``
        or ``shift`` takes its place; None here means that it always comes so.
    wrap
        False leaves moved points where they are, so that a particle's path is continuous (for mean squared
        displacements, say); displacements are the same.

    Raises
    ------
    InputError
        A box that is not of this form, or none at all.
    """
    default = None if box is None else check_box(box)

    def shift(x: Points, dx: Points, box=None) -> Points:
        return wrapped(x + dx, _chosen(box, default)) if wrap else x + dx

    return Space(NearestImage(default), shift)


@dataclass(frozen=True, eq=False)
class NearestImage:
    """The displacement of a periodic space."""

    box: Any

    def __call__(self, a: Points, b: Points, box=None) -> Points:
        """The vector from b to the nearest image of a."""
        return nearest_image(a - b, _chosen(box, self.box))

    def reaches(self, cutoff: float, box=None):
        """1 if no two images of a particle are within ``cutoff`` of another, else not-a-number.

        Raises
        ------
        InputError
            They are, in a box whose values are known.
        """
        box = _chosen(box, self.box)
        traced = isinstance(box, jax.core.Tracer)
        box = box if traced else np.asarray(box)  # what JAX computes of a known box would be traced inside jit
        sides = box if jnp.ndim(box) < 2 else box.diagonal()
        if traced:
            return jnp.where(jnp.all(2.0 * cutoff <= sides * (1.0 + 1e-6)), 1.0, jnp.nan)
        if not np.all(2.0 * cutoff <= sides * (1.0 + 1e-6)):
            raise InputError(f"the cutoff {cutoff} is more than half of the smallest box edge {np.min(sides):g}")
        return 1.0


def nearest_image(difference: Points, box) -> Points:
    """The shortest of the vectors that differ from ``difference`` by rows of the box."""
    return _subtract_rows(difference, box, jnp.round)


def wrapped(x: Points, box) -> Points:
    """The image of ``x`` in the brick [0, diagonal of the box), a unit cell of triclinic boxes too, as in OpenMM."""
    return _subtract_rows(x, box, jnp.floor)


def _subtract_rows(x: Points, box, whole) -> Points:
    box = jnp.asarray(box, x.dtype)
    if box.ndim and box.shape[-1] != x.shape[-1]:
        raise InputError(f"a box {box.shape} is none of points in {x.shape[-1]} dimensions")
    if box.ndim < 2:
        return x - box * whole(x / box)
    for k in reversed(range(box.shape[0])):
        x = x - box[k] * whole(x[..., k : k + 1] / box[k, k])
    return x


def volume(box, dimension: int | None = None) -> Float[Array, ""]:
    """Volume (area, length) of a box; ``dimension`` is needed for the side of a cube.

    Raises
    ------
    InputError
        The side of a cube without ``dimension``.
    """
    box = jnp.asarray(box)
    if box.ndim == 0:
        if dimension is None:
            raise InputError("the volume of a cube given by its side needs dimension=...")
        return box**dimension
    return jnp.prod(box if box.ndim == 1 else jnp.diagonal(box))


def check_box(box):
    """The box as an array, checked where its values are known: see :func:`periodic`.

    Raises
    ------
    InputError
        Not a side, sides or rows in reduced form.
    """
    if isinstance(box, jax.core.Tracer):
        return box
    values = np.asarray(box, dtype=float)
    if values.ndim > 2 or (values.ndim == 2 and values.shape[0] != values.shape[1]):
        raise InputError(
            f"a box is a side, (dimension,) sides or (dimension, dimension) rows; got shape {values.shape}"
        )
    diagonal = np.diagonal(values) if values.ndim == 2 else values
    if not (np.all(np.isfinite(values)) and np.all(diagonal > 0)):
        raise InputError(f"the sides of a box must be positive and finite, got {values.tolist()}")
    if values.ndim == 2:
        lower = np.tril(values, -1)
        if np.any(np.triu(values, 1) != 0) or np.any(np.abs(lower) > 0.5 * diagonal * (1 + 1e-6)):
            raise InputError(
                f"the rows of a box must be in reduced form: lower triangular, off-diagonal elements at most half the "
                f"diagonal element of their column; got {values.tolist()}"
            )
    return box


def _chosen(box, default):
    if box is None and default is None:
        raise InputError("this periodic space has no box: give periodic(box), or box=... in the call")
    return default if box is None else box


def _no_box(box) -> None:
    if box is not None:
        raise InputError("a free space has no box; use offjax.md.periodic()")
