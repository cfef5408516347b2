"""offjax: differentiable SMIRNOFF force fields on JAX.

Units inside and at the array API are OpenMM's: nm, kJ/mol, rad, e, ps, amu, K, bar.
"""

from offjax.assignment import AssignmentMatrix
from offjax.batch import Conformers, SystemBatch
from offjax.energy import PotentialEnergy
from offjax.errors import (
    DifferentiationError,
    InputError,
    OffjaxError,
    PrecisionError,
    UnassignedParameterError,
    UnsupportedError,
)
from offjax.parameters import Label, ParameterSet, Selection
from offjax.system import System, Term

__version__ = "0.1.0"

__all__ = [
    "AssignmentMatrix",
    "Conformers",
    "DifferentiationError",
    "InputError",
    "Label",
    "OffjaxError",
    "ParameterSet",
    "PotentialEnergy",
    "PrecisionError",
    "Selection",
    "System",
    "SystemBatch",
    "Term",
    "UnassignedParameterError",
    "UnsupportedError",
]
