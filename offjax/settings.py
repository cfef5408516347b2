"""How a force field treats nonbonded interactions: the options of ``<vdW>`` and ``<Electrostatics>``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NonbondedSettings:
    """Scales of 1-4 pairs, cutoffs (nm) and methods, named as in the SMIRNOFF specification."""

    vdw_scale14: float = 0.5
    vdw_cutoff: float = 0.9
    vdw_switch_width: float = 0.1
    vdw_periodic_method: str = "cutoff"
    vdw_nonperiodic_method: str = "no-cutoff"
    coulomb_scale14: float = 0.8333333333
    coulomb_cutoff: float = 0.9
    coulomb_periodic_potential: str = "Ewald3D-ConductingBoundary"
    coulomb_nonperiodic_potential: str = "Coulomb"
