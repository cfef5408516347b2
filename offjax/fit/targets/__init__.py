"""Targets: reference data, and the deviations of a force field from them.

Energies, forces and torsion profiles are those of :mod:`~offjax.fit.targets.conformers`. Each of the other kinds is a
:class:`~offjax.fit.targets.target.Target` of its own:

========================  ====================================
``kind``                  module
========================  ====================================
optimized-geometries      :mod:`offjax.fit.targets.geometries`
minimum-gradients         :mod:`offjax.fit.targets.gradients`
hessians                  :mod:`offjax.fit.targets.hessians`
vibrations                :mod:`offjax.fit.targets.vibrations`
interaction-energies      :mod:`offjax.fit.targets.interactions`
electrostatic-potentials  :mod:`offjax.fit.targets.potentials`
========================  ====================================
"""

from offjax.fit.targets.components import CONFORMERS, QUANTITIES, Quantity
from offjax.fit.targets.conformers import (
    Evaluated,
    Relaxation,
    Targets,
    build,
    conformer_weights,
    reference_weights,
)
from offjax.fit.targets.target import Component, Found, Target

__all__ = [
    "CONFORMERS",
    "QUANTITIES",
    "Component",
    "Evaluated",
    "Found",
    "Quantity",
    "Relaxation",
    "Target",
    "Targets",
    "build",
    "conformer_weights",
    "reference_weights",
]
