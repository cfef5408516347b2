"""How a force field treats nonbonded interactions: the options of its sections, in its words and in OpenMM's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from offjax.errors import InputError, UnsupportedError

EWALD_TOLERANCE = 1e-4
"""Ewald error tolerance of periodic Systems, as OpenFF Interchange writes it (OpenMM's default is 5e-4)."""


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


@dataclass(frozen=True)
class OpenMMMethods:
    """OpenMM's method of each part, of both in one force, and the common cutoff and switching distance, nm."""

    both: str
    vdw: str
    coulomb: str
    cutoff: float | None = None
    switch: float | None = None


def openmm_methods(settings: NonbondedSettings, vdw: bool, coulomb: bool, box: np.ndarray | None) -> OpenMMMethods:
    """What the force field asks for, in OpenMM's words; ``vdw``, ``coulomb``: whether it has these sections."""
    s = settings
    if box is None:
        if not vdw or s.vdw_nonperiodic_method == "no-cutoff":
            return OpenMMMethods("NoCutoff", "NoCutoff", "NoCutoff")
        if coulomb:
            raise UnsupportedError(
                f'<vdW nonperiodic_method="{s.vdw_nonperiodic_method}"> with uncut Coulomb electrostatics cannot be '
                'written as one OpenMM NonbondedForce: use nonperiodic_method="no-cutoff"'
            )
        return OpenMMMethods("CutoffNonPeriodic", "CutoffNonPeriodic", "NoCutoff", s.vdw_cutoff, _switch(s))
    if vdw and coulomb and s.vdw_cutoff != s.coulomb_cutoff:
        raise UnsupportedError(
            f"<vdW> is cut at {s.vdw_cutoff} nm and <Electrostatics> at {s.coulomb_cutoff} nm, but one OpenMM "
            "NonbondedForce has one cutoff: give both sections the same cutoff"
        )
    cutoff = s.vdw_cutoff if vdw else s.coulomb_cutoff
    check_cutoff(cutoff, box)
    if not coulomb:
        electrostatics = None
    elif s.coulomb_periodic_potential in ("Ewald3D-ConductingBoundary", "PME"):
        electrostatics = "PME"
    elif s.coulomb_periodic_potential == "reaction-field" or "k_rf" in s.coulomb_periodic_potential:
        electrostatics = "CutoffPeriodic"
    else:
        raise UnsupportedError(
            f'<Electrostatics periodic_potential="{s.coulomb_periodic_potential}"> in a periodic box cannot be '
            "written as an OpenMM NonbondedForce: supported are Ewald3D-ConductingBoundary and reaction-field"
        )
    if not vdw:
        return OpenMMMethods(electrostatics or "NoCutoff", "NoCutoff", electrostatics or "NoCutoff", cutoff)
    if s.vdw_periodic_method == "cutoff":
        return OpenMMMethods(
            electrostatics or "CutoffPeriodic", "CutoffPeriodic", electrostatics or "NoCutoff", cutoff, _switch(s)
        )
    if s.vdw_periodic_method == "Ewald3D":
        if electrostatics == "CutoffPeriodic":
            raise UnsupportedError(
                '<vdW periodic_method="Ewald3D"> with reaction-field electrostatics cannot be written as one OpenMM '
                "NonbondedForce: use Ewald3D-ConductingBoundary for both"
            )
        return OpenMMMethods("LJPME", "LJPME", electrostatics or "NoCutoff", cutoff)
    raise UnsupportedError(
        f'<vdW periodic_method="{s.vdw_periodic_method}"> in a periodic box cannot be written as an OpenMM '
        "NonbondedForce: supported are cutoff and Ewald3D; or build the System without box"
    )


def check_cutoff(cutoff: float, box: np.ndarray) -> None:
    """Raises InputError if the cutoff exceeds half of a diagonal element of the (3, 3) box, as OpenMM does."""
    if 2 * cutoff > float(np.diag(box).min()):
        raise InputError(
            f"the cutoff {cutoff} nm is more than half of the box, whose edges are {np.diag(box).tolist()} nm: use a "
            "larger box or a shorter cutoff"
        )


def _switch(settings: NonbondedSettings) -> float | None:
    width = settings.vdw_switch_width
    return settings.vdw_cutoff - width if width > 0 else None


@dataclass(frozen=True)
class GBSASettings:
    """The implicit solvent, named as in the SMIRNOFF specification; penalty in kJ/mol/nm^2, radius in nm.

    A ``surface_area_penalty`` of zero stands for ``sa_model="None"``.
    """

    model: str
    solvent_dielectric: float
    solute_dielectric: float
    surface_area_penalty: float
    solvent_radius: float
