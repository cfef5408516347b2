"""What is measured of configurations and trajectories: structure, pressure and stress, moduli, modes, transport.

All are pure functions. Trajectories have time first: positions (time, n, dimension). Moduli and modes are second
derivatives of the energy, by automatic differentiation; an energy that is not one floating-point number, and positions
that are not (n, dimension), raise InputError there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from offjax import geometry
from offjax.devices import matmul
from offjax.errors import InputError
from offjax.md.dynamics import bound, molecules, points, scalar
from offjax.md.minimizers import solve_dense
from offjax.md.space import volume

# --- structure
# --------------------------------------------------------------------------------------------------------


def _distances(positions, displacement, box):
    extra = {} if box is None else {"box": box}
    i, j = np.triu_indices(positions.shape[0], 1)
    return geometry.norm(displacement(positions[i], positions[j], **extra))


def _shells(edges, dimension):
    """Volumes of the spherical shells between the edges."""
    unit = 2.0 * np.pi ** (dimension / 2) / (dimension * math.gamma(dimension / 2))
    return unit * jnp.diff(edges**dimension)


def pair_correlation(positions, displacement: Callable, edges, box_volume, *, box=None) -> Float[Array, " bin"]:
    """g(r) by counting pairs in the bins between ``edges``: 1 for an ideal gas. Not differentiable.

    g_k = 2 n_k V / (N (N - 1) V_k), with n_k pairs at distances in the shell of volume V_k.
    """
    n, d = positions.shape
    edges = jnp.asarray(edges)
    counts = jnp.histogram(_distances(positions, displacement, box), edges)[0]
    return 2.0 * counts * box_volume / (n * (n - 1) * _shells(edges, d))


def smooth_pair_correlation(
    positions, displacement: Callable, radii, width, box_volume, *, box=None
) -> Float[Array, " radius"]:
    """g(r) at ``radii`` with every pair smeared into a Gaussian of standard deviation ``width``: differentiable.

    g(r) = 2V/(N (N - 1)) sum over pairs of exp(-(r - r_ij)^2/(2 w^2))/(w sqrt(2 pi)) / S(r_ij), with the surface S of
    the sphere through the pair, so that an ideal gas has 1. Two particles at one point are not counted.
    """
    n, d = positions.shape
    r = _distances(positions, displacement, box)
    apart = r > 0
    r = jnp.where(apart, r, 1.0)
    surface = 2.0 * np.pi ** (d / 2) / math.gamma(d / 2) * r ** (d - 1)
    gauss = jnp.exp(-0.5 * ((jnp.asarray(radii)[:, None] - r) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    return 2.0 * box_volume / (n * (n - 1)) * jnp.sum(jnp.where(apart, gauss / surface, 0.0), axis=1)


def bond_orientational_order(positions, displacement: Callable, cutoff, *, fold: int = 6, box=None):
    """|psi_m| of each particle of a plane: the mean of exp(i m angle) over its neighbours within ``cutoff``, (n,).

    1 for a perfect m-fold surrounding, 0 without neighbours; where it vanishes its derivative is 0. Source: D. R.
    Nelson and B. I. Halperin, Phys. Rev. B 19, 2457 (1979).

    Raises
    ------
    InputError
        Positions that are not two-dimensional.
    """
    x = jnp.asarray(positions)
    if x.ndim != 2 or x.shape[1] != 2:
        raise InputError(f"bond_orientational_order needs positions (n, 2), got {x.shape}")
    extra = {} if box is None else {"box": box}
    vectors = displacement(x[None, :], x[:, None], **extra)
    near = (geometry.norm(vectors) < cutoff) & ~jnp.eye(len(x), dtype=bool)
    angle = geometry.safe_arctan2(vectors[..., 1], vectors[..., 0])
    count = jnp.maximum(jnp.sum(near, axis=1), 1)
    real = jnp.sum(jnp.where(near, jnp.cos(fold * angle), 0.0), axis=1) / count
    imaginary = jnp.sum(jnp.where(near, jnp.sin(fold * angle), 0.0), axis=1) / count
    return geometry.safe_sqrt(real**2 + imaginary**2)


# --- strain
# -----------------------------------------------------------------------------------------------------------


def _check_energy(energy, x, box, neighbors) -> None:
    """Refuse what is no energy; have it refuse a box that is too small: a strained, traced one makes it NaN only."""
    jax.eval_shape(lambda x: scalar(bound(energy, box, neighbors)(x)), x)


def _of_strain(energy, x, box, neighbors):
    """U(strain, moved): box rows h (1 + e) and points (x + moved)(1 + e) with the symmetric part e of the strain.

    The strained rows are turned back to lower triangular form with the points: a rotation does not change the energy.
    """
    _check_energy(energy, x, box, neighbors)
    d = x.shape[1]
    rows = jnp.asarray(box, x.dtype)
    rows = jnp.diag(jnp.broadcast_to(rows, (d,))) if rows.ndim < 2 else rows

    def of(strain, moved):
        new = matmul(rows, jnp.eye(d, dtype=x.dtype) + 0.5 * (strain + strain.T))
        lower = jnp.linalg.cholesky(matmul(new, new.T))
        return bound(energy, lower, neighbors)(matmul(x + moved, jnp.linalg.inv(rows), lower))

    return of


def stress(energy: Callable, positions, box, *, velocities=None, masses=1.0, neighbors=None):
    """The stress tensor (dimension, dimension): sigma = (1/V) (dU/d(strain) - sum m v v); pressure is -trace/dimension.

    ``energy`` takes ``box=`` and is differentiable in it. Without velocities the kinetic part is left out. It is the
    atomic one: not that of rigid molecules (see :func:`pressure`).
    """
    x = points("positions", positions)
    zero = jnp.zeros((x.shape[1],) * 2, x.dtype)
    virial = jax.grad(_of_strain(energy, x, box, neighbors))(zero, jnp.zeros_like(x))
    if velocities is not None:
        m = jnp.broadcast_to(jnp.asarray(masses, x.dtype), x.shape[:1])[:, None]
        virial = virial - matmul(velocities.T, m * velocities)
    return virial / volume(box, x.shape[1])


def pressure(energy: Callable, positions, box, *, velocities=None, masses=1.0, neighbors=None, groups=None):
    """-trace(stress)/dimension, from the derivative under a uniform strain.

    ``groups`` (n,), the molecule of each particle from 0, moves molecules as wholes: the virial and the kinetic energy
    are those of their centres of mass. Rigid molecules need it, as the forces of constraints are in no energy; the
    mean is that of the atomic pressure where molecules are flexible. Without velocities the kinetic part is left out.
    For molecules divide by ``offjax.constants.BAR`` to have bar.
    """
    x = points("positions", positions)
    box = jnp.asarray(box, x.dtype)
    _check_energy(energy, x, box, neighbors)
    d = x.shape[1]
    _, centre = molecules(groups, masses, x)

    def of(strain):
        return bound(energy, (1.0 + strain) * box, neighbors)(x + strain * centre(x))

    total = -jax.grad(of)(jnp.zeros((), x.dtype))
    if velocities is not None:
        m = jnp.broadcast_to(jnp.asarray(masses, x.dtype), x.shape[:1])[:, None]
        total = total + jnp.sum(m * centre(velocities) ** 2)
    return total / (d * volume(box, d))


def elastic_moduli(energy: Callable, positions, box, *, neighbors=None) -> Float[Array, "d d d d"]:
    """Athermal elastic constants C_ijkl = (1/V) d2U/(de_ij de_kl) at a minimum, with the particles' own relaxation.

    The strain is symmetric. The second term of C = (1/V) [U_ee - U_ex U_xx^+ U_xe] lets particles go back to
    equilibrium in the strained box (J. F. Lutsko, J. Appl. Phys. 65, 2991 (1989)); U_xx^+ leaves out zero modes.
    Positions must be a minimum; under stress these are the second derivatives of the energy in the strain. Memory is
    (n dimension)^2.
    """
    x = points("positions", positions)
    d = x.shape[1]
    of = _of_strain(energy, x, box, neighbors)
    zero, still = jnp.zeros((d, d), x.dtype), jnp.zeros_like(x)
    (ee, ex), (_, xx) = jax.hessian(of, argnums=(0, 1))(zero, still)
    ex, xx = ex.reshape(d * d, x.size), xx.reshape(x.size, x.size)

    def response(column):
        # not the derivatives of eigenvectors, which a crystal's equal eigenvalues do not have
        return jax.lax.custom_linear_solve(lambda v: matmul(xx, v), column, solve_dense, symmetric=True)

    relaxed = matmul(ex, jax.vmap(response)(ex).T)
    return (ee - relaxed.reshape(d, d, d, d)) / volume(box, d)


class Modes(NamedTuple):
    """Angular frequencies (mode,) in 1/time, negative where imaginary, and displacements (mode, n, dimension)."""

    frequencies: Array
    displacements: Array


def normal_modes(energy: Callable, positions, masses=1.0) -> Modes:
    """The phonon spectrum: eigenvalues of the mass-weighted Hessian of ``energy(positions)``, smallest first.

    D = M^-1/2 H M^-1/2; omega = sign(w) sqrt(|w|) of its eigenvalues w. Displacements are M^-1/2 times the
    eigenvectors. For molecules omega is in 1/ps. Displacements of equal frequencies are any basis, without derivatives.
    """
    x = points("positions", positions)
    m = jnp.broadcast_to(jnp.asarray(masses, x.dtype), x.shape[:1])
    root = jnp.repeat(1.0 / jnp.sqrt(m), x.shape[1])
    hessian = jax.hessian(lambda x: scalar(energy(x)))(x).reshape(x.size, x.size)
    values, vectors = jnp.linalg.eigh(root[:, None] * hessian * root)
    frequencies = jnp.sign(values) * geometry.safe_sqrt(jnp.abs(values))
    return Modes(frequencies, (root[:, None] * vectors).T.reshape(-1, *x.shape))


# --- motion
# -----------------------------------------------------------------------------------------------------------


def kinetic_temperature(velocities, masses=1.0, degrees_of_freedom: float | None = None):
    """kT from velocities (..., n, dimension): the sum of m v^2 over the degrees of freedom (None: all)."""
    v = jnp.asarray(velocities)
    m = jnp.broadcast_to(jnp.asarray(masses, v.dtype), v.shape[-2:-1])[:, None]
    count = v.shape[-2] * v.shape[-1] if degrees_of_freedom is None else degrees_of_freedom
    return jnp.sum(m * v * v, axis=(-2, -1)) / count


def mean_squared_displacement(positions) -> Float[Array, " lag"]:
    """<|x(t0 + t) - x(t0)|^2> over particles and all origins t0, for every lag t; positions (time, n, dimension).

    Paths must be continuous: positions not wrapped into a box.
    """
    x = jnp.asarray(positions)
    squares = jnp.sum(x * x, axis=(1, 2))
    summed = jnp.concatenate([jnp.zeros(1, x.dtype), jnp.cumsum(squares)])
    n = x.shape[0]
    lag = jnp.arange(n)
    both = summed[n - lag] + summed[n] - summed[lag]
    return jnp.maximum(both / (n - lag) - 2.0 * _autocorrelation(x), 0.0) / x.shape[1]


def velocity_autocorrelation(velocities) -> Float[Array, " lag"]:
    """<v(t0) . v(t0 + t)> over particles and all origins, for every lag; velocities (time, n, dimension)."""
    v = jnp.asarray(velocities)
    return _autocorrelation(v) / v.shape[1]


def _autocorrelation(x):
    """sum over particles of <x(t0) x(t0 + t)>, by Fourier transform with zero padding."""
    n = x.shape[0]
    spectrum = jnp.fft.rfft(x, 2 * n, axis=0)
    total = jnp.fft.irfft(jnp.sum(jnp.abs(spectrum) ** 2, axis=(1, 2)), 2 * n)[:n]
    return total / (n - jnp.arange(n))
