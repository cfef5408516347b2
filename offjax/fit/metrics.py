"""Errors of energies, forces and other quantities: root mean squares in which every molecule counts equally.

    energy RMSE = sqrt( mean_m mean_c [ (U_mc - mean_c U_mc) - (E_mc - mean_c E_mc) ]^2 )                 kJ/mol
    force RMSE  = sqrt( mean_m mean_c mean_i,xyz (f_mci - F_mci)^2 )                                   kJ/mol/nm

They do not depend on the weights, scales and energy reference of a fit, so that fits can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def energy_rmse(energies: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float | None:
    """kJ/mol; None without molecules."""
    return _rmse([centred(u) - centred(e) for u, e in zip(energies, reference, strict=True)])


def force_rmse(forces: Sequence[np.ndarray], reference: Sequence[np.ndarray | None]) -> float | None:
    """kJ/mol/nm; None without molecules that have reference forces."""
    return _rmse([f - g for f, g in zip(forces, reference, strict=True) if g is not None])


def centred(energies: np.ndarray) -> np.ndarray:
    """Energies relative to their mean; the first is taken off before, because total energies are large."""
    shifted = energies - energies[0]
    return shifted - shifted.mean()


def root_mean(squares: np.ndarray) -> float | None:
    """Of the mean squares (molecule,) of molecules; those that are not a number have none. None without any."""
    squares = squares[~np.isnan(squares)]
    return float(np.sqrt(np.mean(squares))) if len(squares) else None


def _rmse(errors: Sequence[np.ndarray]) -> float | None:
    return float(np.sqrt(np.mean([np.mean(e**2) for e in errors]))) if len(errors) else None
