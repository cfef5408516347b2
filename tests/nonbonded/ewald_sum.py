"""The Coulomb energy of a periodic system by an exact Ewald sum: slow, plain, and independent of the code it tests."""

import numpy as np
from scipy.special import erf, erfc

from offjax.constants import COULOMB


def coulomb(x, charges, box, alpha, excluded=()) -> float:
    """kJ/mol; every image within 7/alpha and every wave vector below 2 alpha is summed: error about 1e-16."""
    x, charges, box = (np.asarray(v, dtype=float) for v in (x, charges, box))
    volume = abs(np.linalg.det(box))
    total = reciprocal(x, charges, box, alpha)
    total -= COULOMB * alpha / np.sqrt(np.pi) * np.sum(charges**2)
    total -= np.pi * COULOMB / (2 * volume * alpha**2) * np.sum(charges) ** 2
    product = np.outer(charges, charges)
    for shift in images(box, 7.0 / alpha + np.ptp(x, axis=0).max() * np.sqrt(3)):
        r = np.linalg.norm(x[None] - x[:, None] + shift, axis=-1)
        if not shift.any():
            np.fill_diagonal(r, np.inf)
        total += 0.5 * COULOMB * np.sum(product * erfc(alpha * r) / r)
    for i, j in excluded:
        r = np.linalg.norm(x[i] - x[j])
        total -= COULOMB * charges[i] * charges[j] * (erf(alpha * r) + erfc(alpha * r)) / r
    return float(total)


def reciprocal(x, charges, box, alpha) -> float:
    """The wave vectors' part, kJ/mol."""
    inverse = np.linalg.inv(box)
    reach = np.ceil(4.0 * alpha * np.linalg.norm(box, axis=1)).astype(int)
    n = np.stack(np.meshgrid(*(np.arange(-k, k + 1) for k in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    m = n @ inverse.T
    m2 = np.sum(m * m, axis=1)
    keep = (m2 > 0) & (np.pi**2 * m2 / alpha**2 < 40.0)
    m, m2 = m[keep], m2[keep]
    structure = np.exp(2j * np.pi * m @ x.T) @ charges
    weight = np.exp(-(np.pi**2) * m2 / alpha**2) / m2
    return float(COULOMB / (2 * np.pi * abs(np.linalg.det(box))) * np.sum(weight * np.abs(structure) ** 2))


def images(box, radius):
    """Every lattice vector that may bring two points within ``radius``."""
    height = 1.0 / np.linalg.norm(np.linalg.inv(box), axis=0)
    reach = np.ceil(radius / height).astype(int)
    n = np.stack(np.meshgrid(*(np.arange(-k, k + 1) for k in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    return n @ box
