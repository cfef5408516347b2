"""One module a SMIRNOFF section: the potential as a scalar function, and the energies of many terms."""

from offjax.terms import angles, bonds, electrostatics, gbsa, torsions, vdw

__all__ = ["angles", "bonds", "electrostatics", "gbsa", "torsions", "vdw"]
