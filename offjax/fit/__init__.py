"""Fitting a force field to quantum-chemical energies and forces.

A fit is ``run(FitConfig.load("fit.toml"))``; see :mod:`offjax.fit.targets` for the equations.
"""

from offjax.fit.config import FitConfig
from offjax.fit.conflicts import Conflicts, find_conflicts
from offjax.fit.driver import fold, run
from offjax.fit.progress import Bars, Lines, Silent, for_terminal
from offjax.fit.result import FitResult, MoleculeResult, summary
from offjax.fit.uncertainty import Posterior, Prediction, posterior

__all__ = [
    "Bars",
    "Conflicts",
    "FitConfig",
    "FitResult",
    "Lines",
    "MoleculeResult",
    "Posterior",
    "Prediction",
    "Silent",
    "find_conflicts",
    "fold",
    "for_terminal",
    "posterior",
    "run",
    "summary",
]
