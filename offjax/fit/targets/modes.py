"""Normal modes of molecules: eigenvectors of the mass-weighted Hessian without translations and rotations.

    D = M^-1/2 H M^-1/2,    D l_m = omega_m^2 l_m,    wavenumber = sign(omega^2) sqrt(|omega^2|) / (2 pi c).

With H in kJ/mol/nm^2 and masses in amu, omega^2 is in 1/ps^2. A negative eigenvalue has a negative wavenumber, as
quantum-chemistry programs print imaginary ones. Source: E. B. Wilson, J. C. Decius, P. C. Cross, Molecular Vibrations
(1955), chapter 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from offjax.constants import SPEED_OF_LIGHT
from offjax.errors import InputError
from offjax.interop.records import Record
from offjax.system import System

WAVENUMBER = 1.0 / (2 * math.pi * SPEED_OF_LIGHT)
"""Wavenumber of an angular frequency of 1/ps, 1/cm."""
RIGID = 1e-5
"""Singular values of the normalised translations and rotations below this times the largest: a linear molecule."""


def wavenumbers(values):
    """1/cm of the eigenvalues omega^2 in 1/ps^2; the derivative at 0 is 0."""
    there = values != 0
    return jnp.where(there, jnp.sign(values) * jnp.sqrt(jnp.where(there, jnp.abs(values), 1.0)), 0.0) * WAVENUMBER


def rigid_motions(x: Float[np.ndarray, "atom 3"], masses: Float[np.ndarray, " atom"]) -> np.ndarray:
    """Orthonormal mass-weighted translations and rotations, (3 atoms, 6), 5 for a linear molecule."""
    arm = x - masses @ x / masses.sum()
    motions = [np.broadcast_to(axis, x.shape) for axis in np.eye(3)] + [np.cross(axis, arm) for axis in np.eye(3)]
    basis = np.stack([(np.sqrt(masses)[:, None] * m).ravel() for m in motions], axis=1)
    size = np.linalg.norm(basis, axis=0)
    left, values, _ = np.linalg.svd(basis / np.where(size > 0, size, 1.0), full_matrices=False)
    return left[:, values > RIGID * values[0]]


def normal_modes(hessian: np.ndarray, x: np.ndarray, masses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (m,) in 1/ps^2, ascending, and modes (m, atom, 3), orthonormal in mass-weighted coordinates.

    ``hessian`` (3 atoms, 3 atoms) in kJ/mol/nm^2, ``x`` (atom, 3) in nm, ``masses`` in amu.
    """
    root = np.repeat(np.sqrt(masses), 3)
    outside = rigid_motions(x, masses)
    inside = np.linalg.svd(outside, full_matrices=True)[0][:, outside.shape[1] :]
    values, vectors = np.linalg.eigh(inside.T @ (hessian / np.outer(root, root)) @ inside)
    return values, (inside @ vectors).T.reshape(len(values), *x.shape)


def of_records(systems: Sequence[System], records: Sequence[Record]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Eigenvalues (1/ps^2) and mass-weighted modes of every conformer, from its Hessian or else its given modes.

    Raises
    ------
    InputError
        More frequencies than the molecule has vibrations.
    """
    found = []
    for system, record in zip(systems, records, strict=True):
        masses = np.asarray(system.topology.masses)[: record.positions.shape[1]]
        for c, x in enumerate(record.positions):
            if "hessian" in record.properties:
                found.append(normal_modes(record.properties["hessian"][c], x, masses))
                continue
            omega = record.properties["frequencies"][c] / WAVENUMBER
            most = x.size - rigid_motions(x, masses).shape[1]
            if len(omega) > most:
                raise InputError(
                    f"{record.source}, {record.name}: {len(omega)} frequencies, but the molecule has {most} "
                    "vibrations; leave translations and rotations out"
                )
            modes = np.sqrt(masses)[:, None] * record.properties["modes"][c]
            size = np.linalg.norm(modes, axis=(1, 2), keepdims=True)
            found.append((np.sign(omega) * omega**2, modes / np.where(size > 0, size, 1.0)))
    return found


def padded(modes: Sequence[tuple[np.ndarray, np.ndarray]], width: int) -> tuple[Array, Array, Array]:
    """Of conformers with their own numbers of modes and atoms: eigenvalues (conformer, mode), modes (conformer, mode, 3
    width), and which of them there are, (conformer, mode) bool.
    """
    n, m = len(modes), max(len(values) for values, _ in modes)
    values, vectors, there = np.zeros((n, m)), np.zeros((n, m, width, 3)), np.zeros((n, m), bool)
    for c, (own, directions) in enumerate(modes):
        values[c, : len(own)], there[c, : len(own)] = own, True
        vectors[c, : len(own), : directions.shape[1]] = directions
    return jnp.asarray(values), jnp.asarray(vectors.reshape(n, m, 3 * width)), jnp.asarray(there)
