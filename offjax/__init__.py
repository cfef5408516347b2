"""offjax: differentiable SMIRNOFF force fields on JAX.

Units inside and at the array API are OpenMM's: nm, kJ/mol, rad, e, ps, amu, K, bar.

Names are imported when they are first used, so that ``offjax --help`` does not wait for JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from offjax.assignment import AssignmentMatrix
    from offjax.batch import Conformers, SystemBatch
    from offjax.energy import PotentialEnergy
    from offjax.errors import (
        DifferentiationError,
        InputError,
        OffjaxError,
        PrecisionError,
        SimulationError,
        UnassignedParameterError,
        UnsupportedError,
    )
    from offjax.interop.packing import build_box
    from offjax.md.minimizers import minimize
    from offjax.parameters import Label, ParameterSet, Selection
    from offjax.system import System, Term
    from offjax.terms.user import UserTerm

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
    "SimulationError",
    "System",
    "SystemBatch",
    "Term",
    "UnassignedParameterError",
    "UnsupportedError",
    "UserTerm",
    "build_box",
    "minimize",
]

_MODULES = {
    "assignment": ("AssignmentMatrix",),
    "batch": ("Conformers", "SystemBatch"),
    "energy": ("PotentialEnergy",),
    "errors": (
        "DifferentiationError",
        "InputError",
        "OffjaxError",
        "PrecisionError",
        "SimulationError",
        "UnassignedParameterError",
        "UnsupportedError",
    ),
    "interop.packing": ("build_box",),
    "md.minimizers": ("minimize",),
    "parameters": ("Label", "ParameterSet", "Selection"),
    "system": ("System", "Term"),
    "terms.user": ("UserTerm",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'offjax' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"offjax.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
