"""Smooth particle-mesh Ewald: the reciprocal-space energy of charges, or of dispersion coefficients.

The strengths are spread on a grid with B-splines of order 5; the Fourier transform of the grid, divided by that of the
splines, approximates the structure factor. Source: U. Essmann et al., J. Chem. Phys. 103, 8577 (1995).
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from offjax.constants import COULOMB
from offjax.devices import at_once, matmul
from offjax.linear import linear
from offjax.nonbonded.ewald import Ewald
from offjax.nonbonded.periodic import reciprocal_vectors, volume

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from offjax.nonbonded.periodic import Box


ORDER = 5

_TOGETHER = 1024
"""Particles whose windows are made at once, on a CPU."""

_TOGETHER_ON_GPU = 2**17
"""The same on a GPU."""

_WIDTH = 8
"""Grid points of a window along c: ORDER and zeros, so that a row is one or two vector registers."""


def reciprocal_energies(
    positions: Float[Array, "particle 3"], charges: Float[Array, " particle"], box: Box, ewald: Ewald
) -> Float[Array, "x y z"]:
    """Coulomb energy of each wave vector, kJ/mol; positive and negative vectors are counted in one.

    U(m) = 1/(4 pi epsilon_0) exp(-pi^2 m^2 / alpha^2) / (2 pi V m^2) |S(m)|^2 for m != 0 (Essmann section IV).
    """

    def influence(m2):
        zero = m2 == 0.0
        safe = jnp.where(zero, 1.0, m2)
        return jnp.where(zero, 0.0, jnp.exp(-((math.pi / ewald.alpha) ** 2) * safe) / safe)

    factor = 0.5 * COULOMB / (math.pi * volume(box))
    return factor * _mean_over_signs(influence, box, ewald.grid) * _power(positions, charges, box, ewald.grid)


def dispersion_energies(
    positions: Float[Array, "particle 3"], c6: Float[Array, " particle"], box: Box, ewald: Ewald
) -> Float[Array, "x y z"]:
    """Energy of each wave vector, kJ/mol, of the attraction -c_i c_j / r^6 with c = 2 sigma^3 sqrt(epsilon).

    U(m) = -pi^(3/2) / (6 V) [2 pi^(7/2) m^3 erfc(b) + (alpha^3 - 2 pi^2 alpha m^2) exp(-b^2)] |S(m)|^2 with
    b = pi m / alpha, m = 0 included (Essmann section V).
    """
    alpha = ewald.alpha

    def influence(m2):
        zero = m2 == 0.0
        m = jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, m2)))
        b = (math.pi / alpha) * m
        long = 2.0 * math.pi**3.5 * m * m2 * jax.lax.erfc(b)
        return long + (alpha**3 - 2.0 * math.pi**2 * alpha * m2) * jnp.exp(-b * b)

    factor = -(math.pi**1.5) / (6.0 * volume(box))
    return factor * _mean_over_signs(influence, box, ewald.grid) * _power(positions, c6, box, ewald.grid)


def bspline(w: Float[Array, "*batch"]) -> Float[Array, "*batch 5"]:
    """M_5(w + 4), ..., M_5(w) for 0 <= w < 1: the weights of the grid points from the one below a particle upwards.

    M_2 is the hat of width 2; M_k(u) = u/(k-1) M_{k-1}(u) + (k-u)/(k-1) M_{k-1}(u-1) (Essmann section IV).
    """
    weights = [1.0 - w, w]
    for k in range(3, ORDER + 1):
        weights = [
            ((w + (k - 1 - j)) * (weights[j - 1] if j else 0.0) + (1.0 - w + j) * (weights[j] if j < k - 1 else 0.0))
            / (k - 1)
            for j in range(k)
        ]
    return jnp.stack(weights, axis=-1)


@functools.cache
def moduli(n: int) -> np.ndarray:
    """(n,) squared moduli of the Fourier sum of the spline's values at the integers, along n grid points.

    For even n it vanishes at n/2 (order 5 is odd); the mean of the neighbours stands there instead, as in OpenMM.
    """
    values = np.asarray([1.0, 11.0, 11.0, 1.0]) / 24.0
    result = np.abs(np.exp(2j * np.pi / n * np.outer(np.arange(n), np.arange(4))) @ values) ** 2
    small = np.nonzero(result < 1e-7)[0]
    result[small] = 0.5 * (result[small - 1] + result[(small + 1) % n])
    return result


def spread(
    positions: Float[Array, "particle 3"], strengths: Float[Array, " particle"], box: Box, grid: tuple[int, int, int]
) -> Float[Array, "x y z"]:
    """The strengths on the grid, each on 5 x 5 x 5 points around its particle.

    Scatters of whole windows into a grid with margins, which are then added to the opposite side. Some particles at a
    time: the windows of all would be many times as large as everything else, and would leave the cache.
    """
    dtype = positions.dtype
    fractional = matmul(positions, reciprocal_vectors(box))
    scaled = (fractional - jnp.floor(fractional)) * np.asarray(grid, dtype)
    margins = (ORDER - 1, ORDER - 1, _WIDTH - 1)
    filled = jnp.zeros([n + margin for n, margin in zip(grid, margins, strict=True)], dtype)
    together = at_once(_TOGETHER, _TOGETHER_ON_GPU)
    n_steps = -(-len(strengths) // together)
    if n_steps == 1:
        filled, _ = _add_windows(filled, (scaled, strengths), grid)
    else:
        missing = n_steps * together - len(strengths)
        steps = (
            jnp.pad(scaled, ((0, missing), (0, 0))).reshape(n_steps, together, 3),
            jnp.pad(strengths, (0, missing)).reshape(n_steps, together),
        )
        filled, _ = jax.lax.scan(functools.partial(_add_windows, grid=grid), filled, steps)
    return linear(functools.partial(_fold, grid=grid), functools.partial(_extend, grid=grid), (), filled)


def _fold(_, filled, *, grid):
    """The grid without its margins, which are added to the opposite side: in place, a few planes an axis."""
    for axis, n in enumerate(grid):
        first = jax.lax.slice_in_dim(filled, 0, ORDER - 1, axis=axis)
        beyond = jax.lax.slice_in_dim(filled, n, n + ORDER - 1, axis=axis)
        filled = jax.lax.dynamic_update_slice(filled, first + beyond, (0, 0, 0))
    return filled[: grid[0], : grid[1], : grid[2]]


def _extend(_, values, *, grid):
    """The transpose of :func:`_fold`: the grid, repeated in its margins."""
    nx, ny, _ = grid
    repeated = jnp.concatenate([values, values[..., : ORDER - 1], jnp.zeros((nx, ny, _WIDTH - ORDER), values.dtype)], 2)
    repeated = jnp.concatenate([repeated, repeated[:, : ORDER - 1]], axis=1)
    return jnp.concatenate([repeated, repeated[: ORDER - 1]], axis=0)


def _add_windows(filled, particles, grid):
    """``filled`` and the windows of some particles: their places in units of the grid, and their strengths."""
    scaled, strengths = particles
    below = jnp.floor(scaled)
    start = below.astype(jnp.int32) % np.asarray(grid, np.int32)
    dimensions = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3), inserted_window_dims=(), scatter_dims_to_operand_dims=(0, 1, 2)
    )
    mode = jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS  # start is a remainder of the division by the grid
    return jax.lax.scatter_add(filled, start, _windows(scaled - below, strengths), dimensions, mode=mode), None


@jax.checkpoint
def _windows(within, strengths):
    """(particle, 5, 5, 8) strengths by grid point, of particles at ``within`` (particle, 3) above their lowest one."""
    weights = bspline(within)
    along_z = jnp.pad(weights[:, 2], ((0, 0), (0, _WIDTH - ORDER)))
    windows = (strengths[:, None] * weights[:, 0])[:, :, None] * weights[:, 1][:, None, :]
    return windows[..., None] * along_z[:, None, None, :]


def _power(positions, strengths, box, grid):
    """|S(m)|^2 of one half of the wave vectors, (nx, ny, nz//2 + 1), counted twice where the other half has its own."""
    transformed = jnp.fft.rfftn(spread(positions, strengths, box, grid))
    return (transformed.real**2 + transformed.imag**2) * _weights(grid).astype(positions.dtype)


@functools.cache
def _weights(grid: tuple[int, int, int]) -> np.ndarray:
    """1 / (spline moduli), doubled where the opposite wave vector is not among those of the real transform."""
    nx, ny, nz = grid
    twice = np.full(nz // 2 + 1, 2.0)
    twice[0] = 1.0
    if nz % 2 == 0:
        twice[-1] = 1.0
    return twice / (moduli(nx)[:, None, None] * moduli(ny)[:, None] * moduli(nz)[: nz // 2 + 1])


def _mean_over_signs(influence, box, grid):
    """The influence function of m^2 for the wave vectors of a real transform, (nx, ny, nz//2 + 1).

    A frequency of n/2 along an even number of points is as much positive as negative. In a skewed box m^2 depends on
    that sign, and the full transform has both: a vector and its opposite, with the same sign of n/2.
    """
    k = [np.fft.fftfreq(n, 1.0 / n) for n in grid]
    k[2] = k[2][: grid[2] // 2 + 1]
    values = result = influence(_squared_length(box, k))
    for axis in (0, 1):
        half = grid[axis] // 2
        if grid[axis] % 2 == 0:
            opposite = [np.where(v == -n / 2, -v, v) for v, n in zip(k, grid, strict=True)]
            opposite[axis] = opposite[axis][half : half + 1]
            one_sign = jax.lax.slice_in_dim(values, half, half + 1, axis=axis)
            mean = 0.5 * (one_sign + influence(_squared_length(box, opposite)))
            result = jax.lax.dynamic_update_slice_in_dim(result, mean, half, axis)
    return result


def _squared_length(box, k):
    """m^2, 1/nm^2, of the reciprocal-lattice vectors whose indices along x, y and z are these."""
    x, y, z = (np.asarray(v, box.dtype) for v in k)
    m2 = 0.0
    for component in reciprocal_vectors(box):
        m = component[0] * x[:, None, None] + component[1] * y[:, None] + component[2] * z
        m2 = m2 + m * m
    return m2
