"""Fitting a force field to quantum-chemical energies and forces.

A fit is ``run(FitConfig.load("fit.toml"))``; see :mod:`offjax.fit.targets` for the equations.
"""

from offjax.fit.config import FitConfig
from offjax.fit.driver import fold, run
from offjax.fit.progress import Bars, Lines, Silent, for_terminal
from offjax.fit.result import FitResult, MoleculeResult, summary
from offjax.fit.uncertainty import Posterior, Prediction, posterior

__all__ = [
    "Bars",
    "FitConfig",
    "FitResult",
    "Lines",
    "MoleculeResult",
    "Posterior",
    "Prediction",
    "Silent",
    "fold",
    "for_terminal",
    "posterior",
    "run",
    "summary",
]
